"""Simulated receive coils: loops around the thorax, their field by Biot and Savart."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.polynomial import chebyshev
from numpy.typing import NDArray
from torch import Tensor

from blockkit.checks import Shape3, check_count, check_shape3

FOV_MM = (360.0, 270.0, 360.0)
"""Field of view of the simulated thorax in mm, (z, y, x) = head-foot, anterior-posterior, right-left."""

_N_NODES = (18, 18, 18)
_N_WIRES = 24
_SOFTENING_MM = 70.0
_COIL_CYLINDER_MM = (230.0, 280.0)  # semi-axes (y, x) of the elliptic cylinder that carries the loops

Array = NDArray[np.float64]


def simulate_maps(n_coils: int, image_shape: Sequence[int], *, seed: int = 0) -> Tensor:
    r"""Simulate the sensitivity maps of loops on an elliptic cylinder around the thorax.

    The sensitivity of loop :math:`c` is its transverse field :math:`B_x - i B_y`, with

    .. math:: B_c(p) = \oint \frac{dl \times (p - l)}{(|p - l|^2 + w^2)^{3/2}}, \qquad
              S_c = B_c \Big/ \sqrt{\textstyle\sum_d |B_d|^2},

    where ``w`` = 70 mm softens the field near the wire, so that the maps stay smooth in the corners of the field of
    view. They are a function of the position in mm, :math:`(i - n // 2)\,\mathrm{FOV} / n`, so one seed means the same
    coils on every grid.

    Parameters
    ----------
    n_coils
        Number of loops. One coil is a volume coil instead: magnitude 1, smooth phase.
    image_shape
        ``(z, y, x)``. An axis of length 1 is the plane through the center.
    seed
        Seed of the positions, sizes and phases of the loops.

    Returns
    -------
    Tensor
        Maps, complex64, shape ``(coil, z, y, x)``, no unit; the root of the sum of squares over the coils is 1.

    Raises
    ------
    ValueError
        If ``n_coils`` or a size is below 1, ``seed`` is negative, or ``image_shape`` has not three sizes.

    References
    ----------
    .. [1] Roemer et al., "The NMR phased array", MRM 16:192-225, 1990.

    Examples
    --------
    >>> maps = bk.simulate_maps(4, (16, 12, 16))
    >>> maps.shape, torch.allclose(maps.abs().square().sum(dim=0), torch.ones(16, 12, 16))
    (torch.Size([4, 16, 12, 16]), True)
    """
    n_coils, shape = check_count(n_coils, "n_coils"), check_shape3(image_shape)
    rng = np.random.default_rng([check_count(seed, "seed", 0), 0xC011])
    nodes = [0.5 * fov * chebyshev.chebpts1(n) for fov, n in zip(FOV_MM, _N_NODES, strict=True)]
    points = np.stack(np.meshgrid(*nodes, indexing="ij"), axis=-1).reshape(-1, 3)
    if n_coils == 1:
        return torch.exp(1j * _interpolate(_smooth_phase(points, rng)[None], shape).real).to(torch.complex64)
    fields = np.stack([_transverse_field(points, *loop) for loop in _place_loops(n_coils, rng)])
    maps = _interpolate(fields, shape)
    maps /= (maps.real.square().sum(dim=0) + maps.imag.square().sum(dim=0)).sqrt().clamp_min(1e-12)
    return maps


def _place_loops(n_coils: int, rng: np.random.Generator) -> list[tuple[Array, Array, complex]]:
    """Return for each loop the corners of its wire (wire, 3) in mm, the vector of each side, and its phase."""
    n_rows = 1 if n_coils < 6 else 2 if n_coils < 16 else 3
    loops = []
    for coil in range(n_coils):
        row, place = coil % n_rows, coil // n_rows
        n_in_row = len(range(row, n_coils, n_rows))
        angle = 2 * np.pi * (place + 0.5 * row + rng.uniform(-0.12, 0.12)) / n_in_row + 0.3
        half_height = (200.0, 120.0, 90.0)[n_rows - 1] * rng.uniform(0.9, 1.1)
        half_width = float(np.clip(500.0 / n_in_row, 80, 170)) * rng.uniform(0.9, 1.1)
        height = (row - (n_rows - 1) / 2) * 200.0 / max(n_rows - 1, 1) + rng.uniform(-12, 12)
        center = np.array([height, _COIL_CYLINDER_MM[0] * np.sin(angle), _COIL_CYLINDER_MM[1] * np.cos(angle)])
        tangent = np.array([0.0, np.cos(angle + rng.uniform(-0.1, 0.1)), -np.sin(angle)])
        turn = 2 * np.pi * np.arange(_N_WIRES + 1)[:, None] / _N_WIRES
        axis = np.array([1.0, 0.0, 0.0])
        across = tangent / np.linalg.norm(tangent)
        corners = center + half_height * np.cos(turn) * axis + half_width * np.sin(turn) * across
        loops.append((0.5 * (corners[1:] + corners[:-1]), np.diff(corners, axis=0), np.exp(2j * np.pi * rng.random())))
    return loops


def _transverse_field(points: Array, wires: Array, sides: Array, phase: complex) -> NDArray[np.complex128]:
    away = points[:, None] - wires
    field = np.cross(sides[None], away) / ((away**2).sum(axis=-1, keepdims=True) + _SOFTENING_MM**2) ** 1.5
    _, along_y, along_x = field.sum(axis=1).T
    result: NDArray[np.complex128] = phase * (along_x - 1j * along_y) * 1e3
    return result


def _smooth_phase(points: Array, rng: np.random.Generator) -> NDArray[np.complex128]:
    place = points / np.array(FOV_MM)
    slope, bend = rng.uniform(-1.5, 1.5, 3), rng.uniform(-1.0, 1.0, 3)
    phase: NDArray[np.complex128] = (rng.uniform(-3, 3) + place @ slope + place**2 @ bend).astype(np.complex128)
    return phase


def _interpolate(values: NDArray[np.complex128], shape: Shape3) -> Tensor:
    """Evaluate on a grid of ``shape`` the polynomial through ``values`` (coil, node) at the Chebyshev nodes."""
    result = torch.from_numpy(values.astype(np.complex64)).reshape(-1, *_N_NODES)
    for axis, (n, n_nodes) in enumerate(zip(shape, _N_NODES, strict=True), start=1):
        place = 2 * (np.arange(n) - n // 2) / n
        to_grid = chebyshev.chebvander(place, n_nodes - 1) @ np.linalg.inv(
            chebyshev.chebvander(chebyshev.chebpts1(n_nodes), n_nodes - 1)
        )
        result = torch.tensordot(result.movedim(axis, -1), torch.from_numpy(to_grid).to(result.dtype).T, dims=1)
        result = result.movedim(-1, axis)
    return result.contiguous()
