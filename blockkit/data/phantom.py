"""A procedural thorax for pulmonary MR angiography: every seed is another person."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blockkit.checks import check_count, check_shape3
from blockkit.data import thorax as chest
from blockkit.data.painter import Painter, columns, make_axes
from blockkit.data.render import (
    Array,
    Complex,
    Floats,
    Grid,
    cover,
    draw_tubes,
    ellipsoid,
    make_grid,
    pool,
    smooth_max,
)
from blockkit.data.thorax import Thorax
from blockkit.data.vessels import Tree, grow_tree, spread_points


def pulmonary_phantom(image_shape: Sequence[int], *, seed: int = 0) -> Tensor:
    """Make a contrast-enhanced thorax with lungs, heart, great vessels and pulmonary arterial and venous trees.

    The anatomy is defined in mm and does not know the grid: one seed on two grids is the same person. The field of
    view is 360 x 270 x 360 mm; voxels are as large as ``image_shape`` makes them, and voxel ``n // 2`` is the center.
    Every surface and every vessel is drawn with partial volume. Seeds differ in size, posture, shape of the organs,
    vessel trees, timing of the contrast agent, textures and phase; some have a nodule, an embolus or a poorly perfused
    region.

    Parameters
    ----------
    image_shape
        ``(z, y, x)``. z runs from head to feet, y from front to back, x from the patient's right to left. An axis of
        length 1 is one slice through the center, as thick as the finest other axis.
    seed
        Which person.

    Returns
    -------
    Tensor
        Complex64, shape ``(z, y, x)``, magnitude about 0 to 1 (arbitrary unit), smooth phase.

    Raises
    ------
    ValueError
        If ``image_shape`` is not three whole numbers of at least 1, or ``seed`` is negative.

    References
    ----------
    .. [1] Tawhai et al., "Generation of an anatomically based three-dimensional model of the conducting airways",
       Annals of Biomedical Engineering 28:793-802, 2000 (how the trees fill the lungs).

    Examples
    --------
    >>> volume = bk.pulmonary_phantom((24, 18, 24), seed=1)
    >>> volume.shape, volume.dtype
    (torch.Size([24, 18, 24]), torch.complex64)
    """
    grid, factors = make_grid(check_shape3(image_shape))
    person = Person(grid, check_count(seed, "seed", 0))
    person.paint_body()
    person.paint_bones()
    person.paint_abdomen()
    person.paint_lungs()
    person.paint_heart()
    person.paint_great_vessels()
    return torch.from_numpy(pool(person.finish(), factors))


class Person(Painter):
    """Paints one person from the skin inwards.

    Parameters
    ----------
    grid
        Where to paint.
    seed
        Which person.
    """

    def __init__(self, grid: Grid, seed: int) -> None:
        streams = np.random.SeedSequence([seed, 0x7409A]).spawn(6)
        self.rng, self.tree_rng, wave_rng, self.lesion_rng, self.phase_rng, person_rng = map(
            np.random.default_rng, streams
        )
        super().__init__(grid, Thorax(person_rng), self.tree_rng, wave_rng)
        self.blood = self._choose_contrast()

    def _choose_contrast(self) -> dict[str, float]:
        """Draw how much agent has reached each part of the circulation: an early or a late bolus."""
        late = self.rng.random()
        artery = self.rng.uniform(0.82, 1.0)
        return {
            "artery": artery,
            "vein": artery * (0.6 + 0.35 * late) * self.rng.uniform(0.92, 1.05),
            "right heart": artery * self.rng.uniform(0.85, 1.0) * (1.0 - 0.15 * late),
            "left heart": artery * (0.55 + 0.38 * late),
            "aorta": artery * (0.42 + 0.5 * late),
            "svc": self.rng.uniform(0.7, 1.0),
            "ivc": self.rng.uniform(0.3, 0.6) + 0.15 * late,
            "liver vein": self.rng.uniform(0.3, 0.4) + 0.2 * late,
        }

    def paint_body(self) -> None:
        """Skin, fat, muscle, and the inside of the ribcage."""
        h = self.grid.voxel
        skin = self.thorax.body(self.p)
        self.cage = self.thorax.cage(self.p)
        fat_value, muscle_value = self.rng.uniform(0.22, 0.42), self.rng.uniform(0.13, 0.2)
        self.fat = np.float32(fat_value) * (1 + np.float32(0.06) * self.fine)
        self.muscle = np.float32(muscle_value) * (1 + np.float32(0.1) * self.fine + np.float32(0.05) * self.coarse)
        self.body = cover(skin, h)
        self.put(self.body, 0.8 * fat_value)
        self.put(cover(skin + 2.5, h), self.fat)
        thickness = self.thorax.fat * (1 + 0.35 * np.tanh(self.coarse)) + 2.5
        self.put(cover(smooth_max(skin + thickness, self.cage - self.thorax.muscle - 14, 6), h), self.muscle)
        self.put(cover(self.cage - 3, h), self.fat * np.float32(0.8))
        for side in (-1, 1):
            y = float(chest.spine_y(np.array(0.0, np.float32)))
            _, py, x = self.p
            back = np.sqrt(((x - side * 27) / 21) ** 2 + ((py - y - 30) / 15) ** 2 + 1e-6) - 1
            self.put(cover(smooth_max(back * 15, skin + 8, 4), h), self.muscle * np.float32(1.05))

    def paint_bones(self) -> None:
        """Ribs, spine with its canal, breastbone and shoulder blades."""
        h, z = self.grid.voxel, self.p[0]
        marrow = self.rng.uniform(0.18, 0.28)
        starts, ends = self.thorax.ribs()
        for radius, value in ((5.0, 0.1), (2.8, marrow)):
            part = np.zeros(self.grid.shape, np.float32)
            draw_tubes(part, self.grid, starts, ends, np.full(len(starts), radius, np.float32))
            self.put(part, value)
        spine = self.thorax.spine(self.p)
        disc = np.float32(0.5) + np.float32(0.5) * np.cos(z * np.float32(2 * np.pi / 26))
        self.put(cover(spine, h), 0.1)
        self.put(cover(spine + 2, h), marrow - (marrow - 0.14) * disc**6)
        y, x = self.p[1] - chest.spine_y(z), self.p[2]
        canal = np.sqrt(x**2 + (y - 27) ** 2)
        arch = np.sqrt((x / 7) ** 2 + ((y - 44) / 14) ** 2 + 1e-6) * 7 - 7 * (0.35 + 0.65 * disc)
        self.put(cover(arch, h), 0.8 * marrow)
        self.put(cover(canal - 11, h), 0.09)
        self.put(cover(canal - 8.5, h), 0.13)
        self.put(cover(canal - 5, h), 0.25)
        cage_y = self.thorax.cage_semi_axes[1]
        self.blob((-20, -cage_y - 3, 0), (70, 6, 17), 0.1)
        self.blob((-20, -cage_y - 3, 0), (67, 3.6, 14), marrow)
        for side in (-1, 1):
            spin = make_axes((0.97, 0.1, 0.2 * side), (0.0, 0.55, -0.83 * side))
            self.blob((-72, 72, side * 92), (52, 30, 4), 0.12, spin)
            self.blob((-72, 72, side * 92), (48, 27, 2), marrow, spin)

    def paint_abdomen(self) -> None:
        """Liver with its veins, stomach, spleen, and fat between them."""
        h = self.grid.voxel
        below = {side: smooth_max(-self.thorax.diaphragm(self.p, side) + 2.5, self.cage + 2.5, 8) for side in (-1, 1)}
        z, _, x = self.p
        liver = smooth_max(below[-1], (x * np.float32(0.8) + (z - 60) * np.float32(0.5) - 34), 14)
        liver = smooth_max(liver, 6 - self.thorax.spine(self.p), 10)
        value = np.float32(self.rng.uniform(0.2, 0.31)) * (1 + np.float32(0.05) * self.fine)
        self.put(cover(np.minimum(below[-1], below[1]), h), self.fat * np.float32(1.1))
        stomach = self.rng.uniform(0.05, 0.2)
        top = self.thorax.dome[1]
        self.blob((top + 44, -22, 58), (34, 32, 38), 0.22)
        self.blob((top + 44, -22, 58), (31, 29, 35), stomach)
        self.blob((top + 48, 48, 84), (38, 26, 18), self.rng.uniform(0.35, 0.6))
        self.put(cover(liver, h), value)
        low, high = np.array([40.0, -70.0, -115.0]), np.array([178.0, 75.0, 30.0])
        root = np.array([66.0, 4.0, -28.0])
        spots = spread_points(170, low, high, self.tree_rng)
        inside = self.thorax.diaphragm(columns(spots), -1) > 8
        spots = spots[inside & (self.thorax.cage(columns(spots)) < -8)]
        tree = grow_tree(spots, root, 0.95, self.tree_rng)
        part = np.zeros(self.grid.shape, np.float32)
        Tree(self.thorax.unwarp(tree.nodes), tree.parents, tree.radii).draw(part, self.grid)
        self.put(part * cover(liver, h), self.blood["liver vein"])

    def paint_lungs(self) -> None:
        """Lung tissue, the arteries, veins and airways in it, and lesions."""
        h, rng = self.grid.voxel, self.rng
        depth = self.p[1] / np.float32(90)
        tissue = np.float32(rng.uniform(0.05, 0.11)) * (1 + np.float32(rng.uniform(0.1, 0.45)) * depth)
        tissue = tissue * (1 + np.float32(0.2) * self.fine + np.float32(0.12) * self.coarse)
        if self.lesion_rng.random() < 0.25:
            place, size = self.lesion_rng.uniform([-60, -60, -110], [80, 60, 110]), self.lesion_rng.uniform(28, 55, 3)
            tissue = tissue * (1 - np.float32(0.6) * cover(ellipsoid(self.p, place, size), 14.0))
        self.artery_trees: dict[int, Tree] = {}
        self.vessel_trees: list[Tree] = []
        arteries, veins = (np.zeros(self.grid.shape, np.float32) for _ in range(2))
        open_part, dark = np.zeros(self.grid.shape, np.float32), np.zeros(self.grid.shape, np.float32)
        for side in (-1, 1):
            lung = cover(self.thorax.lung(self.p, side), h)
            self.put(lung, tissue)
            root = np.array(chest.PULMONARY_ARTERIES[side][-1][:3])
            hilum = ellipsoid(self.p, (-14, 10, side * 38), (46, 32, 20))
            open_part = np.maximum(open_part, np.maximum(lung, cover(hilum, 12.0)))
            self._grow_lung(side, root, arteries, veins, dark)
        arteries, veins, dark = arteries * open_part, veins * open_part, dark * open_part
        shade = 1 + np.float32(0.03) * self.fine
        self._paint_lesions()
        self.put(dark, 0.02)
        self.put(veins, np.float32(self.blood["vein"]) * shade)
        self.put(arteries, np.float32(self.blood["artery"]) * shade)
        for side in (-1, 1):
            self._block_artery(side, arteries)

    def _grow_lung(self, side: int, root: Floats, arteries: Array, veins: Array, dark: Array) -> None:
        rng, person = self.tree_rng, self.thorax
        n_tips = int(rng.uniform(2300, 3600))
        low, high = np.array([-145.0, -98.0, 0.0]), np.array([135.0, 98.0, 140.0])
        for part, roots in (
            (arteries, [root]),
            (veins, [np.array(chest.PULMONARY_VEINS[side, lower][-1][:3]) for lower in (0, 1)]),
            (dark, [np.array(chest.BRONCHI[side][-1][:3])]),
        ):
            spots = spread_points(n_tips if part is not dark else 150, low, high, rng) * np.array([1, 1, side])
            spots = spots[person.lung(columns(spots), side) < -3]
            lower = (spots[:, 0] - 0.5 * spots[:, 1] > 0).astype(int) if len(roots) == 2 else np.zeros(len(spots), int)
            thinnest = rng.uniform(0.86, 1.04) if part is not dark else 1.3
            for index, start in enumerate(roots):
                mine = spots[lower == index]
                if len(mine) == 0:
                    continue
                tree = grow_tree(mine, start, thinnest, rng)
                tree = Tree(person.unwarp(tree.nodes), tree.parents, tree.radii)
                tree.draw(part, self.grid)
                if part is not dark:
                    self.vessel_trees.append(tree)
                if part is arteries:
                    self.artery_trees[side] = tree

    def _paint_lesions(self) -> None:
        """Nodules in a third of the persons."""
        rng = self.lesion_rng
        for _ in range(int(rng.integers(1, 4)) if rng.random() < 0.35 else 0):
            side = int(rng.choice([-1, 1]))
            spots = rng.uniform([-110, -80, 30], [90, 80, 120], (40, 3)) * np.array([1, 1, side])
            deep = spots[self.thorax.lung(columns(spots), side) < -14]
            if len(deep):
                semi_axes = rng.uniform(3.5, 11) * rng.uniform(0.8, 1.2, 3)
                self.blob(deep[0], semi_axes, rng.uniform(0.25, 0.55))

    def _block_artery(self, side: int, arteries: Array) -> None:
        """Leave a clot in one branch of the arteries in an eighth of the lungs."""
        tree, rng = self.artery_trees[side], self.lesion_rng
        wide = np.flatnonzero((tree.radii > 2.6) & (tree.radii < 6.5) & (tree.parents > 0))
        if rng.random() < 0.125 and len(wide):
            node = int(rng.choice(wide))
            ends = tree.nodes[[tree.parents[node], node]].astype(np.float32)
            clot = np.zeros(self.grid.shape, np.float32)
            draw_tubes(clot, self.grid, ends[:1], ends[1:], np.array([0.8 * tree.radii[node]], np.float32))
            self.put(clot * arteries, 0.22)

    def paint_heart(self) -> None:
        """Pericardial fat, muscle and the four chambers."""
        blood, rng = self.blood, self.rng
        h = self.grid.voxel
        self.put(cover(self.thorax.heart(self.p) + 1, h), self.fat * np.float32(0.75))
        wall = rng.uniform(0.22, 0.32)
        tilt = rng.normal(0, 0.06, 3)
        left = make_axes((0.5 + tilt[0], -0.5 + tilt[1], 0.7 + tilt[2]), (0.7, 0.7, 0.0))
        size = rng.uniform(0.9, 1.06)
        right = make_axes((0.9, 0.2, -0.35), (0.0, 0.9, 0.35))
        self.blob((30, -40, 2), (25 * size, 22 * size, 40 * size), wall, right)
        self.blob((30, -40, 2), (22 * size, 19 * size, 37 * size), blood["right heart"], right)
        self.blob((24, -14, -30), (29 * size, 22 * size, 19 * size), blood["right heart"] * 0.97)
        self.blob((38, -18, 42), (46 * size, 31 * size, 29 * size), wall, left)
        self.blob((35, -15, 38), (37 * size, 19 * size, 17.5 * size), blood["left heart"], left)
        self.blob((8, 14, 6), (17 * size, 16 * size, 27 * size), 0.5 * (blood["left heart"] + blood["vein"]))

    def paint_great_vessels(self) -> None:
        """Aorta, venae cavae, pulmonary trunk and veins, airways and esophagus."""
        blood, shade = self.blood, 1 + np.float32(0.03) * self.fine
        self.put(self.tubes([chest.ESOPHAGUS]), 0.24)
        upper = self.tubes([*chest.UPPER_VEINS, chest.SVC])
        self.put(upper, np.float32(blood["svc"]) * shade)
        self.put(self.tubes([chest.IVC]), np.float32(blood["ivc"]) * shade)
        veins = self.tubes(list(chest.PULMONARY_VEINS.values()))
        self.put(veins, np.float32(blood["vein"]) * shade)
        lungs = self.tubes([chest.PULMONARY_TRUNK, *chest.PULMONARY_ARTERIES.values()])
        self.put(lungs, np.float32(blood["artery"]) * shade)
        airways = self.curves([chest.TRACHEA, *chest.BRONCHI.values()])
        self.put(self.draw(airways, 2.0), 0.2)
        self.put(self.draw(airways), 0.01)
        self.put(self.tubes([chest.AORTA, *chest.ARCH_BRANCHES]), np.float32(blood["aorta"]) * shade)

    def finish(self) -> Complex:
        """Shade by slab profile and transmit field, and give the image its phase."""
        rng, (z, y, x) = self.phase_rng, self.grid.points
        edge = np.clip((178 - np.abs(z)) / 26, 0, 1)
        shade = edge * edge * (3 - 2 * edge) * (1 + 0.06 * np.tanh(self.coarse))
        slope, bend = rng.uniform(-1.2, 1.2, 3), rng.uniform(-1.0, 1.0, 3)
        phase = np.float32(0.25) * self.coarse
        for s, b, p in zip(slope.astype(np.float32), bend.astype(np.float32), (z, y, x), strict=True):
            phase = phase + (s + b * (p / 180)) * (p / 180)
        phase = phase + np.float32(rng.uniform(-3, 3))
        place, width = rng.uniform([20, -50, -60], [90, 50, 60]), rng.uniform(24, 40)
        away = ((z - place[0]) ** 2 + (y - place[1]) ** 2 + (x - place[2]) ** 2) / np.float32(2 * width**2)
        phase = phase + np.float32(rng.uniform(-1.2, 1.2)) * np.exp(-away)
        magnitude = self.image * shade * self.body
        result: Complex = (magnitude * (np.cos(phase) + 1j * np.sin(phase))).astype(np.complex64)
        return result
