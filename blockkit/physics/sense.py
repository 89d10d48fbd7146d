"""The encoding operator: coil maps, then the NUFFT, with the coils streamed."""

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes as _real

from blockkit.checks import check_complex, check_count, check_finite, check_image, check_shape3, check_tensor
from blockkit.group import ALONE, Group
from blockkit.ledger import few_for_all, part
from blockkit.physics.density import density_compensation
from blockkit.physics.fourier import NUFFT, Toeplitz, toeplitz_pays
from blockkit.physics.linop import LinearOperator, apply_linear
from blockkit.physics.maps import InterpolatedMaps
from blockkit.physics.off_resonance import OffResonance
from blockkit.physics.solvers import eigenvalue_bound

NORMALS = ("auto", "toeplitz", "nufft")

_LANCZOS = 5  # how many ``normal`` the bound L takes,
_ABOVE = 1.08  # and what it is raised by: of 22 scans of all kinds none needed more than 1.075


class Encoding(LinearOperator):
    r"""What the scanner does to an image: :math:`y_c = W^{1/2} F S_c x` for every coil :math:`c`.

    :math:`S_c` multiplies by a coil's sensitivity, :math:`F` is the NUFFT (orthonormal scale, minus sign, center at
    n//2) and :math:`W` the diagonal of ``weights`` (the identity if there are none). Coils pass ``coils_at_once`` at a
    time, so beside the k-space itself the memory does not grow with their number. Autograd knows the adjoint and saves
    no tensor. Cost: one NUFFT a coil; ``normal`` one Toeplitz product or one pair of NUFFTs a coil.

    Parameters
    ----------
    trajectory
        Sample positions, real, shape ``(sample, 3)``, columns kz ky kx, cycles/FOV.
    maps
        Coil sensitivity maps, complex, shape ``(coil, z, y, x)``, no unit. They may stay on the CPU while the
        trajectory, and so the image, is on a GPU: each batch of coils is moved when it is needed. Or an
        :class:`~blockkit.physics.maps.InterpolatedMaps`, of which only a small array is kept.
    engine, tolerance
        As in :class:`~blockkit.physics.fourier.NUFFT`.
    normal
        ``"toeplitz"``, ``"nufft"`` (adjoint after forward) or ``"auto"``, which picks by the sizes.
    coils_at_once
        How many coils are worked on together: more memory, the same answer.
    weights
        Weight of each sample in the data term, real and not negative, shape ``(sample,)``. The k-space that belongs to
        a weighted operator is ``weights.sqrt() * kspace``.

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype or option does not fit.

    References
    ----------
    .. [1] Pruessmann et al., "Advances in sensitivity encoding with arbitrary k-space trajectories",
       MRM 46:638-651, 2001.

    Examples
    --------
    >>> A = bk.Encoding(scan.trajectory, scan.maps)
    >>> A.in_shape, A.out_shape
    ((16, 12, 16), (4, 2560))
    >>> gridded = A.adjoint(A.dcf * scan.kspace)
    >>> gridded.shape
    torch.Size([16, 12, 16])
    """

    def __init__(
        self,
        trajectory: Tensor,
        maps: Tensor | InterpolatedMaps,
        *,
        engine: str = "auto",
        normal: str = "auto",
        tolerance: float = 1e-4,
        coils_at_once: int = 1,
        weights: Tensor | None = None,
    ) -> None:
        if not isinstance(maps, InterpolatedMaps):
            _check_maps(maps)
        if normal not in NORMALS:
            raise ValueError(f"normal is {normal!r}, expected one of {', '.join(map(repr, NORMALS))}.")
        self.maps, self.group = maps, ALONE
        self.coils_at_once = check_count(coils_at_once, "coils_at_once")
        self.in_shape = check_shape3(maps.shape[1:])
        self.fourier: NUFFT | OffResonance = NUFFT(trajectory, self.in_shape, engine=engine, tolerance=tolerance)
        self.out_shape = (len(maps), len(trajectory))
        self.weights = None if weights is None else self._check_weights(weights)
        pays = toeplitz_pays(self.in_shape, len(trajectory), tolerance)
        self.normal_kind = ("toeplitz" if pays else "nufft") if normal == "auto" else normal

    @property
    def device(self) -> torch.device:
        """Where the image and the k-space are; the maps may be elsewhere."""
        return self.fourier.device

    @property
    def trajectory(self) -> Tensor:
        """Sample positions, shape ``(sample, 3)``, cycles/FOV."""
        return self.fourier.trajectory

    @cached_property
    def dcf(self) -> Tensor:
        """Density compensation of the trajectory, shape ``(sample,)``, computed once."""
        with _real():
            return density_compensation(self.trajectory, self.in_shape)

    @cached_property
    def toeplitz(self) -> Toeplitz:
        """The Toeplitz form of F^H W F, built once, at the first ``normal`` that wants it."""
        if isinstance(self.fourier, OffResonance):
            raise ValueError("off resonance F^H W F is no convolution: there is no Toeplitz form. Use A.normal.")
        with _real():
            return self.fourier.toeplitz(self.weights)

    @cached_property
    def lipschitz(self) -> float:
        r"""A bound of the largest eigenvalue of ``normal``, computed once: Lanczos, at most five ``normal``.

        Up to a tenth above the eigenvalue: as a unit of learned step sizes it need not be closer, and each ``normal``
        costs half an unroll. :func:`~blockkit.physics.solvers.eigenvalue_bound` comes closer with more.
        """
        with _real():
            return _ABOVE * eigenvalue_bound(self._normal, self.in_shape, n_iterations=_LANCZOS, device=self.device)

    def weighted(self, weights: Tensor | None) -> Self:
        """Return the operator with other ``weights``, sharing maps, NUFFT and density with this one."""
        other = copy.copy(self)
        for computed in ("toeplitz", "lipschitz"):
            vars(other).pop(computed, None)
        other.weights = None if weights is None else self._check_weights(weights)
        return other

    def of_coils(self, coils: slice) -> Self:
        """Return the operator of some coils alone, sharing NUFFT, weights and density with this one."""
        other = copy.copy(self)
        vars(other).pop("lipschitz", None)
        other.group = ALONE
        other.maps = self.maps[coils]
        other.out_shape = (len(other.maps), *self.out_shape[1:])
        return other

    def spread_over(self, group: Group) -> Self:
        """Return the operator of the coils of all processes of a group, of which this one has its own; all else shared.

        Images are alike on all processes, and the k-space is that of the own coils. ``adjoint`` and ``normal`` add up
        what the processes give, so all call them together; the bound ``lipschitz`` is that of all coils. Scans that are
        spread (:meth:`~blockkit.data.scan.Scan.spread`) make this operator themselves.

        Examples
        --------
        >>> from blockkit.group import join
        >>> group, maps = join(), bk.InterpolatedMaps(torch.ones(8, 4, 4, 4, dtype=torch.complex64), (16, 12, 16))
        >>> own = bk.InterpolatedMaps(maps.values[group.share(8)], maps.shape[1:])  # here one process has all
        >>> bk.Encoding(scan.trajectory, own).spread_over(group).out_shape
        (8, 2560)
        """
        other = copy.copy(self)
        vars(other).pop("lipschitz", None)
        other.group = group
        return other

    def off_resonant(self, field_map: Tensor, times: Tensor, *, tolerance: float | None = None) -> Self:
        """Return the operator of spins that precess at their own frequencies, sharing all else with this one.

        F becomes :class:`~blockkit.physics.off_resonance.OffResonance`, which says what the parameters are: the map in
        Hz, shape ``(z, y, x)``, and the samples' times in seconds, shape ``(sample,)`` or ``(n_readout,)``. ``normal``
        is then adjoint after forward, without Toeplitz form: two NUFFTs for each segment and coil.

        Examples
        --------
        >>> A = bk.Encoding(bk.radial_3d(50, 24, (12, 10, 12)), torch.ones(1, 12, 10, 12, dtype=torch.complex64))
        >>> field_map, times = torch.linspace(-100, 100, 1440).view(12, 10, 12), 70e-6 + 50e-6 * torch.arange(24)
        >>> A.off_resonant(field_map, times)
        Encoding(1 coils, (12, 10, 12) -> (1, 1200), finufft, normal by nufft, off resonance in 5 segments)
        """
        other = copy.copy(self)
        for computed in ("toeplitz", "lipschitz"):
            vars(other).pop(computed, None)
        on_resonance = self.fourier.fourier if isinstance(self.fourier, OffResonance) else self.fourier
        other.fourier = OffResonance(on_resonance, field_map, times, tolerance=tolerance)
        other.normal_kind = "nufft"
        return other

    def forward(self, x: Tensor) -> Tensor:
        """Image ``(z, y, x)`` to k-space ``(coil, sample)``."""
        check_image(x, self.in_shape)
        return apply_linear(x, self._forward, self._adjoint)

    def adjoint(self, y: Tensor) -> Tensor:
        """K-space ``(coil, sample)`` to image ``(z, y, x)``: no density compensation, so no gridding reconstruction."""
        check_tensor(y, "kspace")
        if tuple(y.shape) != self.out_shape:
            raise ValueError(f"kspace has shape {tuple(y.shape)}, expected (coil, sample) = {self.out_shape}.")
        check_complex(y, "kspace")
        return apply_linear(y, self._adjoint, self._forward)

    def normal(self, x: Tensor) -> Tensor:
        """Image to image: adjoint after forward, coil by coil, without the k-space of all coils."""
        check_image(x, self.in_shape)
        return apply_linear(x, self._normal, self._normal)

    def _forward(self, x: Tensor) -> Tensor:
        y = x.new_empty(self.out_shape)
        for coils in self._coil_batches(x):
            with part("nufft"):
                y[coils] = self._weigh(self.fourier.forward(self._maps(coils, x) * x))
        return y

    def _adjoint(self, y: Tensor) -> Tensor:
        return self.group.sum_of("the adjoint encoding", lambda: self._own_adjoint(y))

    def _own_adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(self.in_shape)
        for coils in self._coil_batches(y):
            with part("nufft"):
                x += (self._maps(coils, y).conj() * self.fourier.adjoint(self._weigh(y[coils]))).sum(dim=0)
        return x

    def _normal(self, x: Tensor) -> Tensor:
        return self.group.sum_of("the normal operator", lambda: self._own_normal(x))

    def _own_normal(self, x: Tensor) -> Tensor:
        single = self.toeplitz.forward if self.normal_kind == "toeplitz" else self._single_coil_normal
        result = torch.zeros_like(x)
        for coils in self._coil_batches(x):
            with part("nufft"):
                maps = self._maps(coils, x)
                result += (maps.conj() * single(maps * x)).sum(dim=0)
        return result

    def _single_coil_normal(self, x: Tensor) -> Tensor:
        return self.fourier.adjoint(self._weigh(self._weigh(self.fourier.forward(x))))

    def _coil_batches(self, tensor: Tensor) -> Sequence[slice]:
        step = self.coils_at_once
        batches = [slice(first, min(first + step, len(self.maps))) for first in range(0, len(self.maps), step)]
        return few_for_all(batches, tensor)

    def _maps(self, coils: slice, like: Tensor) -> Tensor:
        return self.maps[coils].to(device=like.device, dtype=like.dtype)

    def _weigh(self, y: Tensor) -> Tensor:
        return y if self.weights is None else y * self.weights.to(y.real.dtype).sqrt()

    def _check_weights(self, weights: Tensor) -> Tensor:
        check_tensor(weights, "weights")
        if tuple(weights.shape) != self.out_shape[1:]:
            raise ValueError(f"weights has shape {tuple(weights.shape)}, expected (sample,) = {self.out_shape[1:]}.")
        if not weights.is_floating_point():
            hint = "weights.abs()" if weights.is_complex() else "weights.float()"
            raise TypeError(f"weights has dtype {weights.dtype}, expected real floating point. Pass {hint}.")
        with _real():
            n_negative = 0 if isinstance(weights, FakeTensor) else _count_negative(weights)
        if n_negative:
            raise ValueError(f"weights has {n_negative} negative values, expected none below zero.")
        return weights.to(self.device)

    def __repr__(self) -> str:
        more = "" if self.weights is None else ", weighted"
        if isinstance(self.fourier, OffResonance):
            more += f", off resonance in {len(self.fourier.segment_times)} segments"
        return (
            f"Encoding({len(self.maps)} coils, {self.in_shape} -> {self.out_shape}, {self.fourier.engine}, "
            f"normal by {self.normal_kind}{more})"
        )


def _count_negative(weights: Tensor) -> int:
    check_finite(weights, "weights")
    return int((weights < 0).sum())


def _check_maps(maps: Tensor) -> None:
    """Raise unless these are maps of one coil or more, all finite; coil by coil, so that little memory is needed."""
    check_tensor(maps, "maps")
    if maps.ndim != 4:
        hint = " For one coil, pass maps[None]; for one slice, maps[:, None]." if maps.ndim == 3 else ""
        raise ValueError(f"maps has shape {tuple(maps.shape)}, expected (coil, z, y, x).{hint}")
    check_complex(maps, "maps")
    if not len(maps):
        raise ValueError(f"maps has shape {tuple(maps.shape)}, expected at least one coil.")
    if not isinstance(maps, FakeTensor) and not all(torch.isfinite(coil).all() for coil in maps):
        check_finite(maps, "maps")
