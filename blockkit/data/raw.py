"""A raw scan: what a scanner's file holds, before coil maps are made from it."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from blockkit.checks import Shape3, check_complex, check_count, check_finite, check_shape3, check_tensor
from blockkit.data.files import ScanFileError, check_voxel_size
from blockkit.data.scan import Scan


@dataclass(frozen=True, eq=False)
class RawScan:
    r"""What a raw file holds: k-space, where it was sampled, what image is wanted, and noise if it was measured.

    :func:`load_ismrmrd`, :func:`load_cfl` and :func:`load_arrays` make one; a :class:`Scan` is made of it by
    ``raw.with_maps(maps)``. One slice is a volume one voxel thick: a trajectory ``(sample, 2)``, columns ky kx, gets
    kz = 0, and ``image_shape`` ``(y, x)`` becomes ``(1, y, x)``.

    Samples are :math:`y_s = \sum_r x_r \exp(-2\pi i\, k_s \cdot r)`, with r = 0 in voxel ``n // 2``. Nothing in a file
    tells the sign: if the image comes out mirrored through its center, it was the other one; pass ``-trajectory``.

    Parameters
    ----------
    kspace
        Complex64, shape ``(coil, sample)``, arbitrary unit, readout after readout.
    trajectory
        Float32, shape ``(sample, 3)``, columns kz ky kx, in cycles per field of view, ``-n/2`` to ``n/2``.
    image_shape
        ``(z, y, x)`` of the image that is wanted.
    voxel_size
        ``(z, y, x)`` in mm.
    noise
        Samples without signal, for prewhitening: complex64, shape ``(coil, sample)``, or None.
    n_readout
        Samples of each readout (spoke), if all have the same number, or None.
    maps
        Coil sensitivity maps if the file has them, complex64, shape ``(coil, z, y, x)``, or None.

    Raises
    ------
    ValueError
        If shapes do not fit each other, or a value is NaN or infinite.
    TypeError
        If an array is not a tensor, or of another dtype.

    Examples
    --------
    >>> raw = bk.RawScan(scan.kspace, scan.trajectory, (16, 12, 16), voxel_size=(2.0, 2.0, 2.0), n_readout=32)
    >>> raw.n_coils, raw.n_samples
    (4, 2560)
    >>> maps = bk.estimate_maps(raw.kspace, raw.trajectory, raw.image_shape, calibration_width=6)
    >>> raw.with_maps(maps).maps.shape
    torch.Size([4, 16, 12, 16])
    """

    kspace: Tensor
    trajectory: Tensor
    image_shape: Shape3
    voxel_size: tuple[float, float, float]
    noise: Tensor | None = None
    n_readout: int | None = None
    maps: Tensor | None = None

    def __post_init__(self) -> None:
        if isinstance(self.trajectory, Tensor) and self.trajectory.ndim == 2 and self.trajectory.shape[1] == 2:
            object.__setattr__(self, "trajectory", torch.nn.functional.pad(self.trajectory, (1, 0)))
        object.__setattr__(self, "image_shape", as_volume(self.image_shape))
        object.__setattr__(self, "voxel_size", check_voxel_size(self.voxel_size))
        check_tensor(self.kspace, "kspace")
        maps = torch.ones(len(self.kspace), 1, 1, 1, dtype=torch.complex64) if self.maps is None else self.maps
        Scan(self.kspace, self.trajectory, maps, self.voxel_size)  # the same checks
        if self.maps is not None and tuple(self.maps.shape[1:]) != self.image_shape:
            raise ValueError(
                f"maps has shape {tuple(self.maps.shape)}, expected (coil, z, y, x) with image_shape "
                f"{self.image_shape}."
            )
        if self.noise is not None:
            _check_noise(self.noise, self.n_coils)
        if self.n_readout is not None and self.n_samples % check_count(self.n_readout, "n_readout"):
            raise ValueError(
                f"n_readout is {self.n_readout}, expected a divisor of the {self.n_samples} samples, or None."
            )

    @property
    def n_coils(self) -> int:
        """Number of coils."""
        return int(self.kspace.shape[0])

    @property
    def n_samples(self) -> int:
        """Number of samples, of each coil."""
        return int(self.kspace.shape[1])

    @property
    def fov(self) -> tuple[float, float, float]:
        """Field of view (z, y, x) in mm."""
        z, y, x = (n * size for n, size in zip(self.image_shape, self.voxel_size, strict=True))
        return z, y, x

    def with_maps(self, maps: Tensor, *, kspace: Tensor | None = None, trajectory: Tensor | None = None) -> Scan:
        """Return the scan to reconstruct.

        Parameters
        ----------
        maps
            Complex64, shape ``(coil, z, y, x)``, with the coils of the k-space and ``image_shape``.
        kspace
            What has become of this k-space, such as by :func:`prewhiten`, :func:`compress_coils` or
            :func:`select_readouts`: complex64, shape ``(coil, sample)``. None takes it as it is.
        trajectory
            That of the samples, such as after :func:`select_readouts` or :func:`delay_gradients`: float32, shape
            ``(sample, 3)``, columns kz ky kx, cycles/FOV. None takes it as it is.

        Raises
        ------
        ValueError, TypeError
            If they do not fit each other.

        Examples
        --------
        >>> raw = bk.RawScan(scan.kspace, scan.trajectory, scan.image_shape, scan.voxel_size)
        >>> kspace, _ = bk.compress_coils(raw.kspace, 2)
        >>> maps = bk.estimate_maps(kspace, raw.trajectory, raw.image_shape, calibration_width=6)
        >>> raw.with_maps(maps, kspace=kspace).n_coils
        2
        """
        kspace = self.kspace if kspace is None else kspace
        trajectory = self.trajectory if trajectory is None else trajectory
        check_tensor(maps, "maps")
        check_tensor(kspace, "kspace")
        expected = (len(kspace), *self.image_shape)
        if tuple(maps.shape) != expected:
            hint = ""
            if tuple(maps.shape[1:]) == self.image_shape and kspace is self.kspace:
                hint = " If coils were combined, pass their k-space too: raw.with_maps(maps, kspace=kspace)."
            raise ValueError(f"maps has shape {tuple(maps.shape)}, expected (coil, z, y, x) = {expected}.{hint}")
        return Scan(kspace, trajectory, maps, self.voxel_size)

    def __repr__(self) -> str:
        there = [name for name in ("noise", "maps") if getattr(self, name) is not None]
        return (
            f"RawScan(image_shape={self.image_shape}, n_coils={self.n_coils}, n_samples={self.n_samples}, "
            f"n_readout={self.n_readout}, with {' and '.join(there) or 'neither noise nor maps'})"
        )


def as_volume(image_shape: Sequence[int]) -> Shape3:
    """Return (z, y, x), with one voxel along z for (y, x)."""
    shape = tuple(image_shape)
    return check_shape3((1, *shape) if len(shape) == 2 else shape)


def as_raw(scan: Scan | RawScan) -> RawScan:
    """Return what a raw file holds of a scan."""
    if isinstance(scan, RawScan):
        return scan
    if not isinstance(scan, Scan):
        raise TypeError(f"scan is a {type(scan).__name__}, expected a Scan or a RawScan.")
    return RawScan(scan.kspace, scan.trajectory, scan.image_shape, scan.voxel_size, maps=scan.maps)


@contextmanager
def named_in_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Name the file in the error about what it holds."""
    try:
        yield
    except ScanFileError:
        raise
    except (TypeError, ValueError) as error:
        raise ScanFileError(f"'{os.fspath(path)}': {error}") from error


def _check_noise(noise: Tensor, n_coils: int) -> None:
    check_tensor(noise, "noise")
    check_complex(noise, "noise")
    if noise.ndim != 2 or noise.shape[0] != n_coils or noise.shape[1] < 1:
        raise ValueError(f"noise has shape {tuple(noise.shape)}, expected (coil, sample) with {n_coils} coils.")
    if noise.dtype != torch.complex64:
        raise TypeError(f"noise has dtype {noise.dtype}, expected torch.complex64. Write noise.to(torch.complex64).")
    check_finite(noise, "noise")
