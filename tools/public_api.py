"""Write down the public face: every public name with its signature, and the methods that a user calls.

    python tools/public_api.py           print it
    python tools/public_api.py --write   store it in tests/public_api.txt, after a change that was meant

The test beside that file fails when the two differ: nothing public comes, goes or changes unnoticed.
"""

import argparse
import inspect
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import blockkit as bk

LOADED_WHEN_ASKED_FOR = ("MemoryExplorer", "SliceViewer", "TrainingView")
STORED = Path(__file__).parents[1] / "tests" / "public_api.txt"


def public_api() -> str:
    """Return one line a name, sorted, without annotations: parameters, their order and their defaults."""
    names = sorted([*bk.__all__, *LOADED_WHEN_ASKED_FOR])
    lines = [line for name in names for line in _lines(f"bk.{name}", getattr(bk, name))]
    return "\n".join(lines) + "\n"


def _lines(name: str, thing: Any) -> Iterator[str]:
    if inspect.isclass(thing):
        yield f"class {name}{_parameters(thing)}"
        for member in sorted(_own(thing)):
            value = inspect.getattr_static(thing, member)
            if isinstance(value, property):
                yield f"    {name}.{member}"
            elif callable(getattr(thing, member)):
                yield f"    {name}.{member}{_parameters(getattr(thing, member))}"
    elif callable(thing):
        yield f"{name}{_parameters(thing)}"
    else:
        yield f"{name}: {type(thing).__name__}"


def _own(cls: type) -> set[str]:
    """Return the public members that blockkit itself gives a class."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("blockkit")]
    return {member for base in ours for member in vars(base) if not member.startswith("_")}


def _parameters(thing: Any) -> str:
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return "(...)"
    bare = [_bare(parameter) for parameter in signature.parameters.values() if parameter.name != "self"]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def _bare(parameter: inspect.Parameter) -> inspect.Parameter:
    """Return a parameter without its annotation; a default that is a function goes by its name."""
    default = parameter.default
    if inspect.isfunction(default):
        default = _Named(default.__name__)
    return parameter.replace(annotation=inspect.Parameter.empty, default=default)


class _Named:
    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None, prog="public_api")
    parser.add_argument("--write", action="store_true", help=f"store it in {STORED.parent.name}/{STORED.name}")
    text = public_api()
    if parser.parse_args(argv).write:
        STORED.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
