"""Simulate a scan of a volume: the k-space that coils would receive, with noise, and the image to compare with."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blockkit.checks import Shape3, check_count, check_number, check_shape3, check_volume
from blockkit.data.band import limit_band, smallest_region
from blockkit.data.render import voxel_size_mm
from blockkit.data.scan import Scan
from blockkit.physics.coils import FOV_MM, simulate_maps
from blockkit.physics.fourier import NUFFT
from blockkit.physics.inputs import check_trajectory
from blockkit.physics.trajectory import radial_3d


def simulate_scan(
    volume: Tensor,
    image_shape: Sequence[int] | None = None,
    *,
    n_coils: int = 8,
    n_spokes: int | None = None,
    noise: float = 0.02,
    seed: int = 0,
    trajectory: Tensor | None = None,
) -> Scan:
    r"""Simulate a scan of ``volume``: 3D radial, or on any other trajectory.

    The k-space of each coil is taken from the finer ``volume`` and the coil's map on the same fine grid, scaled so
    that an encoding operator on ``image_shape`` gives the same numbers: :math:`y_c = F S_c x + n_c`. Without a
    ``trajectory`` it is that of :func:`radial_3d`, each spoke with two samples per cycle per field of view along the
    longest axis.

    Parameters
    ----------
    volume
        The truth, complex, shape ``(z, y, x)``, at least 1.5 times finer than ``image_shape`` along each axis, over the
        field of view of :func:`pulmonary_phantom`.
    image_shape
        Shape ``(z, y, x)`` of the image to reconstruct. None means that of ``volume``, and warns.
    n_coils
        Number of coils.
    n_spokes
        Number of radial spokes, 600 if not given; not to be given with a ``trajectory``.
    noise
        Standard deviation of the real and of the imaginary part of the noise, as a fraction of the root mean square
        of the noiseless k-space.
    seed
        Seed of the coils and, apart from them, of the noise.
    trajectory
        Where to sample instead, real, shape ``(sample, 3)``, columns kz ky kx, cycles/FOV in ``-n/2`` to ``n/2`` of
        ``image_shape``; :func:`stack_of_stars` and :func:`cones` make some.

    Returns
    -------
    Scan
        Its ``reference`` is the truth on ``image_shape``, band-limited to what was sampled: to the ellipsoid of radial
        spokes and of cones, to the elliptic cylinder of a stack of stars if a sample lies outside the ellipsoid, or to
        the whole box if one lies outside the cylinder too, as :func:`~blockkit.data.band.limit_band` has them.

    Raises
    ------
    ValueError
        If ``volume`` is coarser than ``image_shape``, ``noise`` or ``seed`` is negative, ``trajectory`` leaves
        ``-n/2`` to ``n/2``, or ``n_spokes`` is given with it.

    Warns
    -----
    UserWarning
        If ``volume`` is less than 1.5 times finer: data made by the operator that inverts it is an inverse crime.

    Examples
    --------
    >>> volume = torch.ones(24, 18, 24, dtype=torch.complex64)  # or bk.pulmonary_phantom((24, 18, 24))
    >>> scan = bk.simulate_scan(volume, (16, 12, 16), n_coils=4, n_spokes=80, noise=0.02)
    >>> scan.kspace.shape, scan.reference.shape
    (torch.Size([4, 2560]), torch.Size([16, 12, 16]))
    """
    shape = _check_truth(volume, image_shape)
    if not 0 <= check_number(noise, "noise") < float("inf"):
        raise ValueError(f"noise is {noise}, expected a number of at least 0, such as 0.02.")
    trajectory = _choose_trajectory(trajectory, n_spokes, shape)
    volume = volume.detach().to("cpu", torch.complex64)
    F = NUFFT(trajectory, volume.shape, tolerance=1e-5)
    scale = (np.prod(shape) / volume.numel()) ** 0.5
    fine_maps = simulate_maps(n_coils, volume.shape, seed=seed)
    kspace = torch.stack([scale * F.forward(coil_map * volume) for coil_map in fine_maps])
    noise_seed = np.random.SeedSequence([check_count(seed, "seed", 0), 0x015E]).generate_state(1)
    generator = torch.Generator().manual_seed(int(noise_seed[0]))
    # torch.randn of a complex dtype has the variance 1 in all, a half in each part
    spread = noise * float(kspace.abs().square().mean().sqrt()) * 2**0.5
    kspace = kspace + spread * torch.randn(kspace.shape, dtype=kspace.dtype, generator=generator)
    maps = simulate_maps(n_coils, shape, seed=seed)
    reference = limit_band(volume, shape, smallest_region(trajectory, shape))
    return Scan(kspace, trajectory, maps, _voxel_size(volume, shape), reference=reference)


def _choose_trajectory(trajectory: Tensor | None, n_spokes: int | None, shape: Shape3) -> Tensor:
    if trajectory is None:
        return radial_3d(check_count(600 if n_spokes is None else n_spokes, "n_spokes"), 2 * max(shape), shape)
    if n_spokes is not None:
        raise ValueError(
            f"n_spokes is {n_spokes} and trajectory is given too, expected one of them: leave n_spokes out, or "
            "write trajectory=None for radial spokes."
        )
    return check_trajectory(trajectory, shape).to("cpu", torch.float32)


def _check_truth(volume: Tensor, image_shape: Sequence[int] | None) -> Shape3:
    check_volume(volume, "volume")
    shape = check_shape3(volume.shape if image_shape is None else image_shape)
    ratios = [fine / n for fine, n in zip(volume.shape, shape, strict=True) if n > 1]
    if any(fine < n for fine, n in zip(volume.shape, shape, strict=True)):
        raise ValueError(
            f"volume has shape {tuple(volume.shape)}, coarser than image_shape {shape}. "
            "Expected the truth on a finer grid, at least 1.5 times along each axis."
        )
    if any(ratio < 1.5 for ratio in ratios):
        warnings.warn(
            f"Inverse crime: volume has shape {tuple(volume.shape)}, less than 1.5 times finer than image_shape "
            f"{shape}, so the data are simulated with almost the operator that inverts them. "
            f"Pass a volume of at least {tuple(-(-3 * n // 2) if n > 1 else 1 for n in shape)}.",
            stacklevel=3,
        )
    return shape


def _voxel_size(volume: Tensor, shape: Shape3) -> tuple[float, float, float]:
    """Return the voxel size in mm; one voxel for a thick axis of ``volume`` is as thick as the field of view."""
    slices = zip(FOV_MM, voxel_size_mm(shape), shape, volume.shape, strict=True)
    z, y, x = (fov if n == 1 and n_fine > 1 else size for fov, size, n, n_fine in slices)
    return z, y, x
