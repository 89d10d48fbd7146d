"""The NUFFT of spins that precess off resonance, by time segmentation: each segment is one more NUFFT."""

import math
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import qr, solve_triangular
from scipy.ndimage import maximum_filter1d
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from blockkit.checks import check_finite, check_number, check_tensor
from blockkit.ledger import few_for_all
from blockkit.physics.fourier import NUFFT
from blockkit.physics.inputs import check_coils
from blockkit.physics.linop import LinearOperator, apply_linear

_SHARE = 0.1  # of the NUFFT's tolerance, that the segments may add
_FINEST = 1e-12  # what double precision leaves of it
_MOST_TURNS = 200.0
_NODES_A_TURN = 16
_CHUNK = 2**16  # times whose interpolators are made together

Array = NDArray[np.float64]
Complex = NDArray[np.complex128]


class OffResonance(LinearOperator):
    r"""Sample an image whose voxels precess at their own frequencies while k-space is read out.

    .. math:: y_s = \frac{1}{\sqrt{N}} \sum_r x_r\, e^{-2\pi i\,k_s \cdot r / n}\, e^{-2\pi i f_r t_s}
              \approx \sum_l c_l(t_s)\, F_s \left[ e^{-2\pi i f_r \tau_l}\, x_r \right]

    with f in Hz and t in seconds: the sign is that of the Fourier exponent, so if the map counts frequencies the other
    way round, pass its negative. The phase of each voxel is put together from its phase at a few times
    :math:`\tau_l`, the segments. These are picked among the times of the scan by a pivoted QR factorization, where they
    say most about all others, so that few are needed, and fewer still if the frequencies are few (water and fat). The
    interpolators c fit the histogram of the frequencies best in the least-squares sense; half of the weight is spread
    evenly, so that rare frequencies are not given up. There are as many segments as it takes for the phase factor of
    every frequency at every time to be right to a tenth of the tolerance: about one for each turn by which the
    frequencies drift apart during the readout, and ten more for a tolerance of 1e-4.

    Segments and coils pass one after another: the memory does not grow with their number, apart from a small table
    of c at each different time. The adjoint is the conjugate transpose to rounding, and ``normal`` is adjoint after
    forward. Cost: one NUFFT for each segment and coil.

    Parameters
    ----------
    fourier
        The NUFFT of the trajectory.
    field_map
        Off-resonance frequency of each voxel, real, shape ``(z, y, x)``, in Hz. Where there is no signal a map is
        noise: set it to 0 there, or segments are spent on it.
    times
        When each sample is read out, real, shape ``(sample,)``, or ``(n_readout,)`` if all readouts are alike, in
        seconds from the moment when all spins are in phase (the excitation, or the spin echo).
    tolerance
        Largest error of the phase factor, 1e-12 to 0.1; None: a tenth of that of ``fourier``, so that the tolerance of
        ``fourier`` bounds the relative error (2-norm) of the whole. Segments grow with its logarithm.

    Attributes
    ----------
    segment_times : Tensor
        The times :math:`\tau_l`, shape ``(segment,)``, in seconds.

    Raises
    ------
    ValueError
        If a shape does not fit, a value is not finite, or the frequencies drift apart by more than 200 turns.
    TypeError
        If a dtype does not fit, or ``fourier`` is no NUFFT.

    References
    ----------
    .. [1] Sutton, Noll and Fessler, "Fast, iterative image reconstruction for MRI in the presence of field
       inhomogeneities", IEEE Trans. Med. Imaging 22:178-188, 2003, doi:10.1109/TMI.2002.808360.
    .. [2] Fessler, Lee, Olafsson, Shi and Noll, "Toeplitz-based iterative image reconstruction for MRI with correction
       for magnetic field inhomogeneity", IEEE Trans. Signal Process. 53:3393-3402, 2005, doi:10.1109/TSP.2005.853152.
    .. [3] Cheng, Gimbutas, Martinsson and Rokhlin, "On the compression of low rank matrices", SIAM J. Sci. Comput.
       26:1389-1404, 2005, doi:10.1137/030602678: the choice of columns by pivoted QR.

    Examples
    --------
    >>> F = bk.NUFFT(bk.radial_3d(20, 32, (16, 12, 16)), (16, 12, 16))
    >>> field_map = torch.linspace(-50, 50, 16).expand(16, 12, 16)  # Hz
    >>> times = torch.linspace(0, 5e-3, 32)  # s
    >>> bk.OffResonance(F, field_map, times)(torch.ones(16, 12, 16, dtype=torch.complex64)).shape
    torch.Size([640])
    """

    def __init__(self, fourier: NUFFT, field_map: Tensor, times: Tensor, *, tolerance: float | None = None) -> None:
        if not isinstance(fourier, NUFFT):
            raise TypeError(f"fourier is a {type(fourier).__name__}, expected a NUFFT: NUFFT(trajectory, image_shape).")
        self.fourier = fourier
        self.in_shape, self.out_shape = fourier.in_shape, fourier.out_shape
        self.field_map = _check_field_map(field_map, self.in_shape).to(fourier.device)
        times = _check_times(times, self.out_shape[0])
        allowed = (
            max(_SHARE * fourier.tolerance, _FINEST) if tolerance is None else check_number(tolerance, "tolerance")
        )
        if not _FINEST <= allowed <= 0.1:
            raise ValueError(f"tolerance is {tolerance}, expected a relative error from 1e-12 to 0.1, such as 1e-5.")
        if isinstance(field_map, FakeTensor) or isinstance(times, FakeTensor):  # of which nothing can be read
            segments, table, index = (times.new_zeros(3).double(), times.new_zeros(3, 1).double(), times.int())
        else:
            segments, table, index = _segment(self.field_map, times, allowed)
        self.segment_times = segments.to(fourier.device)
        self._interpolators = table.to(fourier.device, torch.complex128)
        self._time_index = index.to(fourier.device).repeat(self.out_shape[0] // len(index))

    @property
    def trajectory(self) -> Tensor:
        """Sample positions, shape ``(sample, 3)``, cycles/FOV."""
        return self.fourier.trajectory

    @property
    def engine(self) -> str:
        """The name of the NUFFT's engine."""
        return self.fourier.engine

    @property
    def tolerance(self) -> float:
        """That of the NUFFT."""
        return self.fourier.tolerance

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {len(self.segment_times)} segments, engine={self.engine!r})"

    def forward(self, x: Tensor) -> Tensor:
        """Sample an image: (z, y, x) to (sample,), or (coil, z, y, x) to (coil, sample), complex."""
        check_coils(x, self.in_shape, "image", self.device)
        return apply_linear(x, self._forward, self._adjoint)

    def adjoint(self, y: Tensor) -> Tensor:
        """Apply the conjugate transpose: (sample,) to (z, y, x), or (coil, sample) to (coil, z, y, x), complex."""
        check_coils(y, self.out_shape, "kspace", self.device)
        return apply_linear(y, self._adjoint, self._forward)

    def forget_plans(self) -> None:
        """Free the engine's plans and tables; the next use makes them again."""
        self.fourier.forget_plans()

    def _forward(self, x: Tensor) -> Tensor:
        y = x.new_zeros(*x.shape[:-3], *self.out_shape)
        for segment in few_for_all(range(len(self.segment_times)), x):
            y += self.fourier.forward(x * self._phase(segment, x)).mul_(self._weights(segment, x))
        return y

    def _adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(*y.shape[:-1], *self.in_shape)
        for segment in few_for_all(range(len(self.segment_times)), y):
            x += self.fourier.adjoint(y * self._weights(segment, y).conj()).mul_(self._phase(segment, y).conj())
        return x

    def _phase(self, segment: int, like: Tensor) -> Tensor:
        """Return the phase factor of each voxel at the segment's time, shape ``(z, y, x)``."""
        turns = (self.field_map.double() * self.segment_times[segment]).frac_().to(like.dtype.to_real())
        turns *= -2 * math.pi
        return torch.polar(torch.ones_like(turns), turns)

    def _weights(self, segment: int, like: Tensor) -> Tensor:
        """Return the interpolator of the segment at each sample's time, shape ``(sample,)``."""
        return self._interpolators[segment].to(like.dtype).index_select(0, self._time_index)


