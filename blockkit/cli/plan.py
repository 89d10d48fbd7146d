"""``blockkit plan``: which block fits a budget, and what the bytes are for, before anything is allocated."""

import argparse
from pathlib import Path

from blockkit.checks import check_count
from blockkit.cli.shared import Commands, add_command, find_model
from blockkit.cli.source import add_source_options, look_at_source
from blockkit.group import Group
from blockkit.ledger import GIB
from blockkit.mbdl.footprint import Case
from blockkit.mbdl.offload import OFFLOADS
from blockkit.mbdl.planner import plan_run

TASKS = {"train": "A training step", "recon": "A reconstruction"}


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "plan",
        "FILE --budget-gib GIB [options]",
        "say which block fits a budget of memory",
        "Say with which block training on FILE, and reconstructing it, fits a budget, and what the bytes are for.",
    )
    add_source_options(parser)
    parser.add_argument("--budget-gib", required=True, type=float, metavar="GIB", help="memory, in 2^30 bytes")
    parser.add_argument("--task", choices=tuple(TASKS), help="default: both")
    parser.add_argument("--weights", type=Path, metavar="FILE", help="weights file; without it, the shipped one")
    parser.add_argument(
        "--offload",
        choices=[name for name in OFFLOADS if name is not None],
        help="train: where what the unrolls keep waits (default: in place)",
    )
    parser.add_argument("--n-devices", type=int, default=1, metavar="N", help="that share the volume; the plan of one")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print a table for each task, or what does not fit; raise if nothing does."""
    group = Group(0, check_count(args.n_devices, "--n-devices"))
    head, model = look_at_source(args), find_model(args.weights, None)
    n_coils = -(-head.n_coils // group.size)
    model.offload = args.offload
    print(f"{args.file}: {head}; {model.n_unrolls} unrolls", flush=True)
    tasks = list(TASKS) if args.task is None else [args.task]
    fits = False
    for task in tasks:
        training, off_resonance = task == "train", head.has_field_map
        case = Case(head.image_shape, n_coils, head.n_samples, training, off_resonance=off_resonance, group=group)
        try:
            text, fits = str(plan_run(model, case, args.budget_gib * GIB)), True
        except ValueError as error:
            text = f"does not fit: {error}"
        print(f"\n{TASKS[task]}: {text}", flush=True)
    if not fits:
        raise ValueError(f"nothing fits into {args.budget_gib:g} GiB. What would help stands above.")
