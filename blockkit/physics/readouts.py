r"""K-space as it was read out: which readouts, how far out, where the field of view lies, and late gradients.

The size of the field of view is a choice too, since no grid was sampled. With ``trajectory * f`` the image covers ``f``
times the field of view; k then reaches ``f n / 2``, so the same voxels need an ``image_shape`` ``f`` times larger.
Samples twice as close along a readout as the anatomy needs them ("readout oversampling") are left as they are: choose
the field of view of the anatomy, and what lies outside it is not drawn.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from blockkit.checks import check_count, check_kspace, check_number, check_shape3, check_tensor

Selection = Tensor | slice | Sequence[int] | Sequence[bool]


def select_readouts(kspace: Tensor, trajectory: Tensor, n_readout: int, which: Selection) -> tuple[Tensor, Tensor]:
    """Keep some readouts, in the order asked for: a respiratory gate, a time frame, every second spoke.

    Parameters
    ----------
    kspace
        Complex, shape ``(coil, sample)``, readout after readout.
    trajectory
        Real, shape ``(sample, 3)``, columns kz ky kx, cycles/FOV.
    n_readout
        How many samples a readout has.
    which
        One boolean for each readout, or the numbers of readouts, or a slice of them.

    Returns
    -------
    tuple
        K-space ``(coil, sample)`` and trajectory ``(sample, 3)`` of these readouts, dtypes as they came.

    Raises
    ------
    ValueError
        If the samples are no whole number of readouts, the booleans not as many as the readouts, a number is out of
        range, or nothing is left.
    TypeError
        If ``which`` holds neither booleans nor whole numbers, or an array is of the wrong dtype.

    Examples
    --------
    >>> kspace, trajectory = bk.select_readouts(scan.kspace, scan.trajectory, 32, slice(0, None, 2))
    >>> kspace.shape, trajectory.shape
    (torch.Size([4, 1280]), torch.Size([1280, 3]))
    """
    n_readouts = _count_readouts(kspace, trajectory, n_readout)
    chosen = _resolve(which, n_readouts).to(kspace.device)
    spokes, k = kspace.reshape(-1, n_readouts, n_readout), trajectory.reshape(n_readouts, n_readout, 3)
    return spokes[:, chosen].flatten(1), k[chosen].flatten(0, 1)


def crop_kspace(kspace: Tensor, trajectory: Tensor, image_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Keep the samples within -n/2..n/2: those that an image of this shape can explain.

    A smaller ``image_shape`` gives larger voxels. After :func:`delay_gradients` a sample or two of each readout may lie
    outside.

    Parameters
    ----------
    kspace
        Complex, shape ``(coil, sample)``.
    trajectory
        Real, shape ``(sample, 3)``, columns kz ky kx, cycles/FOV.
    image_shape
        ``(z, y, x)``. Along an axis of one voxel all samples are kept whose k is within -1/2..1/2.

    Returns
    -------
    tuple
        K-space ``(coil, sample)`` and trajectory ``(sample, 3)``, dtypes as they came.

    Raises
    ------
    ValueError, TypeError
        If a shape or dtype does not fit, or no sample is left.

    Examples
    --------
    >>> kspace, trajectory = bk.crop_kspace(scan.kspace, scan.trajectory, (8, 6, 8))
    >>> trajectory.abs().amax(dim=0) <= torch.tensor([4, 3, 4])
    tensor([True, True, True])
    """
    check_kspace(kspace, trajectory)
    shape = check_shape3(image_shape)
    inside = (trajectory.abs() <= trajectory.new_tensor(shape) / 2).all(dim=1)
    if not bool(inside.any()):
        raise ValueError(f"trajectory has no sample within -n/2..n/2 for image_shape {shape}. Is it in cycles/FOV?")
    return kspace[:, inside], trajectory[inside]


def shift_fov(kspace: Tensor, trajectory: Tensor, shift: Sequence[float]) -> Tensor:
    r"""Move the center of the field of view: :math:`y_s \exp(2\pi i\, k_s \cdot d)`.

    What lay ``shift`` away from the center comes to lie at the center. Nothing wraps around for non-Cartesian data: the
    image of a shifted field of view is another cut of the same object.

    Parameters
    ----------
    kspace
        Complex, shape ``(coil, sample)``, any unit.
    trajectory
        Real, shape ``(sample, 3)``, columns kz ky kx, cycles/FOV.
    shift
        :math:`d`, three numbers (z, y, x) in fields of view: ``voxels / n``, or mm over the field of view in mm.

    Returns
    -------
    Tensor
        K-space of the shifted field of view, dtype and shape as it came.

    Raises
    ------
    ValueError, TypeError
        If a shape or dtype does not fit, or ``shift`` is not three finite numbers.

    References
    ----------
    .. [1] Bracewell, "The Fourier transform and its applications", McGraw-Hill, 2000: the shift theorem.

    Examples
    --------
    >>> moved = bk.shift_fov(scan.kspace, scan.trajectory, (2 / 16, 0, 0))  # by two voxels of 16 along z
    >>> moved.shape
    torch.Size([4, 2560])
    """
    check_kspace(kspace, trajectory)
    turns = trajectory.double() @ _three_numbers(shift, "shift").to(trajectory.device)
    phase = torch.polar(torch.ones_like(turns), 2 * torch.pi * (turns % 1))
    return kspace * phase.to(kspace.dtype)


