"""The ways to reconstruct that the command line offers, each made ready to run."""

import argparse
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm.auto import tqdm

from blockkit.checks import check_count
from blockkit.classic.compressed_sensing import compressed_sensing
from blockkit.cli.shared import add_model_options, find_model, pick_device
from blockkit.data.scan import Scan
from blockkit.mbdl.automatic import in_fitting_blocks, settled
from blockkit.mbdl.data_consistency import DataTerm
from blockkit.mbdl.room import check_room
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.physics.sense import Encoding

METHODS = ("gridding", "cs", "mbdl")
# Each option of one method only, so that an option which would be ignored is refused.
OPTIONS_OF = {
    "weights": "mbdl",
    "block_shape": "mbdl",
    "ignore_memory": "mbdl",
    "reg_weight": "cs",
    "n_iterations": "cs",
}

Method = Callable[[bool], Tensor]  # in earnest, with a bar; or only for its memory, with few iterations
FEW = 3  # iterations: the memory does not grow with more


def add_method_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the methods."""
    add_model_options(parser)
    parser.add_argument("--reg-weight", type=float, metavar="W", help="cs: fraction, 1 gives an image of zeros")
    parser.add_argument("--n-iterations", type=int, metavar="N", help="cs: at most so many iterations")


def check_options(args: argparse.Namespace, methods: list[str]) -> None:
    """Raise if an option belongs to a method that will not run, or is out of range."""
    for option, method in OPTIONS_OF.items():
        if getattr(args, option) is not None and method not in methods:
            name, used = "--" + option.replace("_", "-"), ", ".join(methods)
            raise ValueError(f"{name} belongs to --method {method}, and the method is {used}. Leave it out.")
    if args.n_iterations is not None:
        check_count(args.n_iterations, "n_iterations")


def make_ready(scan: Scan, methods: list[str], args: argparse.Namespace) -> dict[str, Method]:
    """Return what makes the image (z, y, x) of a scan by each method."""
    device = pick_device(args.device)
    model = find_model(args.weights, args.block_shape).to(device) if "mbdl" in methods else None
    if model is not None:
        model = settled(model, scan) if args.block_shape == "auto" else model
        if not args.ignore_memory:
            check_room(model, scan, training=False, unless="--ignore-memory")
    automatic = args.block_shape == "auto"
    A = scan.encoding(device)
    kspace = scan.kspace.to(device)
    if methods != ["cs"]:
        _ = A.dcf  # once, and so in no method's time
    chosen = {name: getattr(args, name) for name in ("reg_weight", "n_iterations")}
    given = {name: value for name, value in chosen.items() if value is not None}
    few = {**given, "n_iterations": min(FEW, args.n_iterations or FEW)}
    ways: dict[str, Method] = {
        "gridding": lambda earnest: gridding(A, kspace),
        "cs": lambda earnest: compressed_sensing(A, kspace, progress=earnest, **(given if earnest else few)),
    }
    if model is not None:
        ways["mbdl"] = lambda earnest: run_model(model, A, kspace, progress=earnest, automatic=automatic)
    return {name: ways[name] for name in methods}


def gridding(A: Encoding, kspace: Tensor) -> Tensor:
    """Return the gridding reconstruction."""
    return A.adjoint(A.dcf * kspace)


@torch.no_grad()
def run_model(model: UnrolledNetwork, A: Encoding, kspace: Tensor, *, progress: bool, automatic: bool) -> Tensor:
    """Return ``model(A, kspace)``, with a bar over the unrolls if wanted, and in smaller blocks if need be."""

    def unroll(model: UnrolledNetwork, data: DataTerm) -> Tensor:
        x = data.start
        for iterate in tqdm(model.iterates(data), total=model.n_unrolls, unit="unroll", disable=not progress):
            x = iterate
        return x * data.scale

    return in_fitting_blocks(model, A, kspace, unroll=unroll, automatic=automatic)
