"""Draw smooth shapes on a voxel grid with partial volume: soft edges, and thin tubes that keep their signal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blockkit.checks import Shape3
from blockkit.physics.coils import FOV_MM

Array = NDArray[Any]
Floats = NDArray[np.float64]
Complex = NDArray[np.complex64]
Points = tuple[Array, Array, Array]
"""Coordinates z, y, x in mm: three arrays that broadcast against each other."""

Row = Sequence[float] | Floats
"""Three numbers in the order z, y, x."""

Line = Sequence[tuple[float, float, float, float]]
"""Points of a vessel's centerline: z, y, x, radius, in mm."""

_RENDER_MM = 4.0
_MOST_SUBVOXELS = 12


@dataclass(frozen=True)
class Grid:
    """A voxel grid in mm around the center of the field of view; voxel ``n // 2`` is at 0 mm."""

    z: Array
    y: Array
    x: Array
    step: tuple[float, float, float]

    @property
    def shape(self) -> Shape3:
        """Voxels per axis (z, y, x)."""
        return self.z.size, self.y.size, self.x.size

    @property
    def points(self) -> Points:
        """The coordinates, shaped to broadcast to the grid."""
        return self.z[:, None, None], self.y[None, :, None], self.x[None, None, :]

    @property
    def voxel(self) -> float:
        """Edge in mm of a cube with the volume of a voxel."""
        return float(np.prod(self.step) ** (1 / 3))


def voxel_size_mm(shape: Shape3) -> tuple[float, float, float]:
    """Return the voxel size (z, y, x) in mm; an axis of length 1 is a slice as thick as the finest other axis."""
    thinnest = min((fov / n for fov, n in zip(FOV_MM, shape, strict=True) if n > 1), default=_RENDER_MM)
    z, y, x = (fov / n if n > 1 else thinnest for fov, n in zip(FOV_MM, shape, strict=True))
    return z, y, x


