"""The command line: say what is in a scan file, or reconstruct it and write the image."""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from blockkit.checks import check_count, check_shape3
from blockkit.classic.compressed_sensing import compressed_sensing
from blockkit.data.formats import save_nifti
from blockkit.data.info import describe_file
from blockkit.data.scan import Scan, load_scan
from blockkit.mbdl.data_consistency import prepare
from blockkit.mbdl.room import check_room
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import load_model, pretrained
from blockkit.physics.sense import Encoding

SUFFIXES = (".nii", ".nii.gz")
BLOCK_SHAPE = (64, 64, 64)
# Each option of one method only, so that an option which would be ignored is refused.
OPTIONS_OF = {
    "weights": "mbdl",
    "block_shape": "mbdl",
    "ignore_memory": "mbdl",
    "reg_weight": "cs",
    "n_iterations": "cs",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 after one message on stderr that says what was wrong."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # any path can be printed, in any encoding
    args = _make_parser().parse_args(argv)
    try:
        if args.command == "info":
            print(describe_file(args.file))
        else:
            _recon(args)
    except (OSError, ValueError, TypeError) as error:
        print(f"blockkit: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        said = str(error) if isinstance(error, MemoryError) else ""
        said = said or "out of memory. For mbdl, smaller blocks need less: --block-shape 32 32 32."
        print(f"blockkit: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("blockkit: stopped; nothing was written.", file=sys.stderr)
        return 130
    return 0


def reconstruct(scan: Scan, args: argparse.Namespace) -> Tensor:
    """Return the image (z, y, x) of a scan by gridding, compressed sensing, or a trained model."""
    device = pick_device(args.device)
    model = _load_model(args).to(device) if args.method == "mbdl" else None
    if model is not None and not args.ignore_memory:
        check_room(model, scan, training=False, unless="--ignore-memory")
    A = Encoding(scan.trajectory.to(device), scan.maps)
    kspace = scan.kspace.to(device)
    with torch.no_grad():
        if model is not None:
            return run_model(model, A, kspace)
        if args.method == "gridding":
            return A.adjoint(A.dcf * kspace)
        chosen = {name: getattr(args, name) for name in ("reg_weight", "n_iterations")}
        given = {name: value for name, value in chosen.items() if value is not None}
        return compressed_sensing(A, kspace, progress=True, **given)


def run_model(model: UnrolledNetwork, A: Encoding, kspace: Tensor) -> Tensor:
    """Return ``model(A, kspace)``, with a progress bar over the unrolls."""
    data = prepare(A, kspace, model.data_term)
    x = data.start
    for k in tqdm(range(model.n_unrolls), unit="unroll"):
        x = model.regularize(model.data_consistency(x, k, data), k)
    return x * data.scale


def pick_device(name: str) -> torch.device:
    """Return the device to compute on: a GPU with CUDA if there is one, or else the CPU, saying so for Apple's MPS."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU with CUDA here. Leave the option out to use the CPU.")
    if name == "mps" or (name == "auto" and torch.backends.mps.is_available()):
        print("Apple's MPS lacks operations that the NUFFT needs: using the CPU.", file=sys.stderr)
        return torch.device("cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _recon(args: argparse.Namespace) -> None:
    for option, method in OPTIONS_OF.items():
        if getattr(args, option) is not None and args.method != method:
            name = "--" + option.replace("_", "-")
            raise ValueError(f"{name} belongs to --method {method}, and the method is {args.method}. Leave it out.")
    if args.n_iterations is not None:
        check_count(args.n_iterations, "n_iterations")
    check_output(args.output, args.file, args.weights)
    scan = load_scan(args.file)
    started = time.perf_counter()
    image = reconstruct(scan, args)
    save_nifti(args.output, image, scan.voxel_size)
    seconds = time.perf_counter() - started
    print(f"Wrote {args.output}: {args.method}, (z, y, x) = {scan.image_shape}, {seconds:.1f} s")


def check_output(path: Path, *inputs: Path | None) -> None:
    """Raise unless an image can be written to ``path``, over none of ``inputs``: before the work, not after it."""
    if not path.name.endswith(SUFFIXES) or path.name in SUFFIXES:
        raise ValueError(f"The output is {path}, expected a name that ends in .nii or .nii.gz.")
    if path.is_dir():
        raise ValueError(f"The output {path} is a folder. Add a file name: -o {path / 'image.nii.gz'}")
    for source in inputs:
        if source is not None and path.exists() and source.exists() and path.samefile(source):
            raise ValueError(f"The output {path} is the input {source}, which would be lost. Give -o another name.")
    if not path.parent.is_dir():
        raise ValueError(f"There is no folder {path.parent} to write {path.name} into. Make it first.")
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"Nothing can be written into {path.parent}: {error.strerror}.") from error


def _load_model(args: argparse.Namespace) -> UnrolledNetwork:
    model = pretrained() if args.weights is None else load_model(args.weights)
    model.block_shape = check_shape3(args.block_shape or BLOCK_SHAPE, "block_shape")
    return model


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="blockkit", description="Reconstruct 3D non-Cartesian MRI scans.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{recon,info}")
    info = commands.add_parser(
        "info",
        help="say what is in a scan file",
        description="Say what is in a file and what is missing to reconstruct it, without reading it whole.",
        allow_abbrev=False,
    )
    info.add_argument(
        "file", type=Path, metavar="FILE", help="scan in HDF5, ISMRMRD, .cfl, .npz, .npy, .mat; image in .nii"
    )
    recon = commands.add_parser(
        "recon",
        help="reconstruct a scan",
        description="Reconstruct a scan and write a NIfTI image. Not for clinical use.",
        allow_abbrev=False,
    )
    recon.add_argument("file", type=Path, metavar="FILE", help="scan in HDF5")
    recon.add_argument("--method", required=True, choices=("mbdl", "cs", "gridding"))
    recon.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="image, .nii or .nii.gz")
    recon.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    recon.add_argument("--weights", type=Path, metavar="FILE", help="mbdl: weights file; without it, the shipped one")
    recon.add_argument(
        "--block-shape", type=int, nargs=3, metavar=("Z", "Y", "X"), help="mbdl: block in voxels (default 64 64 64)"
    )
    recon.add_argument(
        "--ignore-memory", action="store_true", default=None, help="mbdl: start also what will not fit into memory"
    )
    recon.add_argument("--reg-weight", type=float, metavar="W", help="cs: fraction, 1 gives an image of zeros")
    recon.add_argument("--n-iterations", type=int, metavar="N", help="cs: at most so many iterations")
    return parser
