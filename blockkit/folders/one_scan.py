"""One scan of a folder: read, reconstructed, and written so that its image is whole or not there."""

import os
import shutil
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from socket import gethostname

import torch
from torch import Tensor, nn

from blockkit.data.files import printable
from blockkit.data.folder import read_scan
from blockkit.data.formats import save_nifti
from blockkit.data.opening import Opener
from blockkit.data.scan import Scan
from blockkit.folders.image_records import Place, made_from, write_record
from blockkit.mbdl.automatic import in_fitting_blocks, settled
from blockkit.mbdl.checkpoint import library_version
from blockkit.mbdl.room import check_room
from blockkit.mbdl.shortage import give_back_free_memory, is_out_of_memory
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import sync_folder
from blockkit.physics.sense import Encoding

Method = Callable[[Encoding, Tensor], Tensor]
UNLESS = "reconstruct_folder(..., check_memory=False)"


@dataclass(frozen=True)
class Recipe:
    """How every scan of a folder is reconstructed; can be sent to another process."""

    method: Method
    load: Opener | None
    device: str
    check_memory: bool
    how: Mapping[str, object]
    """What stands for method and loading in the records."""


@dataclass(frozen=True)
class Attempt:
    """What came of a scan."""

    seconds: float = 0.0
    problem: str | None = None
    lacked_room: bool = False
    warnings: tuple[str, ...] = ()


def attempt(place: Place, recipe: Recipe) -> Attempt:
    """Reconstruct a scan and write its image and record; what is wrong with it is returned, not raised."""
    began = time.perf_counter()
    problem, lacked_room = None, False
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", RuntimeWarning)
        try:
            _reconstruct(place, recipe, began)
        except Exception as error:  # a scan, a loader and a method can fail in any way
            lacked_room = is_out_of_memory(error)
            problem = printable(f"{error}" or type(error).__name__)
            if not isinstance(error, OSError | TypeError | ValueError | MemoryError):
                problem = f"{type(error).__name__}: {problem}"
    shutil.rmtree(place.under_way, ignore_errors=True)
    if lacked_room:
        give_back_free_memory()
    return Attempt(time.perf_counter() - began, problem, lacked_room, tuple(str(warning.message) for warning in said))


def _reconstruct(place: Place, recipe: Recipe, began: float) -> None:
    made = made_from(place, recipe.how)  # before it is read: a file that changes meanwhile is not taken for this one
    scan = read_scan(place.scan, recipe.load)
    image = image_of(scan, recipe)
    n_bytes = _write(place, image, scan)
    block = getattr(recipe.method, "block_shape", None)
    by = {"block_shape": block, "device": recipe.device, "n_threads": torch.get_num_threads(), "host": gethostname()}
    seconds = round(time.perf_counter() - began, 3)
    content = {"made_from": made, "image": place.image.name, "image_bytes": n_bytes, "seconds": seconds}
    write_record(place, {**content, "made_by": {"version": library_version(), **by}})


@torch.no_grad()
def image_of(scan: Scan, recipe: Recipe) -> Tensor:
    """Return the image of a scan, as ``recon`` makes it of a single file."""
    method, model = recipe.method, recipe.method if isinstance(recipe.method, UnrolledNetwork) else None
    if isinstance(method, nn.Module):
        method.eval()
    automatic = model is not None and model.block_shape == "auto"
    if model is not None:
        model = settled(model, scan) if automatic else model
        if recipe.check_memory:
            check_room(model, scan, training=False, unless=UNLESS)
    A, kspace = scan.encoding(recipe.device), scan.kspace.to(recipe.device)
    if model is not None:
        return in_fitting_blocks(model, A, kspace, automatic=automatic)
    return method(A, kspace)


def _write(place: Place, image: Tensor, scan: Scan) -> int:
    """Write an image beside its place, bring it to the disk, and rename it; return its size in bytes."""
    shutil.rmtree(place.under_way, ignore_errors=True)  # of a process that is gone
    place.under_way.mkdir(parents=True)
    path = place.under_way / place.image.name
    save_nifti(path, image, scan.voxel_size)
    _bring_to_disk(path)
    n_bytes = path.stat().st_size
    os.replace(path, place.image)
    sync_folder(place.image.parent)
    return n_bytes


def _bring_to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