def make_grid(shape: Shape3) -> tuple[Grid, Shape3]:
    """Return a grid of about 4 mm or finer, near isotropic, and the subvoxels per voxel that :func:`pool` averages."""
    size = voxel_size_mm(shape)
    target = min(_RENDER_MM, min(size))
    factors = [min(_MOST_SUBVOXELS, max(1, round(h / target))) for h in size]
    axes = []
    for n, h, factor in zip(shape, size, factors, strict=True):
        corner = (np.arange(n * factor) + 0.5) / factor - 0.5
        axes.append(((corner - n // 2) * h).astype(np.float32))
    step = (size[0] / factors[0], size[1] / factors[1], size[2] / factors[2])
    return Grid(axes[0], axes[1], axes[2], step), (factors[0], factors[1], factors[2])


def pool(values: Complex, factors: Shape3) -> Complex:
    """Average blocks of ``factors`` subvoxels."""
    if factors == (1, 1, 1):
        return values
    (nz, ny, nx), (fz, fy, fx) = values.shape, factors
    blocks = values.reshape(nz // fz, fz, ny // fy, fy, nx // fx, fx)
    result: Complex = blocks.mean(axis=(1, 3, 5), dtype=values.dtype)
    return result


def cover(distance: Array, width: float) -> Array:
    """Return the part of each voxel inside a surface, from the signed distance in mm, negative inside."""
    part: Array = np.clip(0.5 - distance / np.float32(width), 0, 1, dtype=np.float32)
    return part


def smooth_max(a: Array, b: Array, width: float) -> Array:
    """Intersect two signed distances with a rounded edge of ``width`` mm."""
    blend = np.maximum(np.float32(width) - np.abs(a - b), 0)
    result: Array = np.maximum(a, b) + blend * blend * np.float32(0.25 / width)
    return result


def ellipsoid(points: Points, center: Row, semi_axes: Row) -> Array:
    """Return the first-order signed distance in mm to an ellipsoid along the axes."""
    scaled = [(p - np.float32(c)) / np.float32(a) for p, c, a in zip(points, center, semi_axes, strict=True)]
    radius = np.sqrt(scaled[0] ** 2 + scaled[1] ** 2 + scaled[2] ** 2)
    slopes = [s / np.float32(a) for s, a in zip(scaled, semi_axes, strict=True)]
    slope = np.sqrt(slopes[0] ** 2 + slopes[1] ** 2 + slopes[2] ** 2)
    result: Array = np.where(radius > 1e-3, radius * (radius - 1) / np.maximum(slope, 1e-6), -min(semi_axes))
    return result.astype(np.float32)


def random_waves(grid: Grid, rng: np.random.Generator, n_waves: int, wavelength: tuple[float, float]) -> Array:
    """Return a smooth random field of unit variance: waves of random direction and phase, wavelengths in mm."""
    directions = rng.normal(size=(n_waves, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    length = np.exp(rng.uniform(np.log(wavelength[0]), np.log(wavelength[1]), size=(n_waves, 1)))
    wave_vectors, phases = 2 * np.pi * directions / length, rng.uniform(0, 2 * np.pi, n_waves)
    total = np.zeros(grid.shape, np.float32)
    for (kz, ky, kx), phase in zip(wave_vectors, phases, strict=True):
        plane = np.exp(1j * (kz * grid.z[:, None] + ky * grid.y[None, :] + phase)).astype(np.complex64)[..., None]
        total += plane.real * np.cos(kx * grid.x).astype(np.float32) - plane.imag * np.sin(kx * grid.x).astype(
            np.float32
        )
    return total * np.float32(np.sqrt(2 / n_waves))


def draw_tubes(cover: Array, grid: Grid, start: Array, end: Array, radius: Array) -> None:
    r"""Draw straight tubes with round ends into ``cover`` (z, y, x), keeping the larger value where they meet.

    Across a tube of radius :math:`r` the edge is a ramp as wide as a voxel :math:`h`, placed at
    :math:`R^2 = r^2 - h^2/12`, so that the area under the profile is :math:`\pi r^2`. Below :math:`r = h/\sqrt 3` the
    profile keeps its shape and its height falls as :math:`3 r^2 / h^2`: thin tubes fade, and never vanish or jump.

    Parameters
    ----------
    cover
        Part of each voxel that is inside, float32, changed in place.
    grid
        The grid of ``cover``.
    start, end
        Ends of the tubes in mm, shape ``(tube, 3)``, columns z, y, x.
    radius
        Radii in mm, shape ``(tube,)``.
    """
    h, step = grid.voxel, np.array(grid.step)
    origin = np.array([grid.z[0], grid.y[0], grid.x[0]])
    pieces = _cut(start, end, radius, h)
    middle = np.rint((0.5 * (pieces[0] + pieces[1]) - origin) / step).astype(np.int64)
    edge = np.sqrt(np.maximum(pieces[2] ** 2 - h * h / 12, h * h / 4))
    reach = edge[:, None] + h / 2 + 0.5 * np.abs(pieces[1] - pieces[0])
    half = np.floor(reach / step + 0.5).astype(np.int64)
    near = ((middle + half >= 0) & (middle - half < np.array(grid.shape))).all(axis=1)
    half = np.minimum(half, np.array(grid.shape))
    keys, group = np.unique(half, axis=0, return_inverse=True)
    for index, key in enumerate(keys):
        chosen = np.flatnonzero((group.ravel() == index) & near)
        per_chunk = max(1, 2_000_000 // int(np.prod(2 * key + 1)))
        for first in range(0, chosen.size, per_chunk):
            part = chosen[first : first + per_chunk]
            _stamp(cover, grid, (pieces[0][part], pieces[1][part], pieces[2][part]), middle[part], key)


def _cut(start: Array, end: Array, radius: Array, h: float) -> tuple[Array, Array, Array]:
    """Cut tubes into pieces about as long as they are thick."""
    length = np.linalg.norm(end - start, axis=1)
    n_pieces = np.maximum(1, np.ceil(length / np.maximum(1.2 * h, radius))).astype(np.int64)
    tube = np.repeat(np.arange(length.size), n_pieces)
    order = np.arange(tube.size) - np.repeat(np.cumsum(n_pieces) - n_pieces, n_pieces)
    along = ((end - start) / n_pieces[:, None])[tube]
    first = start[tube] + order[:, None] * along
    return first.astype(np.float32), (first + along).astype(np.float32), radius[tube].astype(np.float32)


def _stamp(cover: Array, grid: Grid, pieces: Points, middle: NDArray[np.int64], half: NDArray[np.int64]) -> None:
    start, end, radius = pieces
    h, step = np.float32(grid.voxel), np.array(grid.step, np.float32)
    origin = np.array([grid.z[0], grid.y[0], grid.x[0]], np.float32)
    side = end - start
    length = np.sqrt((side**2).sum(axis=1))
    unit = side / np.maximum(length, 1e-6)[:, None]
    squared, along, flat, inside = [], [], [], []
    strides = (grid.shape[1] * grid.shape[2], grid.shape[2], 1)
    for axis in range(3):
        place = middle[:, axis, None] + np.arange(-half[axis], half[axis] + 1)
        away = place.astype(np.float32) * step[axis] + (origin - start)[:, axis, None]
        lift = (slice(None), *(slice(None) if other == axis else None for other in range(3)))
        squared.append((away**2)[lift])
        along.append((away * unit[:, axis, None])[lift])
        flat.append((place * strides[axis])[lift])
        inside.append(((place >= 0) & (place < grid.shape[axis]))[lift])
    ahead = along[0] + along[1] + along[2]
    nearest = np.clip(ahead, 0, length[:, None, None, None])
    distance = np.sqrt(np.maximum(squared[0] + squared[1] + squared[2] - nearest * (2 * ahead - nearest), 0))
    edge = np.sqrt(np.maximum(radius**2 - h * h / 12, h * h / 4))
    height = np.minimum(1, 3 * radius**2 / h**2)
    value = np.clip(0.5 + (edge[:, None, None, None] - distance) / h, 0, 1) * height[:, None, None, None]
    drawn = (value > 0) & (inside[0] & inside[1] & inside[2])
    np.maximum.at(cover.reshape(-1), (flat[0] + flat[1] + flat[2])[drawn], value[drawn])
