"""How well the vessels of a phantom's lungs can be seen in an image, and what part of those seen is not there."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import sato

from blockkit.data.centerlines import Centerlines
from blockkit.data.render import Floats
from blockkit.metrics import Image, check_pair

DIAMETERS = ((0.375, 0.75), (0.75, 1.5), (1.5, 3.0), (3.0, 6.0))
"""Classes of vessels, from and to: about 1/2, 1, 2 and 4 voxels in diameter."""

_SEEN = 2.0  # contrast of a visible vessel, in standard deviations of the background
_RING_GAP = 1.5  # from the wall of a vessel to the ring with which it is compared, in voxels
_N_ANGLES = 16


class VesselScore(NamedTuple):
    """How well one class of vessels can be seen.

    Attributes
    ----------
    diameters
        From and to, in voxels.
    length
        Length of centerline that was counted: what is visible in the reference, in voxels.
    cnr
        Mean contrast-to-noise ratio in the image along that length; NaN if it is 0.
    visible
        Part of that length that is visible in the image, 0 to 1; NaN if it is 0.
    """

    diameters: tuple[float, float]
    length: float
    cnr: float
    visible: float


def vessel_scores(
    image: Image, reference: Image, lines: Centerlines, *, diameters: Sequence[tuple[float, float]] = DIAMETERS
) -> list[VesselScore]:
    r"""Return how well vessels can be seen in ``image``, for each class of diameters.

    On magnitude, with cubic interpolation. The contrast at a point of a centerline is the value there minus the median
    on a ring around it, across the vessel and 1.5 voxels beyond its wall. The noise is the standard deviation over the
    background: voxels of lung more than a voxel away from the pleura and from the wall of any vessel of at least 3/4
    voxels in diameter, after a Gaussian mean of 3 voxels over the background is taken off. A point counts where its
    contrast in the reference is at least twice the noise of the reference. Of those, a point is visible in the image
    if its contrast there is at least half of that in the reference and at least twice the noise of the image. So in
    the reference all are visible.

    Parameters
    ----------
    image, reference
        Torch tensors or NumPy arrays, shape ``(z, y, x)``, complex or real, in the same unit.
    lines
        Of the same shape and person: :func:`~blockkit.data.centerlines.vessel_centerlines`.
    diameters
        Classes, each from and to, in voxels.

    Returns
    -------
    list of VesselScore
        One for each class.

    Raises
    ------
    ValueError
        If shapes differ, a value is NaN or infinite, or no voxel is background.
    """
    x, r = _check(image, reference, lines)
    background = background_mask(lines)
    noise, noise_of_reference = (_deviation(values, background) for values in (x, r))
    chosen = np.flatnonzero(2 * lines.radii >= min(low for low, _ in diameters))
    contrast, expected = (_contrast(values, lines, chosen) for values in (x, r))
    counted = (expected >= _SEEN * noise_of_reference) & (expected > 0)
    seen = (contrast >= 0.5 * expected) & (contrast >= _SEEN * noise)
    result = []
    for low, high in diameters:
        width = 2 * lines.radii[chosen]
        length = lines.lengths[chosen] * (counted & (width >= low) & (width < high))
        total = float(length.sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            cnr = float(np.float64((length * contrast).sum() / total) / noise) if total else float("nan")
        visible = float((length * seen).sum() / total) if total else float("nan")
        result.append(VesselScore((low, high), total, cnr, visible))
    return result


def invented_vessels(image: Image, reference: Image, lines: Centerlines) -> float:
    r"""Return which part of the vessels in ``image``, its bright ridges inside the lungs, ``reference`` does not have.

    On magnitude. The strength of a ridge is Sato's: :math:`\sqrt{\lambda_1 \lambda_2}` of the two most negative
    eigenvalues of the Hessian after a Gaussian of one voxel, 0 where one is positive. A voxel belongs to a vessel where
    the strength reaches half of its median over the centerlines that are visible in the reference
    (:func:`vessel_scores`). It is invented if it is at least twice as strong as the reference is in each of the 27
    voxels around. Only voxels more than a voxel away from the pleura count.

    Parameters
    ----------
    image, reference, lines
        As in :func:`vessel_scores`.

    Returns
    -------
    float
        Invented voxels over all voxels of vessels in the image, 0 to 1; 0 if ``image`` is the reference.

    Raises
    ------
    ValueError
        If shapes differ, a value is NaN or infinite, or the reference has no visible vessel.

    References
    ----------
    .. [1] Sato et al., "Three-dimensional multi-scale line filter for segmentation and visualization of curvilinear
       structures in medical images", Medical Image Analysis 2:143-168, 1998.
    """
    x, r = _check(image, reference, lines)
    ridges, true_ridges = _ridges(x), _ridges(r)
    wide = np.flatnonzero(2 * lines.radii >= DIAMETERS[0][0])
    visible = wide[_contrast(r, lines, wide) >= max(_SEEN * _deviation(r, background_mask(lines)), 1e-12)]
    if len(visible) == 0:
        raise ValueError("reference has no visible vessel in the lungs, so there is no ridge to compare with.")
    usual = float(np.median(ndimage.map_coordinates(true_ridges, lines.points[visible].T, order=1)))
    vessels = (ridges >= usual / 2) & ndimage.binary_erosion(lines.lungs)
    invented = vessels & (ridges >= 2 * ndimage.maximum_filter(true_ridges, 3))
    return float(invented.sum() / max(vessels.sum(), 1))


def background_mask(lines: Centerlines) -> NDArray[np.bool_]:
    """Return the voxels of lung away from the pleura and from all vessels of 3/4 voxels in diameter and more."""
    free: NDArray[np.bool_] = ndimage.binary_erosion(lines.lungs)
    low = DIAMETERS[1][0]
    while low <= 2 * float(lines.radii.max(initial=0)):
        high = 1.5 * low
        points = lines.points[(2 * lines.radii >= low) & (2 * lines.radii < high)]
        if len(points):
            marked = np.ones(lines.lungs.shape, bool)
            marked[tuple(np.rint(points).astype(int).T)] = False
            free &= ndimage.distance_transform_edt(marked) > high / 2 + 1
        low = high
    return free


def _ridges(values: Floats) -> Floats:
    result: Floats = sato(values, sigmas=[1.0], black_ridges=False, mode="nearest")  # type: ignore[no-untyped-call]
    return result


def _deviation(values: Floats, background: NDArray[np.bool_]) -> float:
    """Return the standard deviation over the background, without what varies slowly."""
    if not background.any():
        raise ValueError("no voxel of the lungs is background: the image is too coarse to tell vessels from lung.")
    weight = background.astype(np.float64)
    mean = ndimage.gaussian_filter(values * weight, 3) / np.maximum(ndimage.gaussian_filter(weight, 3), 1e-12)
    return float(np.sqrt(np.mean((values - mean)[background] ** 2)))


def _contrast(values: Floats, lines: Centerlines, chosen: NDArray[np.int64]) -> Floats:
    """Return the value at the chosen points minus the median on the rings around them."""
    points, along = lines.points[chosen], lines.directions[chosen]
    helper = np.eye(3)[np.abs(along).argmin(axis=1)]
    first = np.cross(along, helper)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(along, first)
    distance = (lines.radii[chosen] + _RING_GAP)[:, None]
    smooth = ndimage.spline_filter(values, order=3)
    turns = 2 * np.pi * np.arange(_N_ANGLES) / _N_ANGLES
    rings = [points + distance * (np.cos(turn) * first + np.sin(turn) * second) for turn in turns]
    at = [ndimage.map_coordinates(smooth, p.T, order=3, mode="nearest", prefilter=False) for p in (points, *rings)]
    result: Floats = at[0] - np.median(at[1:], axis=0)
    return result


def _check(image: Image, reference: Image, lines: Centerlines) -> tuple[Floats, Floats]:
    x, r = check_pair(image, reference)
    if r.shape != lines.lungs.shape:
        raise ValueError(
            f"reference has shape {r.shape} and the centerlines are those of {lines.lungs.shape}. "
            f"Write vessel_centerlines({r.shape}, seed=...)."
        )
    return x, r
