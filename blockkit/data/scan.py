"""A scan: k-space with all that is needed to reconstruct it; and how to simulate one."""

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from blockkit.checks import (
    Shape3,
    check_complex,
    check_count,
    check_finite,
    check_image,
    check_number,
    check_shape3,
    check_tensor,
    check_volume,
    slice_hint,
)
from blockkit.data.band import limit_band, smallest_region
from blockkit.data.files import ScanFileError, check_voxel_size
from blockkit.data.formats import ARRAYS, read_scan_file, write_scan_file
from blockkit.data.render import voxel_size_mm
from blockkit.group import ALONE, Group, join
from blockkit.physics.coils import FOV_MM, simulate_maps
from blockkit.physics.fourier import NUFFT, check_trajectory
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d


@dataclass(frozen=True, eq=False)
class Scan:
    r"""One scan: k-space, where it was sampled, and the coils that received it.

    Parameters
    ----------
    kspace
        Complex64, shape ``(coil, sample)``, arbitrary unit.
    trajectory
        Float32, shape ``(sample, 3)``, columns kz ky kx, in cycles per field of view, ``-n/2`` to ``n/2``.
    maps
        Coil sensitivity maps, complex64, shape ``(coil, z, y, x)``, no unit.
    voxel_size
        ``(z, y, x)`` in mm.
    reference
        The image to compare with, complex64, shape ``(z, y, x)``, or None.
    field_map, times
        Off-resonance frequency of each voxel, float32, shape ``(z, y, x)``, in Hz, and when each sample was read out,
        float32, shape ``(sample,)``, in seconds, as :class:`~blockkit.physics.off_resonance.OffResonance` has them; or
        None, both. Every reconstruction and training takes them into account.
    group
        The processes that share the coils; ``kspace`` and ``maps`` are those of this one. :meth:`spread` sets it.

    Raises
    ------
    ValueError
        If shapes do not fit each other, or a value is NaN or infinite.
    TypeError
        If an array is not a tensor, or of another dtype.

    Examples
    --------
    >>> scan = bk.Scan(scan.kspace, scan.trajectory, scan.maps, voxel_size=(2.0, 2.0, 2.0))
    >>> scan.n_coils, scan.image_shape
    (4, (16, 12, 16))
    >>> scan.encoding().out_shape
    (4, 2560)
    """

    kspace: Tensor
    trajectory: Tensor
    maps: Tensor
    voxel_size: tuple[float, float, float]
    reference: Tensor | None = None
    field_map: Tensor | None = None
    times: Tensor | None = None
    group: Group = ALONE

    def __post_init__(self) -> None:
        for name in ARRAYS:
            value = getattr(self, name)
            if value is not None:
                check_tensor(value, name)
                _check_dtype(value, name)
                check_finite(value, name)
        check_shapes(**{name: getattr(self, name) for name in ARRAYS})
        object.__setattr__(self, "voxel_size", check_voxel_size(self.voxel_size))

    def encoding(self, device: torch.device | str = "cpu") -> Encoding:
        """Return the encoding operator of the scan on ``device``, off resonance where there is a field map."""
        A = Encoding(self.trajectory.to(device), self.maps).spread_over(self.group)
        if self.field_map is None or self.times is None:
            return A
        return A.off_resonant(self.field_map, self.times)

    def spread(self) -> "Scan":
        """Return this process's part of the scan: its coils of k-space and maps; all else is shared.

        Coils are dealt out over the processes that ``torchrun`` started, as evenly as it goes; a process without one
        has a coil that receives nothing. What is made of a part is made of the whole scan: all processes call
        :class:`~blockkit.mbdl.unrolled.UnrolledNetwork` or :func:`compressed_sensing` on theirs together, and all get
        the image. Coils are mixed, calibrated and compressed before. With one process this is the scan itself.

        Examples
        --------
        >>> part = scan.spread()
        >>> image = bk.compressed_sensing(part.encoding(), part.kspace, n_iterations=2, wavelet="haar")
        """
        group = join()
        if group.size == 1 or self.group.size > 1:
            return self
        own = group.share(self.n_coils)
        return replace(self, kspace=_own(self.kspace, own), maps=_own(self.maps, own), group=group)

    @property
    def image_shape(self) -> Shape3:
        """Shape (z, y, x) of the image."""
        _, z, y, x = self.maps.shape
        return z, y, x

    @property
    def n_coils(self) -> int:
        """Number of coils: of a scan that is spread, of those of this process."""
        return int(self.maps.shape[0])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scan to an HDF5 file, by custom ``.h5``; an older file is replaced once the new one is whole."""
        if self.group.size > 1:
            raise ValueError("this scan is spread over processes, and has the coils of one: save it before.")
        arrays = {name: getattr(self, name) for name in ARRAYS}
        known = {name: a.detach().cpu().resolve_conj().resolve_neg() for name, a in arrays.items() if a is not None}
        write_scan_file(path, {name: a.numpy() for name, a in known.items()}, self.voxel_size)

    def __repr__(self) -> str:
        return (
            f"Scan(image_shape={self.image_shape}, n_coils={self.n_coils}, n_samples={self.kspace.shape[1]}, "
            f"reference={'yes' if self.reference is not None else 'no'}"
            + (f", process {self.group.rank} of {self.group.size})" if self.group.size > 1 else ")")
        )


def _own(array: Tensor, coils: slice) -> Tensor:
    """Return some coils, in memory of their own, or one of zeros if there are none."""
    return array[coils].clone() if coils.stop > coils.start else torch.zeros_like(array[:1])


def check_shapes(
    kspace: Tensor,
    trajectory: Tensor,
    maps: Tensor,
    reference: Tensor | None = None,
    field_map: Tensor | None = None,
    times: Tensor | None = None,
) -> None:
    """Raise unless the arrays of a scan fit each other; values are not looked at, so tensors without memory will do."""
    sizes, points, coils = tuple(kspace.shape), tuple(trajectory.shape), tuple(maps.shape)
    if len(sizes) != 2:
        raise ValueError(f"kspace has shape {sizes}, expected (coil, sample). For one coil, pass kspace[None].")
    if len(points) != 2 or points[1] != 3:
        raise ValueError(f"trajectory has shape {points}, expected (sample, 3), columns kz ky kx.{slice_hint(points)}")
    if len(coils) != 4:
        hint = " For one coil, pass maps[None]; for one slice, maps[:, None]." if len(coils) == 3 else ""
        raise ValueError(f"maps has shape {coils}, expected (coil, z, y, x).{hint}")
    if sizes[1] != points[0]:
        raise ValueError(f"kspace has {sizes[1]} samples, and trajectory {points[0]}: expected the same number.")
    if sizes[0] != coils[0]:
        raise ValueError(f"kspace has {sizes[0]} coils, and maps {coils[0]}: expected the same number.")
    if min(sizes) < 1 or min(coils) < 1:
        raise ValueError(f"kspace has shape {sizes} and maps {coils}: expected at least one along each axis.")
    if reference is not None:
        check_image(reference, coils[1:], "reference")
    if (field_map is None) != (times is None):
        there, missing = ("times", "field_map") if field_map is None else ("field_map", "times")
        raise ValueError(f"{there} is given and {missing} is None, expected both or neither. Pass {missing} too.")
    if field_map is not None and tuple(field_map.shape) != coils[1:]:
        raise ValueError(f"field_map has shape {tuple(field_map.shape)}, expected {coils[1:]}.")
    if times is not None and tuple(times.shape) != sizes[1:]:
        raise ValueError(
            f"times has shape {tuple(times.shape)}, expected (sample,) = ({sizes[1]},). "
            "If all readouts are alike, write times.repeat(n_readouts)."
        )


def load_scan(path: str | os.PathLike[str], *, spread: bool = False) -> Scan:
    """Read a scan that :meth:`Scan.save` wrote.

    Parameters
    ----------
    path
        The HDF5 file; :mod:`blockkit.data.formats` says what is in it.
    spread
        Read this process's part, as :meth:`Scan.spread` gives it, and of k-space and maps no more than that. All
        processes call it, and if one fails, all do.

    Returns
    -------
    Scan
        With all arrays in memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ScanFileError
        If the file is cut short, is not HDF5, lacks something, or holds arrays that do not fit or are not finite.

    Examples
    --------
    >>> scan.save("scan.h5")
    >>> bk.load_scan("scan.h5").kspace.shape
    torch.Size([4, 2560])
    """
    group = join() if spread else ALONE
    return group.together("load_scan", lambda: _load(path, group))


def _load(path: str | os.PathLike[str], group: Group) -> Scan:
    arrays, voxel_size = read_scan_file(path, group)
    try:
        tensors = {name: torch.from_numpy(a) for name, a in arrays.items()}
        return Scan(**tensors, voxel_size=voxel_size, group=group)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ScanFileError(f"'{os.fspath(path)}' holds a scan that does not fit together: {error}") from error


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


def _check_dtype(value: Tensor, name: str) -> None:
    if name in ("trajectory", "field_map", "times"):
        if value.dtype != torch.float32:
            raise TypeError(f"{name} has dtype {value.dtype}, expected torch.float32. Write {name}.float().")
        return
    check_complex(value, name)
    if value.dtype != torch.complex64:
        raise TypeError(f"{name} has dtype {value.dtype}, expected torch.complex64. Write {name}.to(torch.complex64).")
