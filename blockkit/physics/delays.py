"""Gradient delays estimated from the scan itself, by what its center contradicts itself about."""

import math

import torch
from torch import Tensor

from blockkit.checks import Shape3, check_count, check_kspace
from blockkit.physics.channels import compress_coils
from blockkit.physics.density import density_compensation
from blockkit.physics.fourier import NUFFT
from blockkit.physics.readouts import delay_gradients
from blockkit.physics.solvers import conjugate_gradient

_MARGIN = 4.0  # cycles/FOV beyond the samples used, for k to move in
_N_COILS = 4
_SOLVE_ITERATIONS = 8
_ENOUGH, _SETTLED = 1e-4, 1e-2  # samples


@torch.no_grad()
def estimate_delays(
    kspace: Tensor, trajectory: Tensor, n_readout: int, *, calibration_width: int = 12, n_iterations: int = 12
) -> tuple[float, float, float]:
    r"""Estimate how late the gradient of each axis is, from readouts that meet in the center of k-space.

    Where readouts cross they measured the same number, if they are where they are thought to be. Of all delays those
    are sought with which one image of low resolution explains the center best,

    .. math:: \min_\tau \min_x \sum_c \|F_\tau x_c - y_c\|^2_w,

    where :math:`F_\tau` samples at :math:`k_a(j - \tau_a)`: variable projection by Gauss and Newton. It needs neither
    opposite nor parallel spokes, but a center where readouts cross at different angles and lie at most about one
    cycle/FOV apart. A shift of all of k-space by the same vector, which only puts a phase across the image, is not
    seen. An object of which little lies off center says little. Whatever else makes readouts contradict each other,
    such as motion or a signal that decays while their direction changes slowly (hyperpolarized gas), is taken for
    delays too, if it can be: believe those that another ``calibration_width`` confirms.

    Parameters
    ----------
    kspace
        Complex, shape ``(coil, sample)``, readout after readout, any unit. The four strongest virtual coils are used.
    trajectory
        The nominal one, real, shape ``(sample, 3)``, columns kz ky kx, cycles/FOV. An axis where k is 0 throughout has
        no delay.
    n_readout
        How many samples a readout has.
    calibration_width
        Extent of the center that is used, in cycles/FOV.
    n_iterations
        Most steps; it stops once no delay changes by 1e-4. False answers are approached slowly.

    Returns
    -------
    tuple
        Delays (z, y, x) in samples of the readout, for :func:`delay_gradients`; positive if the gradient is late.

    Raises
    ------
    ValueError
        If a shape does not fit, the center is empty or zero, or the steps lead out of it or do not settle to 0.01
        samples: then the delays are larger than some samples, the center is not sampled densely enough, or something
        else than delays contradicts itself.
    TypeError
        If a dtype does not fit.

    References
    ----------
    .. [1] Ianni and Grissom, "Trajectory auto-corrected image reconstruction", MRM 76:757-768, 2016,
       doi:10.1002/mrm.25916.
    .. [2] Rosenzweig, Holme and Uecker, "Simple auto-calibrated gradient delay estimation from few spokes using radial
       intersections (RING)", MRM 81:1898-1906, 2019, doi:10.1002/mrm.27506.
    .. [3] Golub and Pereyra, "Separable nonlinear least squares: the variable projection method and its applications",
       Inverse Problems 19:R1-R26, 2003, doi:10.1088/0266-5611/19/2/201.

    Examples
    --------
    >>> delays = bk.estimate_delays(scan.kspace, scan.trajectory, 32, calibration_width=6)
    >>> all(abs(delay) < 0.1 for delay in delays)
    True
    """
    check_kspace(kspace, trajectory)
    half = check_count(calibration_width, "calibration_width", 4) / 2
    check_count(n_iterations, "n_iterations")
    central = (trajectory.abs() <= half).all(dim=1)
    y = kspace[:, central]
    largest = float(y.abs().max()) if y.numel() else 0.0
    if largest == 0:
        raise ValueError(f"kspace is zero, or not sampled, within {half:g} cycles/FOV of the center.")
    y = compress_coils(y.to(torch.complex128) / largest, min(_N_COILS, len(y)))[0]
    speed = (trajectory - delay_gradients(trajectory, n_readout, (1, 1, 1)))[central].double()
    extent = trajectory[central].abs().amax(dim=0)
    z, y_axis, x = (1 if k == 0 else 2 * math.ceil(float(k) + _MARGIN) for k in extent)
    moving = [axis for axis in range(3) if extent[axis] > 0]
    weights = density_compensation(trajectory[central].float(), (z, y_axis, x)).double()
    delay = torch.zeros(3, dtype=torch.float64)
    for _ in range(n_iterations):
        k = delay_gradients(trajectory, n_readout, delay.tolist())[central]
        if float(((k.abs().amax(dim=0) - extent)[moving]).max()) > _MARGIN:
            raise ValueError(f"the delays found run away: {_rounded(delay)} samples (z, y, x). {_HELP}")
        change = _step(y, k, speed, weights, (z, y_axis, x))[moving]
        delay[moving] += change
        last = float(change.abs().max())
        if last < _ENOUGH:
            break
    if last > _SETTLED:
        raise ValueError(
            f"the delays found, {_rounded(delay)} samples (z, y, x), still changed by {last:.2g} in step "
            f"{n_iterations}. {_HELP}"
        )
    return delay[0].item(), delay[1].item(), delay[2].item()


_HELP = (
    "Expected about a cycle/FOV at most, and readouts that cross in a densely sampled center and agree but for delays. "
    "Pass a smaller calibration_width, more readouts, or a nominal trajectory closer to the true one. If the signal "
    "decays from readout to readout, divide each by its strength at the center first."
)


def _rounded(delay: Tensor) -> tuple[float, ...]:
    return tuple(round(value, 3) for value in delay.tolist())


def _step(y: Tensor, k: Tensor, speed: Tensor, weights: Tensor, shape: Shape3) -> Tensor:
    """Return the change of the three delays of one step of Gauss and Newton, after Kaufman."""
    F = NUFFT(k, shape, tolerance=2e-5)
    normal = F.toeplitz(weights)

    def project(samples: Tensor) -> Tensor:
        """Return the images that explain ``samples`` best."""
        b = F.adjoint(weights * samples)
        images = [conjugate_gradient(normal, one, n_iterations=_SOLVE_ITERATIONS) for one in b]
        return torch.stack(images)

    x = project(y)
    residual = y - F.forward(x)
    slopes = []
    for axis, n in enumerate(shape):
        place = ((torch.arange(n, dtype=torch.float64, device=y.device) - n // 2) / n).view(
            [-1 if a == axis else 1 for a in range(3)]
        )
        slope = 2j * torch.pi * speed[:, axis] * F.forward(place * x)
        slopes.append(slope - F.forward(project(slope)) if n > 1 else torch.zeros_like(slope))
    J = (weights.sqrt() * torch.stack(slopes)).flatten(1)
    r = (weights.sqrt() * residual).flatten()
    H = (J.conj() @ J.T).real
    H += 1e-9 * H.diagonal().max() * torch.eye(3, dtype=H.dtype, device=H.device)
    change: Tensor = torch.linalg.solve(H, (J.conj() @ r).real)
    return change.cpu()
