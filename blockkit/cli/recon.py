"""``blockkit recon``: reconstruct a scan, or those of a folder, and write the images."""

import argparse
import time
from pathlib import Path

from blockkit.cli.methods import METHODS, add_method_options, check_options, make_ready
from blockkit.cli.recon_folder import add_folder_options, check_single, is_folder, run_folder
from blockkit.cli.shared import Commands, add_command, check_output
from blockkit.cli.source import add_source_options, open_source
from blockkit.data.formats import save_nifti

SUFFIXES = (".nii", ".nii.gz")


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "recon",
        "FILE|FOLDER -o OUT [--method M] [options]",
        "reconstruct a scan, or a folder of them",
        "Reconstruct a scan in HDF5, ISMRMRD, .cfl, .npz or .mat, or all in a folder; write NIfTI images.",
    )
    add_source_options(parser)
    parser.add_argument(
        "-o", "--output", required=True, type=Path, metavar="OUT", help="image, .nii or .nii.gz; or their folder"
    )
    parser.add_argument(
        "--method", default="mbdl", choices=METHODS, metavar="M", help="gridding, cs, or mbdl (default)"
    )
    add_method_options(parser)
    add_folder_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reconstruct, write, and say so; return 1 if scans of a folder failed."""
    check_options(args, [args.method])
    if is_folder(args.file):
        return run_folder(args)
    check_single(args)
    check_output(args.output, SUFFIXES, args.file, args.weights)
    scan = open_source(args)
    started = time.perf_counter()
    image = make_ready(scan, [args.method], args)[args.method](True)
    save_nifti(args.output, image, scan.voxel_size)
    seconds = time.perf_counter() - started
    print(f"Wrote {args.output}: {args.method}, (z, y, x) = {scan.image_shape}, {seconds:.1f} s")
    return 0
