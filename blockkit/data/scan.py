"""A scan: k-space with all that is needed to reconstruct it."""

import os
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blockkit.checks import Shape3, check_complex, check_finite, check_image, check_tensor, slice_hint
from blockkit.data.files import ScanFileError, check_voxel_size
from blockkit.data.formats import ARRAYS, read_scan_file, write_scan_file
from blockkit.group import ALONE, Group, join
from blockkit.physics.sense import Encoding


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


def _check_dtype(value: Tensor, name: str) -> None:
    if name in ("trajectory", "field_map", "times"):
        if value.dtype != torch.float32:
            raise TypeError(f"{name} has dtype {value.dtype}, expected torch.float32. Write {name}.float().")
        return
    check_complex(value, name)
    if value.dtype != torch.complex64:
        raise TypeError(f"{name} has dtype {value.dtype}, expected torch.complex64. Write {name}.to(torch.complex64).")
