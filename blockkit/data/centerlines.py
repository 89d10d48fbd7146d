"""Where the vessels of a phantom's lungs are: the truth that metrics of vessels compare with."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blockkit.checks import check_count, check_shape3
from blockkit.data.phantom import Person
from blockkit.data.render import Floats, make_grid, voxel_size_mm


@dataclass(frozen=True, eq=False)
class Centerlines:
    """Centerlines of the arteries and veins inside the lungs, as points, and the lungs themselves.

    Attributes
    ----------
    points
        Shape ``(point, 3)``, columns z, y, x, in voxels: voxel ``(i, j, k)`` has its center at ``(i, j, k)``.
    directions
        Direction of the vessel in each point, unit vectors in voxels, shape ``(point, 3)``.
    radii, lengths
        Radius of the vessel and length of centerline that each point stands for, in voxels, shape ``(point,)``. A
        voxel of unequal sides counts as a cube of the same volume in the radius.
    lungs
        Which voxels have their center inside the lungs, vessels included; bool, shape ``(z, y, x)``.
    voxel_size
        ``(z, y, x)`` in mm.
    """

    points: Floats
    directions: Floats
    radii: Floats
    lengths: Floats
    lungs: NDArray[np.bool_]
    voxel_size: tuple[float, float, float]


def vessel_centerlines(image_shape: Sequence[int], *, seed: int = 0) -> Centerlines:
    """Return the centerlines of the vessels that :func:`pulmonary_phantom` draws in the lungs of a seed.

    Where another organ or a lesion lies over a vessel, or a clot is in it, its centerline is here all the same.

    Parameters
    ----------
    image_shape
        ``(z, y, x)`` of the image in whose voxels the centerlines are given; it has the phantom's field of view.
    seed
        Which person.

    Returns
    -------
    Centerlines
        One point for each of the six straight parts of which a vessel is drawn, in its middle.

    Raises
    ------
    ValueError
        If ``image_shape`` is not three whole numbers of at least 1, or ``seed`` is negative.
    """
    shape = check_shape3(image_shape)
    person = Person(make_grid((1, 1, 1))[0], check_count(seed, "seed", 0))  # the anatomy does not know the grid
    for paint in (person.paint_body, person.paint_bones, person.paint_abdomen, person.paint_lungs):
        paint()
    curves = [tree.curves() for tree in person.vessel_trees]
    start = np.concatenate([curve[:-1].reshape(-1, 3) for curve, _ in curves])
    end = np.concatenate([curve[1:].reshape(-1, 3) for curve, _ in curves])
    radii = np.concatenate([np.tile(radius, len(curve) - 1) for curve, radius in curves])
    size = np.array(voxel_size_mm(shape))
    middle = 0.5 * (start + end)
    points = middle / size + np.array(shape) // 2
    within = ((points > -0.5) & (points < np.array(shape) - 0.5)).all(axis=1) & (_lung_depth(person, middle.T) < 0)
    along = (end - start) / size
    lengths = np.linalg.norm(along, axis=1)
    keep = within & (lengths > 1e-6)
    grid = [(np.arange(n) - n // 2) * h for n, h in zip(shape, size, strict=True)]
    return Centerlines(
        points[keep],
        along[keep] / lengths[keep, None],
        radii[keep] / size.prod() ** (1 / 3),
        lengths[keep],
        _lung_depth(person, np.meshgrid(*grid, indexing="ij", sparse=True)) < 0,
        voxel_size_mm(shape),
    )


def _lung_depth(person: Person, points: Sequence[Floats] | Floats) -> Floats:
    """Return the distance to the nearest pleura in mm, negative inside, at places z, y, x in the scanner."""
    z, y, x = (np.asarray(p, np.float32) for p in points)
    place = person.thorax.warp((z, y, x))
    result: Floats = np.minimum(person.thorax.lung(place, -1), person.thorax.lung(place, 1))
    return result
