"""Regularizers: small feed-forward networks on real two-channel volumes."""

from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from blockkit.checks import check_count

_GAIN = 4.0


class ResidualCNN(nn.Module):
    r"""A residual stack of 3x3x3 convolutions: :math:`x + C_n(\sigma(C_{n-1}(\dots \sigma(C_1 g x)))) / g`.

    The gain g = 4 lifts lungs and noise, a tenth of the brightest signal, to where the activation bends: without it a
    small network stays nearly linear and learns many times more slowly.

    With ``downsample`` above 1 the volume first trades resolution for channels (space to depth), which costs an eighth
    of the work at 2 and multiplies the reach; the same trade is undone at the end, so nothing is lost.

    Parameters
    ----------
    n_channels
        Width of the hidden layers.
    n_layers
        Number of convolutions, at least 2.
    downsample
        Space-to-depth factor on every axis. The volume must be divisible by it.
    sees_gradient
        Whether the input has two more channels, for the gradient of the data term, as
        :class:`~blockkit.mbdl.unrolled.UnrolledNetwork` then gives it.

    Notes
    -----
    Takes real tensors ``(window, 2, z, y, x)``, real and imaginary part, or ``(window, 4, z, y, x)`` with
    ``sees_gradient``, and gives ``(window, 2, z, y, x)``. The last convolution starts at zero, so that an untrained
    network changes nothing. SiLU is smooth, so block-wise and whole-volume gradients agree
    to rounding. Weights start with the variance that keeps a signal's size through SiLU (gain 1.7).

    References
    ----------
    .. [1] Zhang et al., "Beyond a Gaussian denoiser: residual learning of deep CNN for image denoising",
       IEEE TIP 26(7), 2017.

    Examples
    --------
    >>> network = bk.ResidualCNN(n_channels=8, n_layers=3)
    >>> network(torch.zeros(1, 2, 16, 12, 16)).shape
    torch.Size([1, 2, 16, 12, 16])
    >>> bk.reach(network).radius
    (3, 3, 3)
    """

    def __init__(
        self, n_channels: int = 32, n_layers: int = 5, *, downsample: int = 1, sees_gradient: bool = False
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("n_channels", n_channels, 1),
            ("n_layers", n_layers, 2),
            ("downsample", downsample, 1),
        ):
            check_count(value, name, least)
        self.n_channels, self.n_layers, self.downsample = n_channels, n_layers, downsample
        self.sees_gradient = bool(sees_gradient)
        widths = [n_inputs(self) * downsample**3] + [n_channels] * (n_layers - 1) + [2 * downsample**3]
        layers: list[nn.Module] = [SpaceToDepth(downsample)] if downsample > 1 else []
        for i, (n_in, n_out) in enumerate(pairwise(widths)):
            layers += [nn.Conv3d(n_in, n_out, 3, padding=1)] + ([nn.SiLU()] if i < n_layers - 1 else [])
        for layer in layers:
            if isinstance(layer, nn.Conv3d):
                nn.init.normal_(layer.weight, std=1.7 / layer.weight[0].numel() ** 0.5)
                nn.init.zeros_(cast(Tensor, layer.bias))
        nn.init.zeros_(layers[-1].weight)  # type: ignore[arg-type]
        layers += [DepthToSpace(downsample)] if downsample > 1 else []
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the regularized volume, two channels."""
        result: Tensor = x[:, :2] + self.layers(channels_last(_GAIN * x)) / _GAIN
        return result


def n_inputs(regularizer: nn.Module) -> int:
    """Return how many channels a regularizer takes: 4 if it has a true attribute ``sees_gradient``, else 2."""
    return 4 if getattr(regularizer, "sees_gradient", False) else 2


def channels_last(x: Tensor) -> Tensor:
    """Lay the channels of a voxel side by side: a CPU's 3D convolutions then take two thirds of the time."""
    return x.contiguous(memory_format=torch.channels_last_3d) if x.device.type == "cpu" else x


class SpaceToDepth(nn.Module):
    """Fold each ``factor``-cube of voxels into channels: (w, c, z, y, x) to (w, c f^3, z/f, y/f, x/f)."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Fold."""
        f = self.factor
        w, c, z, y, x_ = x.shape
        cubes = x.reshape(w, c, z // f, f, y // f, f, x_ // f, f)
        return channels_last(cubes.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(w, c * f**3, z // f, y // f, x_ // f))


class DepthToSpace(nn.Module):
    """Unfold channels into voxels: the inverse of :class:`SpaceToDepth`."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Unfold."""
        f = self.factor
        w, c, z, y, x_ = x.shape
        cubes = x.reshape(w, c // f**3, f, f, f, z, y, x_)
        return cubes.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(w, c // f**3, z * f, y * f, x_ * f)
