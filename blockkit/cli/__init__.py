"""The command line: one module a command, and what they share."""

import argparse
import io
import sys
from collections.abc import Sequence

from blockkit.cli import info, plan, recon, train, view
from blockkit.cli.shared import as_options
from blockkit.mbdl.shortage import is_out_of_memory

COMMANDS = (info, plan, recon, view, train)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return 0, or 2 after one message on stderr that says what was wrong."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # any path can be printed, in any encoding
    args = _make_parser().parse_args(argv)
    try:
        return int(args.run(args) or 0)
    except (OSError, ValueError, TypeError) as error:
        print(f"blockkit: {as_options(str(error))}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        said = as_options(str(error)) if isinstance(error, MemoryError) else ""
        said = said or "out of memory. For mbdl, smaller blocks need less: --block-shape 32 32 32."
        print(f"blockkit: {said}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"blockkit: {error or 'stopped; nothing was written.'}", file=sys.stderr)
        return 130


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="blockkit",
        description="Reconstruct 3D non-Cartesian MRI scans, and train on them. Not for clinical use.",
        epilog="blockkit COMMAND --help says more of each.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for module in COMMANDS:
        module.add(commands)
    return parser
