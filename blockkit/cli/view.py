"""``blockkit view``: reconstruct a scan by several methods and write one page that shows them."""

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from blockkit.blockwise.memory import measure_peak, predict_peak
from blockkit.cli.methods import METHODS, Method, add_method_options, check_options, make_ready
from blockkit.cli.shared import Commands, add_command, check_output
from blockkit.cli.source import add_source_options, open_source

if TYPE_CHECKING:
    from blockkit.show.report import Result

NAMES = {"gridding": "gridding", "cs": "CS", "mbdl": "MBDL"}


def add(commands: Commands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "view",
        "FILE -o PAGE [--methods M ...] [options]",
        "write a page with the reconstructions of a scan",
        "Reconstruct FILE by several methods; write one HTML page: planes, scores, memory and times.",
    )
    add_source_options(parser)
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="PAGE", help="page to write, .html")
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(METHODS),
        choices=METHODS,
        metavar="M",
        help="gridding, cs, mbdl: default, all",
    )
    add_method_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Reconstruct, write the page, and say so."""
    from blockkit.show.report import write_report  # matplotlib takes a second, which the other commands need not

    methods = list(dict.fromkeys(args.methods))
    check_options(args, methods)
    check_output(args.output, (".html",), args.file, args.weights)
    scan = open_source(args)
    ready = make_ready(scan, methods, args)
    results = {NAMES[name]: _run(method) for name, method in ready.items()}
    write_report(args.output, scan, results, title=args.file.name)
    print(f"Wrote {args.output}: {', '.join(results)}, {args.output.stat().st_size / 2**20:.1f} MiB")


def _run(method: Method) -> "Result":
    """Run a method; what it takes is predicted, or counted where only computing tells it."""
    from blockkit.show.report import Result

    started = time.perf_counter()
    image = method(True).cpu()
    seconds = time.perf_counter() - started
    try:
        return Result(image, seconds, predict_peak(lambda: method(False)), predicted=True)
    except ValueError:
        with measure_peak() as peak:
            method(False)
        return Result(image, seconds, peak.bytes, predicted=False)
