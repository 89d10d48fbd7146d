"""ESPIRiT: coil sensitivities as eigenvectors of an operator that the center of k-space defines."""

from collections.abc import Sequence

import torch
from torch import Tensor

from blockkit.checks import Shape3


def espirit(
    calibration: Tensor, nodes: Shape3, *, kernel_width: int = 6, threshold: float = 0.02
) -> tuple[Tensor, Tensor]:
    r"""Return the coils' relative sensitivities at each node of a coarse grid over the field of view.

    Every window of the k-space of all coils lies in a space of few dimensions, spanned by the leading left singular
    vectors U of the matrix of all windows in the calibration region. Projecting each window onto it and averaging is a
    convolution in k-space, so at each position r of the image it is a small matrix,

    .. math:: G(r) = \tfrac1K\, g(r) g(r)^H, \qquad g_{cm}(r) = \sum_a U_{ca,m}\, e^{2\pi i\, a \cdot r},

    with K window positions a. The image's coil values at r are proportional to S(r) and unchanged by G, so S(r) is its
    eigenvector with eigenvalue 1. G is a trigonometric polynomial of degree ``kernel_width - 1``: known at twice as
    many points along each axis it is known everywhere, and evaluated where it is wanted.

    Parameters
    ----------
    calibration
        K-space on integer cycles/FOV, complex, shape ``(coil, z, y, x)``, k = 0 at index ``n // 2``, any unit.
    nodes
        ``(z, y, x)``: how many positions along each axis; index i of n lies at ``(i - n // 2) / n``.
    kernel_width
        Width of the window in samples, or the calibration's along an axis that is shorter.
    threshold
        Singular vectors are kept whose value is above this fraction of the largest, and above what noise has [2]_: if
        all were kept, every vector would be an eigenvector.

    Returns
    -------
    tuple
        Eigenvectors of length 1 and arbitrary phase, ``(coil, z, y, x)``, dtype of ``calibration``, and their
        eigenvalues, real, ``(z, y, x)``: 1 where there is signal that the kernels explain, less elsewhere.

    References
    ----------
    .. [1] Uecker et al., "ESPIRiT - an eigenvalue approach to autocalibrating parallel MRI: where SENSE meets GRAPPA",
       MRM 71:990-1001, 2014, doi:10.1002/mrm.24751.
    .. [2] Gavish and Donoho, "The optimal hard threshold for singular values is 4/sqrt(3)", IEEE Trans. Inf. Theory
       60:5040-5053, 2014, doi:10.1109/TIT.2014.2323359.
    """
    kernels = _signal_kernels(calibration, kernel_width, threshold)
    lags = _gram_lags(kernels)
    evaluate_z, evaluate_y, evaluate_x = (
        _fourier_matrix(n, lags.shape[axis + 2], lags) for axis, n in enumerate(nodes)
    )
    vectors = calibration.new_empty(len(calibration), *nodes)
    values = calibration.real.new_empty(nodes)
    for z, row in enumerate(evaluate_z):  # plane by plane: the matrices of all nodes would be n_coils times the maps
        plane = torch.einsum("cdzyx,z->cdyx", lags, row)
        plane = torch.einsum("cdyx,jy,ix->jicd", plane, evaluate_y, evaluate_x)
        eigenvalues, eigenvectors = torch.linalg.eigh(plane)
        values[z] = eigenvalues[..., -1]
        vectors[:, z] = eigenvectors[..., -1].permute(2, 0, 1)
    return vectors, values


