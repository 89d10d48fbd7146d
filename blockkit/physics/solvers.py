"""Iterative solvers for linear operators: conjugate gradients, Lanczos, FISTA.

Each takes callables, so it knows neither coils nor Fourier transforms, and complex (or real) tensors of any shape.
"""

import math
from collections.abc import Callable, Sequence

import scipy.linalg
import torch
from torch import Tensor

from blockkit.checks import check_count, check_tensor

Map = Callable[[Tensor], Tensor]


def conjugate_gradient(
    normal: Map, b: Tensor, *, x0: Tensor | None = None, n_iterations: int = 10, tolerance: float = 0.0
) -> Tensor:
    r"""Solve :math:`N x = b` for a Hermitian positive (semi-)definite :math:`N` by conjugate gradients.

    With :math:`N = A^H A` and :math:`b = A^H y` this is least squares; with ``x0=None`` (zeros) and few iterations it
    is the regularized CG-SENSE image. Cost: one ``normal`` an iteration (one more with ``x0``), about five images of
    memory. With ``tolerance=0`` the number of iterations is fixed and no value is read back from the device.

    Parameters
    ----------
    normal
        The map :math:`x \mapsto N x`, from tensors shaped like ``b`` to the same shape.
    b
        The right-hand side, complex or real, any shape, usually ``(z, y, x)``.
    x0
        The starting image, the shape and dtype of ``b``; zeros by default.
    n_iterations
        The number of iterations, or the most when ``tolerance > 0``.
    tolerance
        Stop once :math:`\|b - N x\| \le` ``tolerance`` :math:`\cdot \|b\|`. No unit.

    Returns
    -------
    Tensor
        The solution, the shape and dtype of ``b``.

    Raises
    ------
    ValueError
        If ``x0`` has another shape than ``b``, or a number is out of range.
    TypeError
        If ``b`` is not a tensor, or ``n_iterations`` not a whole number.

    References
    ----------
    .. [1] Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems", J. Res. NBS 49:409, 1952.
    .. [2] Pruessmann et al., "Advances in sensitivity encoding with arbitrary k-space trajectories", MRM 46:638, 2001.
    """
    _check_solver(b, x0, n_iterations, tolerance)
    x = torch.zeros_like(b) if x0 is None else x0
    residual = b if x0 is None else b - normal(x0)
    direction, energy = residual, _energy(residual)
    enough = (tolerance * torch.linalg.vector_norm(b)) ** 2 if tolerance > 0 else None
    for _ in range(n_iterations):
        if enough is not None and bool(energy <= enough):
            break
        image = normal(direction)
        length = _ratio(energy, _inner(direction, image))
        x = torch.addcmul(x, length, direction)
        residual = torch.addcmul(residual, -length, image)
        del image
        before, energy = energy, _energy(residual)
        direction = torch.addcmul(residual, _ratio(energy, before), direction)
    return x


def eigenvalue_bound(
    normal: Map,
    in_shape: Sequence[int],
    *,
    n_iterations: int = 10,
    seed: int = 0,
    dtype: torch.dtype = torch.complex64,
    device: torch.device | str = "cpu",
) -> float:
    r"""Bound the largest eigenvalue of a Hermitian positive semi-definite map from above, closely and cheaply.

    Returns :math:`1.001\,\theta + \|N u - \theta u\|` for the largest Ritz pair :math:`(\theta, u)` of the Lanczos
    iteration from a random start: after ten iterations about 2 % above the eigenvalue for the encoding operators here,
    where :math:`\theta` itself is some 4 % below. It is no proof, since a random start may miss an eigenvector; its
    inverse serves as a step size. Cost: one ``normal`` an iteration, about four images of memory.

    Parameters
    ----------
    normal
        The map :math:`x \mapsto N x`, from and to ``in_shape``.
    in_shape
        The shape of its argument, usually ``(z, y, x)``.
    n_iterations
        How many times ``normal`` is applied, at most: it stops once the residual is below 0.1 %.
    seed
        Seed of the random start, drawn on the CPU and so the same on each device.
    dtype, device
        Of the start, and so of the computation.

    Returns
    -------
    float
        The bound, in the unit of ``normal``; 0 for the zero map.

    Raises
    ------
    ValueError
        If ``normal`` gives NaN or infinity, or ``n_iterations`` is below 1.
    TypeError
        If ``n_iterations`` is not a whole number.

    References
    ----------
    .. [1] Lanczos, "An iteration method for the solution of the eigenvalue problem of linear differential and integral
       operators", J. Res. NBS 45:255-282, 1950.
    """
    check_count(n_iterations, "n_iterations")
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(tuple(in_shape), dtype=dtype, generator=generator).to(device)
    v = v / torch.linalg.vector_norm(v)
    before, diagonal, beside = torch.zeros_like(v), [], [0.0]
    value = residual = 0.0
    for _ in range(n_iterations):
        image = normal(v)
        diagonal.append(float(_inner(v, image)))
        image = image - diagonal[-1] * v - beside[-1] * before
        beside.append(float(torch.linalg.vector_norm(image)))
        if not math.isfinite(diagonal[-1] + beside[-1]):
            raise ValueError("the largest eigenvalue is not finite. Does the operator hold NaN or infinity?")
        values, vectors = scipy.linalg.eigh_tridiagonal(diagonal, beside[1:-1])
        value, residual = float(values[-1]), beside[-1] * abs(float(vectors[-1, -1]))
        if residual <= 1e-3 * value:
            break
        before, v = v, image / beside[-1]
    return (1 + 1e-3) * value + residual


