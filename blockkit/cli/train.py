"""``blockkit train``: train on a folder of scans and write the weights."""

import argparse
import sys
from pathlib import Path

import torch

from blockkit.checks import check_count
from blockkit.cli.shared import (
    Commands,
    add_block_option,
    add_command,
    add_device_option,
    as_options,
    check_block,
    check_output,
    find_model,
    pick_device,
)
from blockkit.data.files import counted
from blockkit.data.folder import ScanFolder
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.progress import History, Progress, ProgressBar
from blockkit.mbdl.training import TARGETS, fit
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import save_weights

NEW_RATE, GO_ON_RATE = 1e-3, 2e-4
SUFFIXES = (".safetensors",)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "train",
        "FOLDER -o WEIGHTS [options]",
        "train on a folder of scans",
        "Train on the scans in FOLDER (HDF5, or ISMRMRD with a trajectory) and write the best weights.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    option = parser.add_argument
    option("-o", "--output", required=True, type=Path, metavar="WEIGHTS", help="file to write, .safetensors")
    option("--weights", type=Path, metavar="FILE", help="start from these weights, not the shipped ones")
    option("--new", type=int, nargs=2, metavar=("N", "C"), help="start anew: N unrolls with C channels, such as 5 64")
    option(
        "--target",
        default="reference",
        choices=TARGETS,
        metavar="T",
        help="reference (default), or self, which needs no references",
    )
    option("--validation", type=float, default=0.2, metavar="SHARE", help="of the subjects, 0 for none (default 0.2)")
    option("--subject", metavar="REGEX", help="finds the subject in a path; default: sub-folder, or name up to '_'")
    option("--pattern", metavar="GLOB", help="which files, such as '**/*.h5'")
    option("--skip-bad", action="store_true", help="leave bad files out, instead of stopping")
    option("--n-steps", type=int, default=1000, metavar="N", help="one scan a step (default 1000)")
    option("--learning-rate", type=float, metavar="R", help=f"default {GO_ON_RATE:g}, with --new {NEW_RATE:g}")
    option("--no-augment", action="store_true", help="do not mirror scans and turn their phase")
    add_block_option(parser, "block in voxels (default 64 64 64), or auto: the largest that fits")
    option(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="written every 5 minutes; the run goes on from it if it is there",
    )
    option("--seed", type=int, default=0, metavar="N", help="draws split, order and augmentation (default 0)")
    option("--deterministic", action="store_true", help="the same bits from the same seed, on the CPU")
    add_device_option(parser)
    option("--ignore-memory", action="store_true", help="start also what will not fit into memory")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check the folder, train, write the weights, and say so; return 130 if the run was stopped before its end."""
    check_count(args.n_steps, "n_steps")
    rate = _learning_rate(args)
    check_output(args.output, SUFFIXES, args.weights, args.checkpoint)
    folder = _good_files(args)
    training, validation = folder.split(args.validation, seed=args.seed) if args.validation else (folder, folder[:0])
    model = _first_model(args).to(pick_device(args.device))
    bar = _Bar()
    print(_counts("to train on", training) + "; " + _counts("to validate", validation), flush=True)
    try:
        history = fit(
            model,
            training,
            target=args.target,
            validation=validation,
            n_steps=args.n_steps,
            learning_rate=rate,
            augment=not args.no_augment,
            checkpoint=args.checkpoint,
            seed=args.seed,
            check_memory=not args.ignore_memory,
            skip_bad=args.skip_bad,
            deterministic=args.deterministic,
            watch=bar,
        )
    except Exception as error:
        if bar.n_new:
            save_weights(model, args.output)
            print(f"Wrote {args.output}: the best weights of {counted(bar.step, 'step')}.", file=sys.stderr)
        if isinstance(error, MemoryError):
            raise MemoryError(as_options(str(error))) from error
        raise
    save_weights(model, args.output)
    print(f"Wrote {args.output}: {_result(history, args.target, args.n_steps)}")
    return 130 if history.interrupted else 0


class _Bar(ProgressBar):
    """The bar of :func:`fit`, which remembers how far the run got."""

    step = n_new = 0

    def __call__(self, progress: Progress) -> None:
        self.step, self.n_new = progress.step, progress.n_new
        super().__call__(progress)


def _learning_rate(args: argparse.Namespace) -> float:
    rate: float = (GO_ON_RATE if args.new is None else NEW_RATE) if args.learning_rate is None else args.learning_rate
    if not 0 < rate < float("inf"):
        raise ValueError(f"--learning-rate is {rate:g}, expected a number above 0, such as {GO_ON_RATE:g}.")
    return rate


def _good_files(args: argparse.Namespace) -> ScanFolder:
    folder = ScanFolder(args.folder, args.pattern, subject=args.subject)
    report = folder.check(needs_reference=args.target == "reference")
    if not report.bad or not args.skip_bad:
        return report.require()
    if not report.good:
        raise ValueError(f"No file is good.\n{report}")
    print(f"Left out {counted(len(report.bad), 'bad file')}:", *map(report.line, report.bad), sep="\n", file=sys.stderr)
    return report.good


def _first_model(args: argparse.Namespace) -> UnrolledNetwork:
    if args.new is None:
        return find_model(args.weights, args.block_shape)
    if args.weights is not None:
        raise ValueError("--new starts from no weights and --weights from some: leave one of them out.")
    n_unrolls, n_channels = args.new
    torch.manual_seed(args.seed)
    network = ResidualCNN(n_channels, 5, downsample=2, sees_gradient=True)
    return UnrolledNetwork(network, n_unrolls, shared_weights=False, block_shape=check_block(args.block_shape))


def _counts(what: str, folder: ScanFolder) -> str:
    return f"{counted(len(folder), 'scan')} of {counted(len(set(folder.subjects)), 'subject')} {what}"


def _result(history: History, target: str, n_steps: int) -> str:
    done = len(history.losses)
    steps = f"stopped after {done} of {n_steps} steps" if history.interrupted else counted(done, "step")
    few = max(1, done // 10)
    first, last = (sum(part) / few for part in (history.losses[:few], history.losses[-few:]))
    loss = f"loss {first:.4f} at first, {last:.4f} at the end" if done else "no loss"
    if not history.validation:
        return f"{steps}, {loss}"
    scores = [score for _, score in history.validation]
    best = f"{min(scores):.4f} held-out error" if target == "self" else f"{max(scores):.2f} dB"
    return f"{steps}, {loss}; validation at best {best}"
