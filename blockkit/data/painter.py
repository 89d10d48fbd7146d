"""A painter who lays organ over organ, with the partial volume of each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from blockkit.data.render import Array, Floats, Grid, Line, Points, Row, cover, draw_tubes, ellipsoid, random_waves
from blockkit.data.thorax import Thorax


class Painter:
    """Paints organ over organ: ``image <- (1 - c) image + c value``, with ``c`` the covered part of each voxel.

    Parameters
    ----------
    grid
        Where to paint.
    thorax
        Takes positions on the grid to the standard chest, in which shapes are given, and back.
    curve_rng, wave_rng
        Sources of the small bends of the vessels, and of the textures.
    """

    def __init__(
        self, grid: Grid, thorax: Thorax, curve_rng: np.random.Generator, wave_rng: np.random.Generator
    ) -> None:
        self.grid, self.thorax, self.curve_rng = grid, thorax, curve_rng
        self.p: Points = thorax.warp(grid.points)
        self.image: Array = np.zeros(grid.shape, np.float32)
        self.fine = random_waves(grid, wave_rng, 24, (14.0, 45.0))
        self.coarse = random_waves(grid, wave_rng, 8, (60.0, 160.0))

    def put(self, part: Array, value: Array | float, where: tuple[Any, ...] = (...,)) -> None:
        """Lay ``value`` over the image where ``part`` of the voxel is covered."""
        view = self.image[where]
        view += part * (value - view)

    def blob(self, center: Row, semi_axes: Row, value: float, spin: Floats | None = None) -> None:
        """Paint one ellipsoid, in its own box; ``spin`` has the directions of its axes as rows."""
        middle = self.thorax.unwarp(np.array([center], np.float64))[0]
        reach = 1.25 * max(semi_axes) + 12
        box = tuple(
            slice(int(np.searchsorted(axis, m - reach)), int(np.searchsorted(axis, m + reach)))
            for axis, m in zip((self.grid.z, self.grid.y, self.grid.x), middle, strict=True)
        )
        z, y, x = (np.float32(1) * p[box] for p in self.p)
        if z.size == 0:
            return
        if spin is not None:
            away = (z - center[0], y - center[1], x - center[2])
            z, y, x = (a * away[0] + b * away[1] + c * away[2] for a, b, c in spin.astype(np.float32))
            center = (0, 0, 0)
        texture = np.float32(value) * (1 + np.float32(0.04) * self.fine[box])
        self.put(cover(ellipsoid((z, y, x), center, semi_axes), self.grid.voxel), texture, box)

    def tubes(self, lines: Sequence[Line]) -> Array:
        """Draw smooth curves through points (z, y, x, radius) of the standard chest; return their cover."""
        return self.draw(self.curves(lines))

    def curves(self, lines: Sequence[Line]) -> list[Floats]:
        """Bend lines a little, smooth them, and take them to the scanner: each (point, 4), z, y, x and radius."""
        curves = []
        for line in lines:
            points = np.array(line, np.float64)
            points[1:-1, :3] += self.curve_rng.normal(0, 2.0, (len(line) - 2, 3)).clip(-4, 4)
            points[:, 3] *= self.curve_rng.uniform(0.92, 1.06)
            curve = _smooth_curve(points)
            curves.append(np.concatenate([self.thorax.unwarp(curve[:, :3]), curve[:, 3:]], axis=1))
        return curves

    def draw(self, curves: Sequence[Floats], wall: float = 0.0) -> Array:
        """Return the cover of tubes along ``curves``, ``wall`` mm thicker than they say."""
        part = np.zeros(self.grid.shape, np.float32)
        for curve in curves:
            nodes = curve.astype(np.float32)
            draw_tubes(part, self.grid, nodes[:-1, :3], nodes[1:, :3], nodes[:-1, 3] + np.float32(wall))
        return part


def columns(spots: Floats) -> Points:
    """Return points (point, 3) as three arrays z, y, x."""
    return spots[:, 0], spots[:, 1], spots[:, 2]


def make_axes(first: Sequence[float], second: Sequence[float]) -> Floats:
    """Return three orthonormal rows (z, y, x): along ``first``, near ``second``, and across both."""
    a = np.array(first, np.float64) / np.linalg.norm(first)
    b = np.array(second, np.float64) - np.dot(second, a) * a
    b /= np.linalg.norm(b)
    return np.stack([a, b, np.cross(a, b)])


def _smooth_curve(points: Floats, n_between: int = 6) -> Floats:
    """Return a Catmull-Rom curve through rows of ``points``."""
    padded = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = np.linspace(0, 1, n_between, endpoint=False)[None, :, None]
    a, b, c, d = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    curve = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    result: Floats = np.concatenate([curve.reshape(-1, points.shape[1]), points[-1:]])
    return result
