"""What several commands share: options, the device, the model, and checks before the work begins."""

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import torch

from blockkit.checks import Shape3, check_shape3
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import load_model, pretrained

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
BLOCK_SHAPE = (64, 64, 64)
ZYX = ("Z", "Y", "X")
TYPED = {  # what the library says to write, and what it is called here
    r"fit\(\.\.\., check_memory=False\)": "--ignore-memory",
    r"reconstruct_folder\(\.\.\., check_memory=False\)": "--ignore-memory",
    r"by again=True": "by --again",
    r'model\.block_shape = "auto"': "--block-shape auto",
    r"model\.block_shape = \((\d+), (\d+), (\d+)\)": r"--block-shape \1 \2 \3",
}
DEVICES = ("auto", "cpu", "cuda", "mps")


def add_command(commands: Commands, name: str, usage: str, summary: str, description: str) -> argparse.ArgumentParser:
    """Return the parser of a new command, which takes no abbreviated options."""
    return commands.add_parser(
        name,
        usage=f"blockkit {name} {usage}",
        help=summary,
        description=description,
        allow_abbrev=False,
        formatter_class=partial(argparse.HelpFormatter, max_help_position=32),
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add what says which model runs, where and how."""
    parser.add_argument("--weights", type=Path, metavar="FILE", help="mbdl: weights file; without it, the shipped one")
    add_block_option(parser, "mbdl: block in voxels (default 64 64 64), auto: largest that fits")
    add_device_option(parser)
    parser.add_argument(
        "--ignore-memory", action="store_true", default=None, help="mbdl: start also what will not fit into memory"
    )


def add_block_option(parser: argparse.ArgumentParser, said: str) -> None:
    """Add the block: three numbers, or auto."""
    parser.add_argument("--block-shape", nargs="+", action=_BlockShape, metavar=("Z", "Y X"), help=said)


class _BlockShape(argparse.Action):
    """Takes three whole numbers, or auto."""

    def __call__(
        self, parser: argparse.ArgumentParser, args: argparse.Namespace, words: object, option: str | None = None
    ) -> None:
        given = list(map(str, words)) if isinstance(words, list) else []
        if given != ["auto"] and (len(given) != 3 or not all(word.removeprefix("-").isdecimal() for word in given)):
            parser.error(f"{option} has {' '.join(given)!r}, expected Z Y X, such as 64 64 64, or auto.")
        setattr(args, self.dest, "auto" if given == ["auto"] else tuple(map(int, given)))


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add what says where to compute."""
    parser.add_argument(
        "--device",
        default="auto",
        choices=DEVICES,
        metavar="D",
        help="auto (default: CUDA, or else the CPU), cpu, cuda",
    )


def pick_device(name: str) -> torch.device:
    """Return the device to compute on: a GPU with CUDA if there is one, or else the CPU, saying so for Apple's MPS."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU with CUDA here. Leave the option out to use the CPU.")
    if name == "mps" or (name == "auto" and torch.backends.mps.is_available()):
        print("Apple's MPS lacks operations that the NUFFT needs: using the CPU.", file=sys.stderr)
        return torch.device("cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def find_model(weights: Path | None, block_shape: Shape3 | Literal["auto"] | None) -> UnrolledNetwork:
    """Return the model of a weights file, or the shipped one."""
    model = pretrained() if weights is None else load_model(weights)
    model.block_shape = check_block(block_shape)
    return model


def check_block(block_shape: Shape3 | Literal["auto"] | None) -> Shape3 | Literal["auto"]:
    """Return the block that was typed, or the default; raise if it has no voxels."""
    return "auto" if block_shape == "auto" else check_shape3(block_shape or BLOCK_SHAPE, "block_shape")


def as_options(said: str) -> str:
    """Return a message of the library with what is to be typed here."""
    for here, there in TYPED.items():
        said = re.sub(here, there, said)
    return said


def check_output(path: Path, suffixes: Sequence[str], *inputs: Path | None) -> None:
    """Raise unless a file can be written to ``path``, over none of ``inputs``: before the work, not after it."""
    wanted = " or ".join(suffixes)
    if not path.name.endswith(tuple(suffixes)) or path.name in suffixes:
        raise ValueError(f"The output is {path}, expected a name that ends in {wanted}.")
    if path.is_dir():
        raise ValueError(f"The output {path} is a folder. Add a file name: -o {path / ('new' + suffixes[-1])}")
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
