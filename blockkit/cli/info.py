"""``blockkit info``: say what is in a file, or which files of a folder are good."""

import argparse
from pathlib import Path

from blockkit.cli.shared import Commands, add_command
from blockkit.data.folder import ScanFolder
from blockkit.data.info import describe_file


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "info",
        "FILE",
        "say what is in a scan file, or in a folder of them",
        "Say what is in FILE and what is missing to reconstruct it, without reading it whole; or, of a folder of "
        "scans, what is wrong with which.",
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="scan in HDF5, ISMRMRD, .cfl, .npz, .npy, .mat; image in .nii; folder"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print it."""
    folder = args.file.is_dir() and not any(args.file.glob("*.npy"))
    print(ScanFolder(args.file).check() if folder else describe_file(args.file))
