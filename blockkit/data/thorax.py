"""The thorax as signed distances: where body, ribcage, lungs, heart and great vessels are, for one seed.

All coordinates are in mm around the middle of the chest: z towards the feet, y towards the back, x towards the
patient's left. Functions take ``(z, y, x)``, arrays that broadcast, and return a distance, negative inside.
"""

import numpy as np

from blockkit.data.render import Array, Floats, Line, Points, ellipsoid, smooth_max

# centerlines of the great vessels and airways: (z, y, x, radius) in mm
AORTA: Line = [
    (14, -20, 6, 14), (-20, -27, -12, 15), (-52, -23, -17, 14.5), (-76, -5, -4, 13.5), (-81, 16, 14, 13),
    (-62, 36, 26, 12.5), (-20, 43, 28, 12), (60, 45, 20, 11), (180, 46, 4, 9.5),
]  # fmt: skip
ARCH_BRANCHES: list[Line] = [
    [(-80, -8, -6, 6.5), (-110, -6, -18, 6), (-145, -2, -26, 5), (-182, -2, -30, 4.5)],
    [(-82, 2, 6, 4.5), (-120, 4, 18, 4), (-182, 0, 28, 4)],
    [(-80, 14, 14, 5.5), (-112, 18, 24, 5.5), (-130, 10, 48, 5), (-128, 0, 96, 4.5)],
    [(-112, -6, -19, 5), (-130, 4, -46, 5), (-128, 0, -96, 4.5)],
]
PULMONARY_TRUNK: Line = [(16, -42, 10, 13), (-14, -38, 17, 13.5), (-36, -20, 16, 13)]
PULMONARY_ARTERIES: dict[int, Line] = {
    -1: [(-34, -20, 15, 11), (-38, -4, -8, 10.5), (-36, 3, -28, 10), (-33, 6, -42, 9)],
    1: [(-34, -20, 15, 11), (-47, 2, 26, 10.5), (-46, 14, 36, 10), (-41, 18, 46, 9)],
}
PULMONARY_VEINS: dict[tuple[int, int], Line] = {
    (-1, 0): [(4, 14, -14, 8), (-4, 6, -32, 7.5), (-12, 0, -46, 7)],
    (-1, 1): [(12, 18, -14, 8), (17, 22, -32, 7.5), (20, 26, -46, 7)],
    (1, 0): [(2, 14, 24, 8), (-8, 6, 38, 7.5), (-16, 0, 50, 7)],
    (1, 1): [(10, 20, 24, 8), (14, 25, 38, 7.5), (18, 28, 48, 7)],
}
SVC: Line = [(-106, -12, -36, 8.5), (-70, -6, -39, 9.5), (-30, -4, -38, 10), (14, -8, -34, 11)]
IVC: Line = [(34, -4, -30, 11), (60, 4, -27, 11), (100, 14, -23, 10.5), (180, 22, -20, 10)]
UPPER_VEINS: list[Line] = [
    [(-112, -8, -122, 4.5), (-124, -20, -92, 5.5), (-132, -28, -62, 6), (-120, -22, -43, 7), (-100, -11, -36, 8)],
    [
        (-112, -10, 122, 4.5),
        (-124, -22, 92, 5.5),
        (-130, -30, 60, 6),
        (-116, -34, 22, 6.5),
        (-102, -26, -14, 7),
        (-92, -12, -34, 7.5),
    ],
    [(-182, -2, -40, 5.5), (-150, -10, -44, 5.5), (-122, -23, -44, 6)],
    [(-182, -2, 40, 5), (-152, -12, 44, 5), (-128, -29, 52, 6)],
]
TRACHEA: Line = [(-182, 4, 0, 8.5), (-110, 16, 1, 8.5), (-50, 25, 2, 8.5)]
BRONCHI: dict[int, Line] = {
    -1: [(-52, 25, 1, 7), (-40, 21, -22, 6.5), (-30, 18, -42, 5.5)],
    1: [(-52, 25, 3, 6.5), (-37, 22, 26, 6), (-25, 19, 46, 5)],
}
ESOPHAGUS: Line = [(-182, 24, 3, 6), (-60, 42, 6, 6), (20, 40, 10, 6), (80, 34, 22, 6)]


