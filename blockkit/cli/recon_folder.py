"""``blockkit recon FOLDER``: every scan of a folder, by several processes if wanted, and only those not done yet."""

import argparse
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

from blockkit.classic.compressed_sensing import compressed_sensing
from blockkit.cli.methods import gridding
from blockkit.cli.shared import as_options, find_model, pick_device
from blockkit.cli.source import SAYS, open_path
from blockkit.data.folder import ScanFolder
from blockkit.folders.folder_recon import reconstruct_folder
from blockkit.folders.one_scan import Method
from blockkit.folders.scan_queue import ScanResult, printed

OPTIONS = ("pattern", "workers", "again")


def add_folder_options(parser: argparse.ArgumentParser) -> None:
    """Add what is said of a folder alone."""
    parser.add_argument("--pattern", metavar="GLOB", help="folder: which files, such as '**/*_kspace.cfl'")
    parser.add_argument("--workers", type=int, metavar="N", help="folder: so many scans at a time (default 1)")
    parser.add_argument("--again", action="store_true", default=None, help="folder: replace images made otherwise")


def is_folder(path: Path) -> bool:
    """Tell a folder of scans from a scan, which a folder of ``.npy`` files is."""
    return path.is_dir() and not any(path.glob("*.npy"))


def check_single(args: argparse.Namespace) -> None:
    """Raise if a file is given what belongs to a folder."""
    for name in OPTIONS:
        if getattr(args, name) is not None:
            raise ValueError(f"--{name} belongs to a folder of scans, and '{args.file}' is none. Leave it out.")


def run_folder(args: argparse.Namespace) -> int:
    """Reconstruct what is not done yet, and say what came of it; return 1 if scans failed."""
    device = pick_device(args.device).type
    method = _method(args, device)
    said = {name: getattr(args, name) for name in (*SAYS, "n_coils") if getattr(args, name) is not None}
    load = partial(open_path, **said) if said or args.pattern else None
    folder = ScanFolder(args.file, args.pattern, load=load, cache_gib=0)
    n_workers = 1 if args.workers is None else args.workers
    if device == "cuda" and n_workers == 1:
        workers: int | list[str] = [f"cuda:{os.environ.get('LOCAL_RANK', 0)}"]
    else:
        workers = [f"cuda:{i}" for i in range(n_workers)] if device == "cuda" else n_workers
    result = reconstruct_folder(
        folder,
        args.output,
        method,
        workers=workers,
        again=bool(args.again),
        check_memory=not args.ignore_memory,
        watch=_print,
    )
    print(as_options(str(result)))
    return 1 if result.problems else 0


def _print(one: ScanResult) -> None:
    printed(replace(one, problem=as_options(one.problem)) if one.problem else one)


def _method(args: argparse.Namespace, device: str) -> Method:
    if args.method == "mbdl":
        model: Method = find_model(args.weights, args.block_shape).to(device)
        return model
    if args.method == "gridding":
        return gridding
    chosen = {name: getattr(args, name) for name in ("reg_weight", "n_iterations")}
    return partial(compressed_sensing, **{name: value for name, value in chosen.items() if value is not None})
