"""Image metrics on magnitude images: NRMSE, PSNR and SSIM against a reference."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.metrics import structural_similarity
from torch import Tensor

Image = Tensor | NDArray[Any]
Magnitude = NDArray[np.float64]
_HALF = {torch.bfloat16: torch.float32, torch.complex32: torch.complex64}  # of what NumPy lacks, what holds it


def nrmse(image: Image, reference: Image, *, mask: Image | None = None) -> float:
    r"""Return the normalized root-mean-square error :math:`\||x| - |r|\|_2 / \|r\|_2`.

    On magnitude, as :func:`psnr` and :func:`ssim` are: a global phase does not count. Nothing is rescaled.

    Parameters
    ----------
    image, reference
        Torch tensors or NumPy arrays of one shape, usually ``(z, y, x)``, complex or real, in the same unit.
    mask
        Boolean, same shape: both norms are taken over its True voxels only.

    Returns
    -------
    float
        No unit; 0 for equal images, 1 for an image of zeros.

    Raises
    ------
    ValueError
        If shapes differ, a value is NaN or infinite, or the reference is all zero (within the mask).
    TypeError
        If the mask is not boolean.

    Examples
    --------
    >>> round(bk.nrmse(1.1 * scan.reference, scan.reference), 3)
    0.1
    """
    x, r, inside = _prepare(image, reference, mask)
    if inside is not None:
        x, r = x[inside], r[inside]
    if not r.any():
        raise ValueError("reference is all zero inside the mask, so the error relative to it has no meaning.")
    return float(np.linalg.norm(x - r) / np.linalg.norm(r))


def psnr(image: Image, reference: Image, *, mask: Image | None = None) -> float:
    r"""Return the peak signal-to-noise ratio :math:`10 \log_{10}(p^2 / \mathrm{MSE})` in dB.

    On magnitude; the peak :math:`p = \max|r|` is that of the whole reference, with or without a mask. Nothing is
    rescaled.

    Parameters
    ----------
    image, reference
        Torch tensors or NumPy arrays of one shape, usually ``(z, y, x)``, complex or real, in the same unit.
    mask
        Boolean, same shape: the mean squared error is taken over its True voxels only.

    Returns
    -------
    float
        In dB; infinite for equal images.

    Raises
    ------
    ValueError
        If shapes differ, a value is NaN or infinite, or the reference is all zero.
    TypeError
        If the mask is not boolean.

    Examples
    --------
    >>> reference = torch.ones(8, 6, 8)
    >>> round(bk.psnr(0.9 * reference, reference), 1)
    20.0
    """
    x, r, inside = _prepare(image, reference, mask)
    difference = x - r if inside is None else (x - r)[inside]
    rms = float(np.sqrt(np.mean(difference**2)))
    return float(20 * np.log10(r.max() / rms)) if rms > 0 else float("inf")


def ssim(image: Image, reference: Image, *, mask: Image | None = None) -> float:
    r"""Return the mean structural similarity, in a uniform cubic window over all axes.

    On magnitude; the data range is :math:`\max|r|` of the whole reference. The window has 7 voxels an axis, or the
    largest odd number that fits the shortest axis. An axis of 1 or 2 voxels has no window along it: its slices are
    compared one by one. Without a mask the mean leaves out the rim where the window would leave the volume; with a
    mask it is the mean of the SSIM map over the mask's True voxels.

    Parameters
    ----------
    image, reference
        Torch tensors or NumPy arrays of one shape, usually ``(z, y, x)``, complex or real, in the same unit.
    mask
        Boolean, same shape.

    Returns
    -------
    float
        No unit; 1 for equal images.

    Raises
    ------
    ValueError
        If shapes differ, a value is NaN or infinite, the reference is all zero, or every axis has fewer than 3 voxels.
    TypeError
        If the mask is not boolean.

    References
    ----------
    .. [1] Wang et al., "Image quality assessment: from error visibility to structural similarity",
       IEEE Trans. Image Process. 13:600-612, 2004.

    Examples
    --------
    >>> noise = torch.randn(16, 12, 16, generator=torch.Generator().manual_seed(0))
    >>> round(bk.ssim(scan.reference, scan.reference), 3)
    1.0
    >>> bk.ssim(scan.reference + noise, scan.reference) < 0.5
    True
    """
    x, r, inside = _prepare(image, reference, mask)
    wide = [axis for axis, n in enumerate(r.shape) if n >= 3]
    if not wide:
        raise ValueError(f"reference has shape {r.shape}: ssim needs at least one axis of 3 voxels or more.")
    side = min(7, *(r.shape[axis] for axis in wide))
    mean, similarity = structural_similarity(  # type: ignore[no-untyped-call]
        _slices_last(x, wide),
        _slices_last(r, wide),
        win_size=side if side % 2 else side - 1,
        data_range=r.max(),
        channel_axis=-1,
        full=True,
    )
    return float(mean if inside is None else similarity[_slices_last(inside, wide)].mean())


def _slices_last(array: NDArray[Any], wide: list[int]) -> NDArray[Any]:
    front = np.moveaxis(array, wide, range(len(wide)))
    return front.reshape(*front.shape[: len(wide)], -1)


def check_pair(image: Image, reference: Image) -> tuple[Magnitude, Magnitude]:
    """Return the magnitudes of two images of one shape, or raise if they cannot be compared."""
    for value, name in ((image, "image"), (reference, "reference")):
        if value is None:
            hint = " This scan has no image to compare with." if name == "reference" else ""
            raise TypeError(f"{name} is None, expected a tensor or an array.{hint}")
    x, r = _magnitude(image, "image"), _magnitude(reference, "reference")
    if x.shape != r.shape:
        hint = " Pass image[0] to drop the leading axis." if x.shape == (1, *r.shape) else ""
        raise ValueError(f"image has shape {x.shape}, expected the reference's shape {r.shape}.{hint}")
    if not r.any():
        raise ValueError("reference is all zero, so there is nothing to compare with. Are image and reference swapped?")
    return x, r


def _prepare(
    image: Image, reference: Image, mask: Image | None
) -> tuple[Magnitude, Magnitude, NDArray[np.bool_] | None]:
    x, r = check_pair(image, reference)
    return x, r, None if mask is None else _check_mask(mask, r.shape)


def _check_mask(mask: Image, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    inside = _numpy(mask)
    if inside.dtype != np.bool_:
        raise TypeError(f"mask has dtype {inside.dtype}, expected bool. Write mask > 0.")
    if inside.shape != shape:
        raise ValueError(f"mask has shape {inside.shape}, expected the image's shape {shape}.")
    if not inside.any():
        raise ValueError("mask has no True voxel, so there is nothing to average over.")
    return inside


def _magnitude(value: Image, name: str) -> Magnitude:
    array = _numpy(value)
    wide = array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
    if wide.size == 0:
        raise ValueError(f"{name} has shape {wide.shape}, expected at least one voxel.")
    bad = int(np.count_nonzero(~np.isfinite(wide)))
    if bad:
        raise ValueError(f"{name} has {bad} values that are NaN or infinite. Expected finite numbers.")
    magnitude: Magnitude = np.abs(wide)
    return magnitude


def _numpy(value: Image) -> NDArray[Any]:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        if value.dtype in _HALF:
            value = value.to(_HALF[value.dtype])
        array: NDArray[Any] = value.resolve_conj().resolve_neg().numpy()
        return array
    return np.asarray(value)
