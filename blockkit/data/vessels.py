"""Branching trees that fill a space and obey Murray's law."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blockkit.data.render import Array, Floats, Grid, draw_tubes


@dataclass(frozen=True)
class Tree:
    """A rooted tree of vessels in mm.

    Attributes
    ----------
    nodes
        Where vessels end, shape ``(node, 3)``, columns z, y, x; node 0 is the root.
    parents
        The node in which the vessel to each node starts, shape ``(node,)``; the root has -1.
    radii
        Radius of the vessel that ends in each node, shape ``(node,)``.
    """

    nodes: Floats
    parents: NDArray[np.int64]
    radii: Floats

    def draw(self, cover: Array, grid: Grid) -> None:
        """Draw the vessels into ``cover``, along :meth:`curves`."""
        curve, radius = self.curves()
        draw_tubes(
            cover,
            grid,
            curve[:-1].reshape(-1, 3).astype(np.float32),
            curve[1:].reshape(-1, 3).astype(np.float32),
            np.tile(radius, len(curve) - 1).astype(np.float32),
        )

    def curves(self) -> tuple[Floats, Floats]:
        """Return the vessels as smooth curves, each of which leaves its parent in the parent's direction, and radii.

        Seven points on each curve, shape ``(7, vessel, 3)``, columns z, y, x, and the radii, ``(vessel,)``, all in mm.
        """
        child = np.flatnonzero(self.parents >= 0)
        start, end = self.nodes[self.parents[child]], self.nodes[child]
        length = np.linalg.norm(end - start, axis=1, keepdims=True)
        grand = self.parents[self.parents[child]]
        came = np.where((grand >= 0)[:, None], start - self.nodes[np.maximum(grand, 0)], end - start)
        came /= np.maximum(np.linalg.norm(came, axis=1, keepdims=True), 1e-9)
        bend = start + 0.45 * length * came
        t = np.linspace(0, 1, 7)[:, None, None]
        curve: Floats = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        return curve, self.radii[child]


def grow_tree(points: Floats, root: Floats, leaf_radius: float, rng: np.random.Generator) -> Tree:
    r"""Grow a tree from ``root`` that ends in every one of ``points``.

    Each tip owns a set of points. The set is cut in two across its longest direction, and the tip sends one branch
    part of the way to the center of each half, until one point is left. A vessel that feeds :math:`n` points has the
    radius :math:`r = r_\mathrm{leaf}\, n^{1/3}`, so that :math:`r_0^3 = r_1^3 + r_2^3` at each branching: Murray's law.

    Parameters
    ----------
    points
        Points to be fed in mm, shape ``(point, 3)``, at least one.
    root
        Where the tree begins in mm, shape ``(3,)``.
    leaf_radius
        Radius in mm of the thinnest vessels.
    rng
        Source of the asymmetry of the branchings.

    Returns
    -------
    Tree
        With ``2 * point`` nodes; node 1 is the end of the stem.

    References
    ----------
    .. [1] Murray, "The physiological principle of minimum work", PNAS 12:207-214, 1926.
    .. [2] Tawhai et al., "Generation of an anatomically based three-dimensional model of the conducting airways",
       Annals of Biomedical Engineering 28:793-802, 2000.
    """
    stem = root + 0.35 * (points.mean(axis=0) - root)
    nodes, parents, feeds = [root[None], stem[None]], [np.array([-1, 0])], [np.array([len(points)] * 2)]
    tips, tip_ids, group, n_nodes = stem[None], np.array([1]), np.zeros(len(points), np.int64), 2
    while len(points):
        group = _split(points, group, rng)
        # children of tip t are the groups 2 t and 2 t + 1; a tip whose set cannot be cut has only the first
        used, group, count = np.unique(group, return_inverse=True, return_counts=True)
        center = np.stack([np.bincount(group, points[:, i]) for i in range(3)], axis=1) / count[:, None]
        part = np.where(count == 1, 1.0, rng.uniform(0.33, 0.5, count.size))[:, None]
        ends = tips[used // 2] + part * (center - tips[used // 2])
        nodes.append(ends)
        parents.append(tip_ids[used // 2])
        feeds.append(count)
        tips, tip_ids = ends, n_nodes + np.arange(used.size)
        n_nodes += used.size
        more = count > 1
        keep = more[group]
        points, group = points[keep], (np.cumsum(more) - 1)[group[keep]]
        tips, tip_ids = tips[more], tip_ids[more]
    radii = leaf_radius * np.concatenate(feeds) ** (1 / 3)
    return Tree(np.concatenate(nodes), np.concatenate(parents), radii)


def _split(points: Floats, group: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Cut each group in two across its longest direction; return the new group of each point."""
    n = np.bincount(group)
    center = np.stack([np.bincount(group, points[:, i]) for i in range(3)], axis=1) / n[:, None]
    away = points - center[group]
    spread = np.empty((n.size, 3, 3))
    for i in range(3):
        for j in range(3):
            spread[:, i, j] = np.bincount(group, away[:, i] * away[:, j])
    longest = np.linalg.eigh(spread)[1][:, :, 2] + 0.25 * rng.normal(size=(n.size, 3))
    order = np.lexsort(((away * longest[group]).sum(axis=1), group))
    rank = np.empty(group.size, np.int64)
    rank[order] = np.arange(group.size) - np.repeat(np.cumsum(n) - n, n)
    n_first = np.clip(np.rint(n * rng.uniform(0.32, 0.68, n.size)), 1, np.maximum(n - 1, 1)).astype(np.int64)
    return 2 * group + (rank >= n_first[group])


def spread_points(n_points: int, low: Floats, high: Floats, rng: np.random.Generator) -> Floats:
    """Return evenly spread points in a box in mm: the additive recurrence of the plastic number's cubic cousin."""
    ratio = 1.2207440846057596  # the real root of r^4 = r + 1
    steps = ratio ** -np.arange(1.0, 4.0)
    result: Floats = low + (high - low) * ((rng.random(3) + np.arange(n_points)[:, None] * steps) % 1)
    return result