def smooth_phase(vectors: Tensor, weights: Tensor) -> Tensor:
    r"""Choose the phase of each node's vector so that neighbors agree: eigenvectors come with any.

    From the center outwards along x, then y, then z each vector is turned to the one before it; so the phase is smooth
    wherever the vectors are, with no place where it must jump, as there is if all are turned to one coil. Then each is
    turned to the weighted mean around it a few times, for where they are noisy.

    Parameters
    ----------
    vectors
        Complex, shape ``(coil, z, y, x)``.
    weights
        How much each node counts, real, not negative, shape ``(z, y, x)``.

    Returns
    -------
    Tensor
        The same vectors, each times a number of modulus 1.
    """
    vectors = vectors.clone()
    center = [n // 2 for n in vectors.shape[1:]]
    for axis in (2, 1, 0):
        line = vectors
        for earlier in range(axis):
            line = line.narrow(1 + earlier, center[earlier], 1)
        steps = line.unbind(1 + axis)
        for i in range(center[axis] + 1, len(steps)):
            _turn(steps[i], steps[i - 1])
        for i in range(center[axis] - 1, -1, -1):
            _turn(steps[i], steps[i + 1])
    for _ in range(8):
        _turn(vectors, smooth(weights * vectors, 1.5))
    return vectors


def smooth(values: Tensor, scale: float) -> Tensor:
    """Blur the last three axes by two-sided exponentials ``exp(-|i| / scale)``, which reach all the way across."""
    for axis in range(values.ndim - 3, values.ndim):
        i = torch.arange(values.shape[axis], device=values.device)
        blur = torch.exp(-(i[:, None] - i).abs() / scale).to(values.dtype)
        values = torch.tensordot(values, blur, dims=([axis], [0])).movedim(-1, axis)
    return values


def _turn(vectors: Tensor, like: Tensor) -> None:
    """Turn vectors in place so that their inner products with ``like`` are real and positive."""
    product = (like.conj() * vectors).sum(dim=0)
    size = product.abs()
    vectors *= torch.where(size > 0, product.conj() / size.clamp_min(torch.finfo(size.dtype).tiny), 1)


def _signal_kernels(calibration: Tensor, kernel_width: int, threshold: float) -> Tensor:
    """Return the leading left singular vectors of all windows, shape ``(kernel, coil, z, y, x)``."""
    windows = calibration / calibration.abs().max()
    widths = [min(kernel_width, n) for n in windows.shape[1:]]
    for axis, width in enumerate(widths, start=1):
        windows = windows.unfold(axis, width, 1)
    columns = windows.permute(0, 4, 5, 6, 1, 2, 3).reshape(len(calibration) * widths[0] * widths[1] * widths[2], -1)
    few = columns.shape[1] < columns.shape[0]  # then the other Gram matrix is the smaller
    values, vectors = torch.linalg.eigh(columns.mH @ columns if few else columns @ columns.mH)
    leading = values > torch.maximum(threshold**2 * values[-1], _noise_edge(columns.shape) ** 2 * values.median())
    leading[-1] = True
    kernels = vectors[:, leading]
    if few:
        kernels = (columns @ kernels) / values[leading].sqrt()
    stacked: Tensor = kernels.T.reshape(-1, len(calibration), *widths)
    return stacked


def _noise_edge(shape: Sequence[int]) -> float:
    """Return the hard threshold of Gavish and Donoho for a noisy matrix, over its median singular value."""
    flat = min(shape) / max(shape)
    return ((0.56 * flat - 0.95) * flat + 1.82) * flat + 1.43


def _gram_lags(kernels: Tensor) -> Tensor:
    """Return the Fourier coefficients of G(r), lags -(k-1)..k-1 along each axis, ``(coil, coil, z, y, x)``."""
    widths = kernels.shape[2:]
    points = [2 * width - 1 for width in widths]
    g = torch.fft.ifftn(kernels, s=points, dim=(2, 3, 4), norm="forward")
    g = g.flatten(2).permute(2, 1, 0)
    G = (g @ g.mH / widths.numel()).permute(1, 2, 0).reshape(g.shape[1], g.shape[1], *points)
    lags: Tensor = torch.fft.fftshift(torch.fft.fftn(G, dim=(2, 3, 4), norm="forward"), dim=(2, 3, 4))
    return lags


def _fourier_matrix(n_nodes: int, n_lags: int, like: Tensor) -> Tensor:
    """Return ``exp(2 pi i m r)``, shape ``(node, lag)``."""
    place = (torch.arange(n_nodes, dtype=torch.float64) - n_nodes // 2) / n_nodes
    turns = place[:, None] * (torch.arange(n_lags, dtype=torch.float64) - n_lags // 2)
    return torch.polar(torch.ones_like(turns), 2 * torch.pi * turns).to(like)