class Thorax:
    """One person's thorax: sizes, posture and a smooth deformation drawn from a seed."""

    def __init__(self, rng: np.random.Generator) -> None:
        turn = np.radians(rng.normal(0, [2.0, 2.0, 2.5])).clip(-0.09, 0.09)
        skew = np.array([[0, -turn[2], turn[1]], [turn[2], 0, -turn[0]], [-turn[1], turn[0], 0]])
        self._linear = (np.eye(3) + skew) / rng.uniform([0.94, 0.93, 0.92], [1.07, 1.06, 1.03])[:, None]
        self._shift = rng.uniform(-6, 6, 3)
        self._waves = 2 * np.pi * rng.normal(size=(5, 3)) / rng.uniform(150, 300, (5, 1))
        self._waves_phase, self._waves_size = rng.uniform(0, 2 * np.pi, 5), rng.uniform(-2.2, 2.2, (5, 3))
        self.cage_semi_axes = (float(rng.uniform(182, 196)), float(rng.uniform(82, 92)), float(rng.uniform(120, 132)))
        self.fat, self.muscle = float(rng.uniform(5, 15)), float(rng.uniform(8, 13))
        self.dome = {-1: float(rng.uniform(42, 62)), 1: float(rng.uniform(54, 74))}
        self.has_breasts = bool(rng.random() < 0.5)
        self.breast = float(rng.uniform(18, 30))

    def warp(self, points: Points) -> Points:
        """Take positions in the scanner to positions in the standard chest."""
        z, y, x = points
        warped = [
            m[0] * z + m[1] * y + m[2] * x + s
            for m, s in zip(self._linear.astype(np.float32), self._shift.astype(np.float32), strict=True)
        ]
        for (kz, ky, kx), phase, size in zip(
            self._waves.astype(np.float32),
            self._waves_phase.astype(np.float32),
            self._waves_size.astype(np.float32),
            strict=True,
        ):
            plane = kz * z + ky * y + phase
            wave = np.cos(plane) * np.cos(kx * x) - np.sin(plane) * np.sin(kx * x)
            for axis in range(3):
                warped[axis] += size[axis] * wave
        return warped[0], warped[1], warped[2]

    def unwarp(self, nodes: Floats) -> Floats:
        """Take positions (point, 3) in the standard chest to the scanner: the inverse of :meth:`warp`."""
        found = nodes.astype(np.float64)
        for _ in range(12):
            found = found + nodes - np.stack(self.warp((found[:, 0], found[:, 1], found[:, 2])), axis=1)
        return found

    def body(self, points: Points) -> Array:
        """Distance to the skin: a rounded box that narrows to the neck, with breasts in half of the seeds."""
        z, y, x = points
        neck = np.clip((-z - 92) / 88, 0, 1)
        neck = neck * neck * (3 - 2 * neck)
        _, cage_y, cage_x = self.cage_semi_axes
        wall = self.fat + self.muscle + 8
        semi_x = cage_x + wall + neck * (84 - cage_x - wall)
        semi_y = cage_y + wall + 5 + neck * (70 - cage_y - wall - 5)
        skin = _superellipse(x / semi_x, (y - 5) / semi_y, semi_x, semi_y)
        for side in (-1, 1) if self.has_breasts else ():
            breast = ellipsoid(points, (18, -cage_y - 14, side * 62), (44, self.breast, 46))
            skin = -smooth_max(-skin, -breast, 16)
        return skin

    def cage(self, points: Points) -> Array:
        """Distance to the inner side of the ribcage: a bullet, with its tip at the top of the lungs."""
        z, y, x = points
        height, cage_y, cage_x = self.cage_semi_axes
        t = np.maximum(60 - z, 0) / height
        shrink = 1 - 0.3 * t * t
        return _superellipse(x / (cage_x * shrink), y / (cage_y * shrink), cage_x * shrink, cage_y * shrink, t, height)

    def diaphragm(self, points: Points, side: int) -> Array:
        """Distance below the dome of the diaphragm on the right (-1) or left (1) side; negative above it."""
        z, y, x = points
        u, v = (x - side * 62) / 78, (y + 12) / 68
        q = u * u + 1.2 * v * v
        dome = self.dome[side] + 58 * q / (1 + 0.32 * q)
        result: Array = ((z - dome) * np.float32(0.72)).astype(np.float32)
        return result

    def spine(self, points: Points) -> Array:
        """Distance to the column of the vertebral bodies."""
        z, y, x = points
        result: Array = (np.sqrt((x / 20) ** 2 + ((y - spine_y(z)) / 17) ** 2 + 1e-6) - 1) * 17
        return result

    def heart(self, points: Points) -> Array:
        """Distance to the pericardium."""
        return ellipsoid(points, (36, -20, 17), (47, 45, 60))

    def lung(self, points: Points, side: int) -> Array:
        """Distance to the pleura of the right (-1) or left (1) lung."""
        z, _, x = points
        upper = np.clip((-z - 10) / 60, 0, 1)
        medial = 13 + 14 * upper - side * x
        inside = smooth_max(self.cage(points), medial.astype(np.float32), 14)
        inside = smooth_max(inside, self.diaphragm(points, side), 8)
        inside = smooth_max(inside, 4 - self.spine(points), 10)
        return smooth_max(inside, 3 - self.heart(points), 10)

    def ribs(self) -> tuple[Array, Array]:
        """Return starts and ends (piece, 3) of the pieces of ten pairs of ribs, in the standard chest."""
        height, cage_y, cage_x = self.cage_semi_axes
        turn = np.radians(np.linspace(14, 152, 25))
        lines = []
        for z0 in -118 + 23.5 * np.arange(10):
            z = z0 + 62 * (turn / np.pi) ** 1.2
            t = np.clip((60 - z) / height, 0, 0.97)
            shrink = (1 - 0.3 * t * t) * (1 - t**2.5) ** 0.4
            y = (cage_y * shrink + 5) * np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** 0.8
            x = (cage_x * shrink + 5) * np.abs(np.sin(turn)) ** 0.8
            lines += [np.stack([z, y, side * x], axis=1) for side in (-1, 1)]
        both = np.stack(lines)
        starts, ends = both[:, :-1].reshape(-1, 3), both[:, 1:].reshape(-1, 3)
        return self.unwarp(starts).astype(np.float32), self.unwarp(ends).astype(np.float32)


def spine_y(z: Array) -> Array:
    """Return where the vertebral bodies are, front to back, in mm: the thoracic curve."""
    result: Array = 64 + 10 * np.cos((z + 10) / 95)
    return result


def _superellipse(
    u: Array, v: Array, semi_u: Array, semi_v: Array, t: Array | None = None, semi_t: float = 1.0
) -> Array:
    """First-order distance to :math:`|u|^{2.5} + |v|^{2.5} + |t|^{2.5} = 1`, with u, v, t in units of the semi-axes."""
    u, v = np.abs(u), np.abs(v)
    u15, v15 = u * np.sqrt(u), v * np.sqrt(v)
    total, slope = u * u15 + v * v15, (u15 / semi_u) ** 2 + (v15 / semi_v) ** 2
    if t is not None:
        t15 = t * np.sqrt(t)
        total, slope = total + t * t15, slope + (t15 / semi_t) ** 2
    root = np.maximum(total, 1e-6) ** np.float32(0.4)
    # the gradient of N = total^(2/5) is N^(-3/2) (u^1.5 / a, ...)
    distance: Array = ((root - 1) * root * np.sqrt(root) / np.sqrt(np.maximum(slope, 1e-12))).astype(np.float32)
    return np.maximum(distance, -200)