def fista(
    smooth: Callable[[Tensor], tuple[float, Tensor]],
    proximal: Callable[[Tensor], tuple[Tensor, float]],
    x0: Tensor,
    *,
    step_size: float,
    n_iterations: int,
    tolerance: float = 0.0,
    callback: Callable[[int, Tensor, float], None] | None = None,
) -> Tensor:
    r"""Minimize :math:`f(x) + g(x)`, smooth plus simple, by the fast iterative shrinkage-thresholding algorithm.

    .. math:: x_k = \mathrm{prox}(z_k - \tau \nabla f(z_k)), \qquad
       z_{k+1} = x_k + \frac{t_k - 1}{t_{k+1}} (x_k - x_{k-1}), \qquad t_{k+1} = \tfrac12 + \sqrt{\tfrac14 + t_k^2}

    Restart: :math:`t` returns to 1 whenever the step :math:`x_k - x_{k-1}` points against the descent,
    :math:`\mathrm{Re}\langle z_k - x_k, x_k - x_{k-1}\rangle > 0` (the gradient scheme of [2]_).

    Stop: after ``n_iterations``, or once the objective :math:`f(z_k) + g(x_k)`, averaged over twenty iterations, has
    fallen since the twenty before by no more than ``tolerance`` times its fall since the first iteration. The average
    is compared, and a rise stops too, because a ``proximal`` with random shifts makes the objective tremble for ever.

    Cost: one ``smooth`` and one ``proximal`` an iteration, about six images of memory.

    Parameters
    ----------
    smooth
        The map from :math:`x` to :math:`f(x)`, up to a constant, and :math:`\nabla f(x)`. The gradient must be a new
        tensor, which is then overwritten.
    proximal
        The map from :math:`v` to :math:`x = \arg\min_u \tfrac12\|u - v\|^2 + \tau g(u)` and :math:`g(x)`. It may
        overwrite its argument.
    x0
        The starting point, complex or real, any shape; it is not changed.
    step_size
        :math:`\tau`, at most one over the Lipschitz constant of the gradient.
    n_iterations
        The most iterations.
    tolerance
        See above, no unit; 0 never stops early.
    callback
        Called as ``callback(k, x, objective)`` after iteration ``k = 1, 2, ...``.

    Returns
    -------
    Tensor
        The last iterate, the shape and dtype of ``x0``.

    Raises
    ------
    ValueError
        If a number is out of range, or the iteration diverges.
    TypeError
        If ``x0`` is not a tensor, or ``n_iterations`` not a whole number.

    References
    ----------
    .. [1] Beck and Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear inverse problems",
       SIAM J. Imaging Sci. 2:183-202, 2009.
    .. [2] O'Donoghue and Candes, "Adaptive restart for accelerated gradient schemes",
       Found. Comput. Math. 15:715-732, 2015.
    """
    check_tensor(x0, "x0")
    _check_solver(x0, None, n_iterations, tolerance)
    if not (math.isfinite(step_size) and step_size > 0):
        raise ValueError(f"step_size is {step_size}, expected a finite number above 0, at most 1 / Lipschitz constant.")
    x, z, t, objectives = x0, x0, 1.0, []
    for k in range(1, n_iterations + 1):
        value, gradient = smooth(z)
        x_before = x
        x, penalty = proximal(gradient.mul_(-step_size).add_(z))
        change = x - x_before
        if float(_inner(z - x, change)) > 0:
            t = 1.0
        t_before, t = t, 0.5 + math.sqrt(0.25 + t * t)
        z = change.mul_((t_before - 1) / t).add_(x)
        objectives.append(value + penalty)
        if not math.isfinite(objectives[-1]):
            raise ValueError(f"diverged at step_size = {step_size:.3g}: is it above 1 / Lipschitz constant?")
        if callback is not None:
            callback(k, x, objectives[-1])
        if tolerance > 0 and _settled(objectives, tolerance):
            break
    return x


def _settled(objectives: list[float], tolerance: float, window: int = 20) -> bool:
    """Tell whether the mean objective of the last window fell by next to nothing since the window before."""
    if len(objectives) % window or len(objectives) < 2 * window:
        return False
    before, now = sum(objectives[-2 * window : -window]) / window, sum(objectives[-window:]) / window
    return before - now <= tolerance * max(0.0, objectives[0] - now)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    product: Tensor = torch.vdot(a.reshape(-1), b.reshape(-1)).real
    return product


def _energy(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x)
    return norm.square()


def _ratio(over: Tensor, under: Tensor) -> Tensor:
    """Divide, with 0 where nothing is left to divide, so that iterating past an exact solution stays there."""
    positive = under > 0
    quotient: Tensor = torch.where(positive, over / torch.where(positive, under, 1), 0)
    return quotient


def _check_solver(b: Tensor, x0: Tensor | None, n_iterations: int, tolerance: float) -> None:
    check_tensor(b, "b")
    check_count(n_iterations, "n_iterations")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance is {tolerance}, expected a number from 0 (never stop early) to below 1.")
    if x0 is not None and x0.shape != b.shape:
        raise ValueError(f"x0 has shape {tuple(x0.shape)}, expected that of b, {tuple(b.shape)}.")