def _segment(field_map: Tensor, times: Tensor, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the segments' times, the interpolators (segment, different time), and which time each sample has."""
    different, index = torch.unique(times.detach().double().cpu(), return_inverse=True)
    nodes, share = _histogram(field_map, float(different[-1] - different[0]))
    t: Array = different.numpy()
    weights = np.sqrt(0.5 * share + 0.5 / len(nodes))[:, None]
    n_turns = (nodes[-1] - nodes[0]) * (t[-1] - t[0])
    n_candidates = max(128, math.ceil(8 * n_turns))
    candidates = t if len(t) <= n_candidates else np.linspace(t[0], t[-1], n_candidates)
    Q, R, order = qr(weights * _phasors(nodes, candidates), mode="economic", pivoting=True)
    n_segments = _count_segments(Q, nodes, weights, candidates, tolerance)
    Q, R = Q[:, :n_segments], R[:n_segments, :n_segments]
    table = np.empty((n_segments, len(t)), dtype=np.complex128)
    for first in range(0, len(t), _CHUNK):
        some = slice(first, first + _CHUNK)
        table[:, some] = solve_triangular(R, Q.conj().T @ (weights * _phasors(nodes, t[some])))
    return torch.from_numpy(candidates[order[:n_segments]]), torch.from_numpy(table), index.int()


def _count_segments(Q: Complex, nodes: Array, weights: Array, times: Array, tolerance: float) -> int:
    """Return how many columns of Q it takes until no phase factor is off by more than ``tolerance``."""
    rest = weights * _phasors(nodes, times)
    for n_segments, column in enumerate(Q.T, start=1):
        rest -= np.outer(column, column.conj() @ rest)
        if float(np.abs(rest / weights).max()) <= tolerance:
            return n_segments
    return cast(int, Q.shape[1])


def _histogram(field_map: Tensor, duration: float) -> tuple[Array, Array]:
    """Return a fine grid of the frequencies that occur, in Hz, and the share of the voxels that have each.

    Half a turn around each frequency counts as if it occurred, so that between two of the grid all is well too.
    """
    lowest, highest = (float(f) for f in torch.aminmax(field_map))
    n_turns = (highest - lowest) * duration
    if n_turns > _MOST_TURNS:
        raise ValueError(
            f"field_map goes from {lowest:g} to {highest:g} Hz and times over {duration:g} s: spins would drift apart "
            f"by {n_turns:.0f} turns, expected at most {_MOST_TURNS:.0f}. Is the field map in Hz (not rad/s or ppm), "
            "and are the times in seconds? Set the field map to 0 where there is no signal."
        )
    n_nodes = max(256, math.ceil(_NODES_A_TURN * n_turns)) if n_turns > 0 else 1
    place = (field_map.double() - lowest) * ((n_nodes - 1) / (highest - lowest or 1.0))
    counts = torch.bincount(place.round_().long().flatten(), minlength=n_nodes).double().cpu().numpy()
    around = 2 * math.ceil(0.5 * n_nodes / n_turns) + 1 if n_turns > 0 else 1
    occurs = maximum_filter1d(counts, min(around, 2 * n_nodes - 1), mode="constant") > 0
    return np.linspace(lowest, highest, n_nodes)[occurs], counts[occurs] / counts.sum()


def _phasors(frequencies: Array, times: Array) -> Complex:
    """Return the phase factors, shape (frequency, time)."""
    phasors: Complex = np.exp(-2j * np.pi * np.outer(frequencies, times))
    return phasors


def _check_field_map(field_map: Tensor, image_shape: tuple[int, ...]) -> Tensor:
    check_tensor(field_map, "field_map")
    if tuple(field_map.shape) != image_shape:
        hint = " One axis is missing: if that is z, pass field_map[None]." if field_map.ndim == 2 else ""
        raise ValueError(f"field_map has shape {tuple(field_map.shape)}, expected (z, y, x) = {image_shape}.{hint}")
    _check_real(field_map, "field_map")
    return field_map.detach()


def _check_times(times: Tensor, n_samples: int) -> Tensor:
    check_tensor(times, "times")
    if times.ndim != 1 or not len(times) or n_samples % len(times):
        raise ValueError(
            f"times has shape {tuple(times.shape)}, expected (sample,) = ({n_samples},), or those of one readout, "
            "(n_readout,), if all are alike."
        )
    _check_real(times, "times")
    return times.detach()


def _check_real(value: Tensor, name: str) -> None:
    if not value.is_floating_point():
        hint = f"{name}.real" if value.is_complex() else f"{name}.float()"
        raise TypeError(f"{name} has dtype {value.dtype}, expected real floating point. Pass {hint}.")
    if not isinstance(value, FakeTensor):
        check_finite(value, name)
