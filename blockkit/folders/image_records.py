"""What an image of a folder was made of: a record beside it, by which a repeated call knows what is done."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blockkit.data.files import printable
from blockkit.data.folder import ScanFolder
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import describe, sync_folder

FORMAT = "blockkit-image-1"


@dataclass(frozen=True)
class Place:
    """A scan of a folder, and where its image, its record and what belongs to the work on it are."""

    scan: Path
    name: str
    image: Path
    record: Path
    claim: Path
    under_way: Path


def places_of(folder: ScanFolder, output: Path) -> list[Place]:
    """Return where the images of a folder go: a scan's whole name, ``.nii.gz`` added, in the same sub-folders.

    So no two scans have one image. Scans below ``output`` are left out, if it lies within the folder.
    """
    inside = output.resolve()
    skips = inside != folder.path.resolve() and inside.is_relative_to(folder.path.resolve())
    scans = [path for path in folder.paths if not (skips and path.parent.resolve().is_relative_to(inside))]
    return [_place(path, path.relative_to(folder.path), output) for path in scans]


def _place(scan: Path, inside: Path, output: Path) -> Place:
    base, name = output / inside.parent, inside.name
    return Place(
        scan,
        inside.as_posix(),
        base / f"{name}.nii.gz",
        base / f"{name}.json",
        base / f".{name}.claim",
        base / f".{name}.part",
    )


def describe_method(method: object) -> dict[str, object]:
    """Say what makes an image, in plain JSON types: a model by its weights, a function by its name and options.

    What changes memory alone is left out: block, device, threads.

    Raises
    ------
    TypeError
        If it has no name, or an option that cannot be written down.
    """
    if isinstance(method, nn.Module):
        described = describe(method) if isinstance(method, UnrolledNetwork) else {"name": type(method).__qualname__}
        return {**described, "weights": _hash_of(method)}
    if isinstance(method, partial):
        options: dict[str, object] = {f"argument {i}": _plain(value) for i, value in enumerate(method.args)}
        options |= {name: _plain(value) for name, value in method.keywords.items()}
        return {**describe_method(method.func), **options}
    name = getattr(method, "__qualname__", "")
    if not callable(method) or not name or "<" in name:
        raise TypeError(
            f"{method!r} has no name to remember it by, expected a model, a function of a module, or functools.partial "
            "of one with its options."
        )
    return {"name": f"{method.__module__}.{name}"}


def _plain(value: object) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return describe_method(value)


def _hash_of(model: nn.Module) -> str:
    found = sha256()
    for name, value in sorted(model.state_dict().items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def made_from(place: Place, how: Mapping[str, object]) -> dict[str, object]:
    """Return what the image at a place is made from now: size and time of the scan's files, and how it is made."""
    files = {path.name: path.stat() for path in _files_of(place.scan)}
    return {"scan": {name: [at.st_size, at.st_mtime_ns] for name, at in files.items()}, **how}


def _files_of(scan: Path) -> list[Path]:
    """Return the files of a scan: with BART's, all those that are named alike."""
    if scan.suffix not in (".cfl", ".hdr"):
        return [scan]
    stem = scan.stem.removesuffix("_kspace")
    alike = (path for path in scan.parent.iterdir() if path.suffix in (".cfl", ".hdr") and path.stem.startswith(stem))
    return sorted(alike)


def read_record(place: Place) -> dict[str, Any]:
    """Return the record of a place; empty if there is none, or none that can be read."""
    try:
        found = json.loads(place.record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and found.get("format") == FORMAT else {}


def write_record(place: Place, content: Mapping[str, object]) -> None:
    """Write a record whole or not at all; it is on the disk when this returns."""
    place.under_way.mkdir(parents=True, exist_ok=True)
    beside = place.under_way / place.record.name
    with beside.open("w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, **content}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, place.record)
    sync_folder(place.record.parent)


def has_image(place: Place, record: Mapping[str, Any]) -> bool:
    """Tell whether the image that a record tells of is there, and whole."""
    try:
        return "image_bytes" in record and place.image.stat().st_size == record["image_bytes"]
    except OSError:
        return False


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what differs between what an image was made from and what it would be made from now; empty if nothing."""
    parts = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            parts.append(f"{name}: {differences(old, new)}")
        else:
            parts.append(f"{name} was {_short(old)}, is {_short(new)}")
    return ", ".join(parts)


def _short(value: object) -> str:
    text = printable(json.dumps(value))
    return text if len(text) <= 40 else f"{text[:12]}...{text[-4:]}"
