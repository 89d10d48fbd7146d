"""The unrolled network: data-consistency step and regularizer, in turn, from gridding to image."""

import copy
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from blockkit.blockwise.blocks import apply_blockwise
from blockkit.blockwise.guards import precision_named
from blockkit.blockwise.reach import reach
from blockkit.checks import check_complex, check_count, check_tensor
from blockkit.group import ALONE, Group
from blockkit.ledger import part
from blockkit.mbdl.data_consistency import (
    DATA_TERMS,
    DataTerm,
    gradient_channels,
    gradient_step,
    prepare,
    proximal_step,
)
from blockkit.mbdl.networks import n_inputs
from blockkit.mbdl.offload import OFFLOADS, offloading
from blockkit.physics.sense import Encoding


class UnrolledNetwork(nn.Module):
    r"""Model-based deep learning, unrolled: ``n_unrolls`` times a data-consistency step, then the regularizer.

    From the scaled gridding reconstruction :math:`x_0`, unroll k computes :math:`z_k = x_k - \tau_k (N x_k - b)`, with
    :math:`N = A^H W A / L` and a learned step size in units of 1/L, then :math:`x_{k+1} = R(z_k)`. The scan is brought
    to magnitude 1 before and back to its own unit after, so k-space of any unit will do.

    Parameters
    ----------
    regularizer
        Feed-forward network on real ``(window, 2, z, y, x)``, same shape out: real and imaginary part. If it has a
        true attribute ``sees_gradient``, as :class:`ResidualCNN` offers, its input is ``(window, 4, z, y, x)``: after
        the image the gradient :math:`N x_k - b`, which tells it where the data object, and how loudly.
    n_unrolls
        Number of unrolls.
    block_shape
        Block ``(z, y, x)`` in voxels: the regularizer sees one batch of blocks at a time and recomputes it for
        backward, which ties memory to the block. None is naive backprop. Same loss and same gradients either way.
        ``"auto"``: the largest that fits into four fifths of the free memory, and a smaller one when memory runs out
        all the same; :func:`~blockkit.mbdl.training.fit` puts it in its place, a reconstruction chooses anew.
    shared_weights
        True: one regularizer for all unrolls. False: each unroll has its own copy.
    data_term
        ``"density"`` (residuals weighted by the density compensation), ``"unweighted"``, or ``"cg"`` (unweighted, and
        a few conjugate-gradient iterations in place of the gradient step).
    offload
        Where the two images that each unroll keeps for backward wait: None, in place; ``"cpu"``, from a GPU to pinned
        memory of the CPU; ``"disk"``, in a file without a name among the temporary files. With ``"cpu"`` or
        ``"disk"``, the device's memory does not grow with the number of unrolls. Same values, same gradients.
    recompute
        Whether backward runs each batch of blocks again. If not, the activations of all blocks are kept, as naive
        backprop does: three quarters of the regularizer's work, and no less memory. Same values, same gradients.

    References
    ----------
    .. [1] Miller, Pirasteh, Johnson, "Memory efficient model based deep learning reconstructions for high spatial
       resolution 3D non-Cartesian acquisitions", Phys. Med. Biol. 68(7), 2023, doi:10.1088/1361-6560/acc003.

    Examples
    --------
    >>> model = bk.UnrolledNetwork(bk.ResidualCNN(8, 2), n_unrolls=2, block_shape=(8, 8, 8))
    >>> A = bk.Encoding(scan.trajectory, scan.maps)
    >>> image = model(A, scan.kspace)
    >>> image.shape
    torch.Size([16, 12, 16])
    """

    def __init__(
        self,
        regularizer: nn.Module,
        n_unrolls: int = 6,
        *,
        block_shape: tuple[int, int, int] | Literal["auto"] | None = None,
        shared_weights: bool = True,
        data_term: str = "density",
        offload: str | None = None,
        recompute: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(regularizer, nn.Module):
            raise TypeError(
                f"regularizer is {regularizer!r}, expected a torch.nn.Module, such as blockkit.ResidualCNN()."
            )
        if data_term not in DATA_TERMS:
            raise ValueError(f"data_term is {data_term!r}, expected one of {', '.join(map(repr, DATA_TERMS))}.")
        if offload not in OFFLOADS:
            raise ValueError(f"offload is {offload!r}, expected one of {', '.join(map(repr, OFFLOADS))}.")
        if n_inputs(regularizer) == 4 and data_term == "cg":
            raise ValueError("data_term is 'cg', which has no gradient for the regularizer to see: use 'density'.")
        self.n_unrolls = check_count(n_unrolls, "n_unrolls")
        self.block_shape: Any = block_shape  # three numbers or None, wherever something runs
        self.offload, self.recompute = offload, recompute
        self.shared_weights, self.data_term = shared_weights, data_term
        copies = [] if shared_weights else [copy.deepcopy(regularizer) for _ in range(n_unrolls - 1)]
        self.regularizers = nn.ModuleList([regularizer, *copies])
        self.step_size = nn.Parameter(torch.ones(n_unrolls))

    def forward(self, A: Encoding, kspace: Tensor) -> Tensor:
        """Reconstruct an image ``(z, y, x)``, complex, from ``kspace`` ``(coil, sample)`` and its encoding operator.

        If the scan is spread over processes (:meth:`~blockkit.data.scan.Scan.spread`), all of them call this together,
        the windows of each unroll are dealt out too, and all get the image. Without blocks, each runs the whole volume.
        """
        _check_precision(kspace, self.regularizers)
        if self.block_shape == "auto":
            from blockkit.mbdl.automatic import in_fitting_blocks  # it plans by running such models: not at the top

            return in_fitting_blocks(self, A, kspace)
        return self.unroll(prepare(A, kspace, self.data_term))

    def unroll(self, data: DataTerm) -> Tensor:
        """Run the unrolls on a data term that is already prepared."""
        return data.group.together("the unrolls", lambda: self._unroll(data))

    def _unroll(self, data: DataTerm) -> Tensor:
        with self.offloading(data):
            for x in self.iterates(data):
                last = x
        return last * data.scale

    def offloading(self, data: DataTerm) -> AbstractContextManager[None]:
        """Return the context that takes away what the unrolls keep for backward, to where ``offload`` says."""
        return offloading(self.offload, (*self.parameters(), *self.buffers(), data.b))

    def iterates(self, data: DataTerm) -> Iterator[Tensor]:
        """Run the unrolls and give the image after each, in the network's own scale."""
        self._check_alike(data)
        x = data.start
        for k in range(self.n_unrolls):
            x = self.regularize(self.data_consistency(x, k, data), k, data.group)
            yield x

    @torch.no_grad()
    def _check_alike(self, data: DataTerm) -> None:
        """Raise unless all processes that share a scan have the same model."""
        sizes = f"n_unrolls={self.n_unrolls}, block_shape={self.block_shape}, data_term={self.data_term!r}"
        data.group.agree(f"{sizes} with an image of {tuple(data.b.shape)}")
        data.group.check_alike(
            "weights",
            lambda: torch.stack([p.norm().double() for p in self.parameters()]),
            "Load the same weights file on all, or call torch.manual_seed(0) before the network is made.",
        )

    def data_consistency(self, x: Tensor, k: int, data: DataTerm) -> Tensor:
        """Step ``k`` towards the data: image to image, or to real channels of image and gradient ``(4, z, y, x)``."""
        if n_inputs(self.regularizers[0]) == 4:
            return gradient_channels(x, self.step_size[k], data)
        if self.data_term == "cg":
            return proximal_step(x, self.step_size[k].abs() * 0.05, data)
        return gradient_step(x, self.step_size[k], data)

    def regularize(self, z: Tensor, k: int, group: Group = ALONE) -> Tensor:
        """Pass what :meth:`data_consistency` gave through the regularizer of unroll ``k``: whole, or block by block.

        The blocks are dealt out over the processes of ``group``, all of which have the same ``z`` and get the same.
        """
        if self.block_shape == "auto":
            raise ValueError(
                'block_shape is "auto", which model(A, kspace) and fit settle by the size of the scan. Here write '
                "three numbers, such as model.block_shape = (64, 64, 64)."
            )
        network = self.regularizers[0 if self.shared_weights else k]
        channels = torch.view_as_real(z).movedim(-1, 0).contiguous() if z.is_complex() else z
        padded = _pad_to_stride(channels, network)
        if self.block_shape is None:
            with part("windows"), precision_named(network, padded):
                result = network(padded[None])[0]
        else:
            result = apply_blockwise(network, padded, self.block_shape, recompute=self.recompute, group=group)
        if len(result) != 2:
            raise ValueError(f"The regularizer gives {len(result)} channels, expected 2: real and imaginary part.")
        nz, ny, nx = z.shape[-3:]
        result = result[:, :nz, :ny, :nx]
        return torch.view_as_complex(result.movedim(0, -1).contiguous())


def _check_precision(kspace: Tensor, regularizers: nn.Module) -> None:
    """Raise unless the k-space is complex, in the precision of the regularizers' weights."""
    check_tensor(kspace, "kspace")
    check_complex(kspace, "kspace")
    kinds = {p.dtype for p in regularizers.parameters() if p.is_floating_point()} - {kspace.dtype.to_real()}
    if kinds & {torch.float32, torch.float64}:
        raise TypeError(
            f"kspace has dtype {kspace.dtype}, and the regularizer weights of {kinds.pop()}: expected one precision. "
            "Write kspace.to(torch.complex64), or model.double()."
        )


def _pad_to_stride(x: Tensor, network: nn.Module) -> Tensor:
    """Pad the far edges with zeros to a multiple of the network's stride: alike for whole and block-wise runs.

    A network whose stride cannot be told is left to whoever runs it: in blocks, that is refused there.
    """
    try:
        stride = reach(network, n_channels=len(x)).stride
    except ValueError:
        return x
    padding = [0 if n % s == 0 else s - n % s for n, s in zip(x.shape[1:], stride, strict=True)]
    if not any(padding):
        return x
    return nn.functional.pad(x, (0, padding[2], 0, padding[1], 0, padding[0]))
