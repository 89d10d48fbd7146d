"""Compressed sensing: L1-wavelet reconstruction by FISTA, and the tuning of its weight on a validation scan."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from blockkit.checks import check_complex, check_finite, check_image, check_number, check_tensor
from blockkit.classic.sparsity import NO_SHIFT, Wavelet, crop, pad, soft_threshold
from blockkit.metrics import nrmse, psnr
from blockkit.physics.linop import LinearOperator
from blockkit.physics.solvers import eigenvalue_bound, fista

REG_WEIGHTS = (1e-5, 2e-5, 4e-5, 8e-5)
_ROUNDING = 1 + 1e-5  # so that reg_weight = 1 gives zero in spite of rounding


@torch.no_grad()
def compressed_sensing(
    A: LinearOperator,
    kspace: Tensor,
    *,
    reg_weight: float = 3e-5,
    n_iterations: int = 300,
    tolerance: float = 1e-6,
    wavelet: str = "db4",
    random_shifts: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Tensor:
    r"""Reconstruct an image that is sparse in a wavelet basis, by FISTA.

    .. math:: \min_x \tfrac12 \|A x - y\|_2^2 + \lambda \|W x\|_1, \qquad
              \lambda = \mathrm{reg\_weight} \cdot \max_{s} \|W_s A^H y\|_\infty

    :math:`W_s` is the orthonormal wavelet transform of the image rolled by ``s`` voxels. Each iteration draws a new
    shift (cycle spinning), which stands in for the average of :math:`\|W_s x\|_1` over the shifts and avoids the
    blocky patterns of a fixed grid; with ``random_shifts=False`` it is exactly the problem above, with s = 0. An axis
    that the wavelet's levels do not divide is extended, by fewer voxels than one coarsest coefficient covers; no data
    speak of those voxels, the penalty fills them, and they are cut off at the end.

    It applies ``A.adjoint`` once and ``A.normal`` once an iteration. The step is one over a bound of the largest
    eigenvalue of ``A.normal`` (ten Lanczos iterations); should it diverge all the same, it starts again with half the
    step. Memory: about eight images besides the operator's own. Gradients do not flow through it.

    Parameters
    ----------
    A
        Encoding operator, from ``(z, y, x)`` to the shape of ``kspace``.
    kspace
        Measured data, complex, usually ``(coil, sample)``, any unit: the image scales with it. If ``A`` has weights,
        the data must have been multiplied by their square root.
    reg_weight
        Weight of the penalty, a fraction with no unit: from 1 on, the image is zero.
    n_iterations
        The most iterations.
    tolerance
        Stop once the objective, averaged over twenty iterations, has fallen since the twenty before by no more than
        this fraction of its fall since the zero image; 0 never stops early.
    wavelet
        Any orthogonal wavelet of PyWavelets.
    random_shifts
        Whether to shift the wavelets at random; without, the problem is the textbook one.
    seed
        Seed of the shifts: the same seed, the same image.
    progress
        Whether to show a progress bar.

    Returns
    -------
    Tensor
        The image ``(z, y, x)``, dtype of ``kspace``, in its unit.

    Raises
    ------
    ValueError
        If a shape does not fit, a value is NaN or infinite, or a number is out of range.
    TypeError
        If ``kspace`` is not a complex tensor, or ``reg_weight`` not a number.

    References
    ----------
    .. [1] Lustig et al., "Sparse MRI: the application of compressed sensing for rapid MR imaging",
       MRM 58:1182-1195, 2007.
    .. [2] Coifman and Donoho, "Translation-invariant de-noising", Wavelets and Statistics, Springer, 125-150, 1995.

    Examples
    --------
    >>> A = bk.Encoding(scan.trajectory, scan.maps)
    >>> image = bk.compressed_sensing(A, scan.kspace, reg_weight=1e-4, n_iterations=5, wavelet="haar")
    >>> image.shape
    torch.Size([16, 12, 16])
    """
    _check_problem(A, kspace, reg_weight)
    W = Wavelet(Wavelet(A.in_shape, name=wavelet).padded_shape, name=wavelet)
    b = pad(A.adjoint(kspace), W.in_shape)
    largest = W.largest_coefficient(b)
    if largest == 0:
        return crop(b, A.in_shape)
    b = b / largest
    lipschitz = eigenvalue_bound(A.normal, A.in_shape, seed=seed, dtype=b.dtype, device=b.device)
    energy = float(torch.linalg.vector_norm(b)) ** 2

    def data_term(x: Tensor) -> tuple[float, Tensor]:
        image = pad(A.normal(crop(x, A.in_shape)), W.in_shape)
        return float(torch.vdot(x.flatten(), (image / 2 - b).flatten()).real), image - b

    def penalty(x: Tensor) -> tuple[Tensor, float]:
        shift = W.random_shift(generator) if random_shifts else NO_SHIFT
        coefficients = soft_threshold(W.forward(x, shift), reg_weight * _ROUNDING / lipschitz)
        return W.adjoint(coefficients, shift), reg_weight * float(coefficients.abs().sum())

    def stop_divergence(k: int, x: Tensor, objective: float) -> None:
        bar.update()
        if objective * lipschitz > 10 * energy:  # it is at most ``energy`` after the first step, and then falls
            raise _Diverged

    with tqdm(total=n_iterations, desc="compressed sensing", disable=not progress) as bar:
        while True:
            generator = torch.Generator().manual_seed(seed)
            try:
                x = fista(
                    data_term,
                    penalty,
                    torch.zeros_like(b),
                    step_size=1 / lipschitz,
                    n_iterations=n_iterations,
                    tolerance=tolerance,
                    callback=stop_divergence,
                )
                return crop(x, A.in_shape) * largest
            except _Diverged:
                lipschitz *= 2
                bar.reset()


class _Diverged(Exception):
    """The objective rises beyond what a safe step size allows."""


class Tuning(NamedTuple):
    """The best weight, and the score of every weight that was tried, by rising weight."""

    reg_weight: float
    scores: dict[float, float]


def tune_reg_weight(
    A: LinearOperator,
    kspace: Tensor,
    reference: Tensor,
    *,
    reg_weights: Sequence[float] = REG_WEIGHTS,
    n_iterations: int = 300,
    metric: Callable[[Tensor, Tensor], float] = psnr,
    progress: bool = False,
) -> Tuning:
    """Find the ``reg_weight`` of :func:`compressed_sensing` with the best score on a validation scan.

    While the best weight is the smallest or the largest tried, the grid grows at that end by its own ratio, at most
    six times; then a warning says so. Tune on one scan, report on others.

    Parameters
    ----------
    A, kspace
        The validation scan, as for :func:`compressed_sensing`.
    reference
        The image to compare with, complex, ``(z, y, x)``, in the unit of the image.
    reg_weights
        The weights to try, at least two different ones above 0.
    n_iterations
        The most iterations of each reconstruction.
    metric
        Called as ``metric(image, reference)``. The highest score is the best, but the lowest for
        :func:`~blockkit.metrics.nrmse`.
    progress
        Whether to show a progress bar.

    Returns
    -------
    Tuning
        ``reg_weight``, the best, and ``scores``, a dictionary from each weight tried to its score.

    Raises
    ------
    ValueError
        If the grid has fewer than two weights, or an input does not fit.

    Warns
    -----
    UserWarning
        If the best weight still lies at an end of the grid.

    Examples
    --------
    >>> A = bk.Encoding(scan.trajectory, scan.maps)
    >>> weights = (1e-5, 1e-4, 1e-3)
    >>> found = bk.tune_reg_weight(A, scan.kspace, scan.reference, reg_weights=weights, n_iterations=20)
    >>> found.reg_weight
    0.0001
    """
    check_image(reference, A.in_shape, "reference")
    grid = sorted({check_number(weight, "reg_weight") for weight in reg_weights})
    if len(grid) < 2 or not all(weight > 0 and math.isfinite(weight) for weight in grid):
        raise ValueError(f"reg_weights is {tuple(reg_weights)}, expected at least two different numbers above 0.")
    scores: dict[float, float] = {}
    sign, todo, n_left = (-1 if metric is nrmse else 1), list(grid), 6
    while todo:
        for weight in tqdm(todo, desc="tuning reg_weight", disable=not progress):
            image = compressed_sensing(A, kspace, reg_weight=weight, n_iterations=n_iterations)
            scores[weight] = metric(image, reference)
        grid = sorted(scores)
        best = max(grid, key=lambda weight: sign * scores[weight])
        todo = _beyond(grid, best) if n_left else []
        n_left -= 1
    if _beyond(grid, best):
        warnings.warn(
            f"the best reg_weight, {best:.2g}, lies at the end of the weights tried, {grid[0]:.2g} to {grid[-1]:.2g}. "
            "Pass reg_weights that reach further.",
            stacklevel=2,
        )
    return Tuning(best, {weight: scores[weight] for weight in grid})


def _beyond(grid: list[float], best: float) -> list[float]:
    """Return the next weight past the end of the grid at which the best one lies, if it lies there."""
    if best == grid[0]:
        return [grid[0] ** 2 / grid[1]]
    if best == grid[-1] and best < 1:
        return [grid[-1] ** 2 / grid[-2]]
    return []


def _check_problem(A: LinearOperator, kspace: Tensor, reg_weight: float) -> None:
    check_tensor(kspace, "kspace")
    if tuple(kspace.shape) != A.out_shape:
        raise ValueError(f"kspace has shape {tuple(kspace.shape)}, expected that of A's output, {A.out_shape}.")
    check_complex(kspace, "kspace")
    check_finite(kspace, "kspace")
    if not 0 <= check_number(reg_weight, "reg_weight") < math.inf:
        raise ValueError(f"reg_weight is {reg_weight}, expected a number from 0 (no penalty) to 1 (a zero image).")