def delay_gradients(trajectory: Tensor, n_readout: int, delay: Sequence[float]) -> Tensor:
    r"""Return where k-space was sampled if the gradients were late: :math:`k_a(j - \tau_a)` for sample j.

    Each axis has its own delay, as each has its own amplifier; on straight spokes this shifts each spoke along and
    across itself. Between samples k is interpolated linearly, beyond the ends it goes on as between the last two.

    Parameters
    ----------
    trajectory
        The nominal one, real, shape ``(sample, 3)``, columns kz ky kx, cycles/FOV, readout after readout.
    n_readout
        How many samples a readout has, at least 2.
    delay
        :math:`\tau`, three numbers (z, y, x), in samples of the readout (dwell times), as :func:`estimate_delays` finds
        them. Positive if the gradient is late.

    Returns
    -------
    Tensor
        Shape, dtype and unit as it came. The ends may now lie outside -n/2..n/2: see :func:`crop_kspace`.

    Raises
    ------
    ValueError, TypeError
        If a shape or dtype does not fit, or ``delay`` is not three finite numbers.

    References
    ----------
    .. [1] Peters, Derbyshire and McVeigh, "Centering the projection reconstruction trajectory: reducing gradient delay
       errors", MRM 50:1-6, 2003, doi:10.1002/mrm.10501.

    Examples
    --------
    >>> k = bk.radial_3d(20, 32, (16, 12, 16))
    >>> late = bk.delay_gradients(k, 32, (0.5, 0.0, -0.5))
    >>> late.shape, torch.equal(late[:, 1], k[:, 1])
    (torch.Size([640, 3]), True)
    """
    check_tensor(trajectory, "trajectory")
    blank = torch.zeros(1, len(trajectory), dtype=torch.complex64, device=trajectory.device)
    n_readouts = _count_readouts(blank, trajectory, n_readout)
    if n_readout < 2:
        raise ValueError(f"n_readout is {n_readout}, expected at least 2 samples, to see how fast k moves.")
    k = trajectory.reshape(n_readouts, n_readout, 3)
    delayed = torch.empty_like(k)
    for axis, late in enumerate(_three_numbers(delay, "delay")):
        place = torch.arange(n_readout, dtype=torch.float64) - late
        first = place.floor().long().clamp(0, n_readout - 2)
        share = (place - first).to(k)
        first = first.to(k.device)
        delayed[..., axis] = torch.lerp(k[:, first, axis], k[:, first + 1, axis], share)
    return delayed.flatten(0, 1)


def _count_readouts(kspace: Tensor, trajectory: Tensor, n_readout: int) -> int:
    check_kspace(kspace, trajectory)
    n_samples = kspace.shape[1]
    if n_samples % check_count(n_readout, "n_readout"):
        raise ValueError(
            f"n_readout is {n_readout}, and there are {n_samples} samples: expected a whole number of readouts."
        )
    return n_samples // n_readout


def _resolve(which: Selection, n_readouts: int) -> Tensor:
    """Return the numbers of the readouts chosen, or raise."""
    if isinstance(which, slice):
        numbers = torch.arange(n_readouts)[which]
    else:
        numbers = torch.as_tensor(which)
        if numbers.dtype == torch.bool:
            if numbers.shape != (n_readouts,):
                raise ValueError(f"which has shape {tuple(numbers.shape)}, expected one boolean for each of the "
                                 f"{n_readouts} readouts, ({n_readouts},).")  # fmt: skip
            numbers = numbers.nonzero().flatten()
        elif numbers.is_floating_point() or numbers.is_complex():
            raise TypeError(f"which has dtype {numbers.dtype}, expected booleans or whole numbers. Write a comparison "
                            "such as phase < 0.3, or which.long().")  # fmt: skip
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"which selects an array of shape {tuple(numbers.shape)}, expected at least one readout.")
    if int(numbers.min()) < -n_readouts or int(numbers.max()) >= n_readouts:
        raise ValueError(f"which reaches from {int(numbers.min())} to {int(numbers.max())}, expected readouts 0 to "
                         f"{n_readouts - 1}.")  # fmt: skip
    return numbers


def _three_numbers(values: Sequence[float], name: str) -> Tensor:
    numbers = torch.tensor([check_number(value, name) for value in values], dtype=torch.float64)
    if len(numbers) != 3 or not bool(torch.isfinite(numbers).all()):
        raise ValueError(f"{name} is {tuple(values)}, expected three finite numbers (z, y, x).")
    return numbers
