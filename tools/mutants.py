"""Mutation testing: break a module in every small way, one at a time, and see whether a test notices.

    python tools/mutants.py blocks                all mutants of blockwise/blocks.py
    python tools/mutants.py planner --share 0.5   half of them, drawn with --seed

A second run takes only the mutants that survived the first, unless ``--anew`` is given.

tools/mutations.py says which mutants there are: those of mutmut 3, and more.

mutmut's own runner is not used. It leaves out every function with a decorator, and so the backward of the blocks and
the properties of the encoding operator. Here pytest collects the tests once; for each mutant the process forks, the
child exchanges the code of the module's functions where they are, and runs the tests that enter the mutated function:
those first that noticed another mutant of it, then the quickest of each, up to the first that fails. So a mutant costs
what its tests cost, and the import of PyTorch is paid once.

Writes what happened to each mutant to build/mutants/, and benchmarks/results/mutants.md, with the explanation of each
survivor from tools/mutants_explained.toml.
"""

import argparse
import functools
import inspect
import json
import os
import random
import re
import signal
import sys
import time
import tomllib
import types
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mutations import Mutant, mutants_of
from torch._subclasses.fake_tensor import FakeTensorMode

ROOT = Path(__file__).parents[1]
STORE = ROOT / "build" / "mutants"
TABLE = ROOT / "benchmarks" / "results" / "mutants.md"
EXPLAINED = ROOT / "tools" / "mutants_explained.toml"
Keep = Callable[[str, str], None]  # what to do with the name of a mutant and what happened to it
MOST = 40.0  # seconds of the processor that the tests of a mutant take: the quickest come first
LIMIT = 5.0  # seconds of the processor that a test may take beyond ten times its own: then the mutant hangs


OFF, OFFLOAD = "tests/physics/test_off_resonance.py", "tests/mbdl/test_offload.py"


class Target(NamedTuple):
    """A module, the files with its tests, and which of these are left out as too slow: a survivor takes them all."""

    module: str
    tests: tuple[str, ...]
    but: str = ""


TARGETS = {
    "blocks": Target(
        "blockkit.blockwise.blocks",
        ("tests/blockwise/test_blocks.py",),
        "random_networks or UNet or grows_with_the_volume or Interpolating or nested_twice or Residual or dilated"
        " or anisotropic or overwriting or normalized_twice or edge_padded or pointwise or at_any_size"
        " or (recompute and 100) or (blocks_equal and shape2)",
    ),
    "sense": Target(
        "blockkit.physics.sense",
        (
            "tests/physics/test_sense.py",
            f"{OFF}::test_weights_and_coils_are_those_of_the_encoding",
            f"{OFF}::test_a_new_field_takes_the_place_of_the_old_one_and_leaves_the_old_operator",
            f"{OFF}::test_there_is_no_toeplitz_form",
        ),
        "hollow or center or radial or cartesian or options3 or dtype1 or (conjugate_transpose and shape1)"
        " or (conjugate_transpose and shape3)",
    ),
    "unrolled": Target(
        "blockkit.mbdl.unrolled",
        (
            "tests/mbdl/test_unrolled.py",
            f"{OFFLOAD}::test_offload_changes_no_value_and_no_gradient",
            f"{OFFLOAD}::test_an_unroll_keeps_two_volumes_and_with_offload_none",
            "tests/mbdl/test_automatic.py",
        ),
        "block_shape0 or block_shape2 or (any_block and unweighted) or (unit and unweighted) or 1e-07 or 1e20"
        " or 1000000",
    ),
    "planner": Target(
        "blockkit.mbdl.planner",
        (
            "tests/mbdl/test_planner_search.py",
            "tests/mbdl/test_planner.py",
            "tests/mbdl/test_spread.py::test_a_plan_for_more_devices_takes_less_on_each_and_says_so",
        ),
        "counted_peak or papers_size or calibration or training or no_room or free_memory or largest_block_that"
        " or what_an_option or plan_of_a_whole or a_model_beyond or budget_that",
    ),
}


# What the tests say to one


def put_in(module: types.ModuleType, text: str) -> None:
    """Give the functions of an imported module the code of a mutant, wherever they are held by now."""
    fresh = {"__name__": module.__name__, "__file__": module.__file__}
    exec(compile(text, str(module.__file__), "exec"), fresh)
    for name, value in fresh.items():
        if isinstance(value, int | float | str | tuple) and not name.startswith("__"):
            setattr(module, name, value)
    _exchange(vars(module), fresh, str(module.__file__))


def _exchange(old: object, new: dict[str, object], file: str) -> None:
    for name, value in new.items():
        mine, theirs = _plain(old.get(name)), _plain(value)  # type: ignore[attr-defined]
        if isinstance(theirs, types.FunctionType) and theirs.__code__.co_filename == file:
            mine.__code__ = theirs.__code__
            mine.__defaults__, mine.__kwdefaults__ = theirs.__defaults__, theirs.__kwdefaults__
        elif isinstance(theirs, type) and theirs.__module__ == new.get("__name__"):
            _exchange(vars(mine), vars(theirs), file)


def _plain(value: object) -> object:
    """Return the function below a staticmethod, a property, a cached property or a wrapper."""
    value = value.fget if isinstance(value, property) else value
    value = value.func if isinstance(value, functools.cached_property) else value
    value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
    return inspect.unwrap(value) if callable(value) else value


class Runner:
    """A pytest plugin that runs the collected tests once as they are, and then once for each mutant, in children."""

    def __init__(self, mutants: list[Mutant], module: types.ModuleType, workers: int, keep: Keep) -> None:
        self.mutants, self.module, self.workers, self.keep = mutants, module, workers, keep
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        with FakeTensorMode():  # what the first trace imports, seconds of it, is there for every child
            torch.nn.functional.conv3d(*(torch.empty((1,) * 5, requires_grad=True) for _ in "xw")).sum().backward()
        read, write = os.pipe()
        if not os.fork():
            with open(write, "w", encoding="utf-8") as pipe:
                json.dump(self._as_it_is(session.items), pipe)
            os._exit(0)
        os.close(write)
        with open(read, encoding="utf-8") as pipe:
            self.takes, self.enters, self.broken = json.loads(pipe.read())
        os.wait()
        if self.broken:
            raise pytest.UsageError(f"{session.items[len(self.takes) - 1].nodeid} fails without a mutant")
        self.quickest = self._by_time(session.items)
        if not (child := os.fork()):
            same = Mutant("", 0, "", "", Path(str(self.module.__file__)).read_text(encoding="utf-8"))
            self._one(same, session.items, self.quickest, os.open(os.devnull, os.O_WRONLY))
        if os.waitpid(child, 0)[1]:
            raise pytest.UsageError("the module as it is does not survive: a test fails when others come before it")
        self._all(session.items)
        return True

    def _as_it_is(self, items: list[pytest.Item]) -> tuple[list[float], list[list[str]], bool]:
        """Run each test on the unchanged module: the seconds it takes, the functions it enters; does one fail?"""
        takes, enters = [], []
        for item in items:
            seen, start = set(), time.process_time()

            def trace(frame: types.FrameType, event: str, arg: object, seen: set[str] = seen) -> None:
                if frame.f_code.co_filename == self.module.__file__:
                    seen.add(frame.f_code.co_qualname.split(".<locals>")[0])

            sys.settrace(trace)
            self._run(item)
            sys.settrace(None)
            takes.append(time.process_time() - start)
            enters.append(sorted(seen))
            if self.failed:
                break
        return takes, enters, self.failed

    def _by_time(self, items: list[pytest.Item]) -> list[int]:
        """Return the tests, the quickest first; but each test with one set of parameters before any with a second."""
        seen: dict[str, int] = {}
        rank = {}
        for i in sorted(range(len(items)), key=lambda i: self.takes[i]):
            name = items[i].nodeid.split("[")[0]
            rank[i] = seen[name] = seen.get(name, -1) + 1
        return sorted(rank, key=lambda i: (rank[i], self.takes[i]))

    def _run(self, item: pytest.Item) -> None:
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)

    def _all(self, items: list[pytest.Item]) -> None:
        running: dict[int, tuple[Mutant, int]] = {}
        noticed: dict[str, list[int]] = {}
        waiting = self.mutants[::-1]
        while waiting or running:
            while waiting and len(running) < self.workers:
                mutant = waiting.pop()
                read, write = os.pipe()
                order = self._order(mutant, noticed.get(mutant.function, []))
                if not (child := os.fork()):
                    self._one(mutant, items, order, write)
                os.close(write)
                running[child] = mutant, read
            child, status = os.wait()
            mutant, read = running.pop(child)
            with open(read, encoding="utf-8") as pipe:
                last = pipe.read().split()
            code = os.waitstatus_to_exitcode(status)
            if code == 1 and last:
                noticed.setdefault(mutant.function, []).insert(0, int(last[-1]))
            by = items[int(last[-1])].nodeid.split("::")[-1] if last else "import"
            how = {0: "survived", 1: f"noticed by {by}"}.get(code, f"stopped by signal {-code} in {by}")
            self.keep(mutant.name, how)
            print(f"{len(waiting)} left; line {mutant.line}, {mutant.name}: {how}", file=sys.__stderr__, flush=True)

    def _order(self, mutant: Mutant, noticed: list[int]) -> list[int]:
        enter = [i for i, seen in enumerate(self.enters) if mutant.function.isupper() or mutant.function in seen]
        first = [i for i in dict.fromkeys(noticed) if i in enter]
        return first + [i for i in self.quickest if i in enter and i not in first]

    def _one(self, mutant: Mutant, items: list[pytest.Item], order: list[int], write: int) -> None:
        """In a child: put the mutant in, and run tests until one fails. Says by its exit status how it ended."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        try:
            put_in(self.module, mutant.text)
            items[0].config.pluginmanager.unregister(name="terminalreporter")
            seconds = 0.0
            for i in order:
                if (seconds := seconds + self.takes[i]) > MOST:
                    break
                os.write(write, f"{i} ".encode())
                signal.setitimer(signal.ITIMER_PROF, LIMIT + 10 * self.takes[i])  # its signal ends the child
                self._run(items[i])
                if self.failed:
                    os._exit(1)
        except BaseException:
            os._exit(1)
        os._exit(0)


# What is told

HEAD = """# Mutation testing

Each mutant is the module with one small mistake in it: another constant, operator or comparison, an argument left out
or None, a condition negated, a statement left out, None returned. It is noticed if a test of its module fails or hangs.
`make mutants` runs them all; a share is drawn with a seed. `tools/mutations.py` says which mutants there are (none of
how an error is worded), `tools/mutants.py` which tests they meet. Those that change nothing count as survivors too. A
survivor that is a gap got a test and met it, so of mutants that were never drawn a few more would survive.
"""


def run(name: str, *, share: float, seed: int, workers: int) -> None:
    """Run the mutants of a module, or some of them, but none that a test noticed before; store what happened."""
    target, store = TARGETS[name], STORE / f"{name}.json"
    module = import_module(target.module)
    mutants = mutants_of(Path(str(module.__file__)).read_text(encoding="utf-8"))
    chosen = random.Random(seed).sample(mutants, len(mutants))[: round(share * len(mutants))]
    told = json.loads(store.read_text(encoding="utf-8")) if store.exists() else {"verdicts": {}}
    verdicts = {mutant.name: told["verdicts"].get(mutant.name, "waits") for mutant in chosen}
    waiting = [mutant for mutant in chosen if verdicts[mutant.name] in ("survived", "waits")]

    def keep(mutant: str, verdict: str) -> None:
        verdicts[mutant] = verdict
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps({"all": len(mutants), "seed": seed, "verdicts": verdicts}, indent=1), "utf-8")

    arguments = ["-q", "--tb=no", "--assert=plain", "-p", "no:cacheprovider", "-m", "not slow", *target.tests]
    arguments += ["-k", f"not ({target.but})"] if target.but else []
    if status := pytest.main(arguments, plugins=[Runner(waiting, module, workers, keep)]):
        raise SystemExit(f"pytest ends with {status!r}")


def report() -> str:
    """Return the table of all modules with a stored run, and their survivors with an explanation each."""
    explained = tomllib.loads(EXPLAINED.read_text(encoding="utf-8"))
    head = ["module", "mutants", "drawn", "noticed", "survived", "noticed, %"]
    rows, sections = [head, ["-" * len(one) for one in head]], []
    for name, target in TARGETS.items():
        if not (STORE / f"{name}.json").exists():
            continue
        told = json.loads((STORE / f"{name}.json").read_text(encoding="utf-8"))
        survivors = [mutant for mutant, how in told["verdicts"].items() if how == "survived"]
        n = sum(how != "waits" for how in told["verdicts"].values())
        rows.append([f"`{target.module}`", *map(str, (told["all"], n, n - len(survivors), len(survivors)))])
        rows[-1].append(f"{100 * (1 - len(survivors) / n):.1f}")
        sections += [f"\n## Survivors of `{target.module}`\n"]
        sections += [_explanation(mutant, explained.get(name, []) + explained["every"]) for mutant in survivors]
    return "\n".join([HEAD, *("| " + " | ".join(row) + " |" for row in rows), *sections]) + "\n"


def _explanation(mutant: str, explained: list[dict[str, str]]) -> str:
    why = next((one["why"] for one in explained if re.search(one["mutant"], mutant)), "NOT EXPLAINED")
    function, change = mutant.split(": ", 1)
    was, now = change.split(" => ")
    return f"- `{function}`: `{was}`\n  becomes `{now}`\n  {why}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Break a module in every small way: does a test notice?")
    parser.add_argument("modules", nargs="*", help=f"which modules, of {', '.join(TARGETS)}; none: all")
    parser.add_argument("--report", action="store_true", help="run none, write the table anew")
    parser.add_argument("--share", type=float, default=1.0, help="which part of the mutants, drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--anew", action="store_true", help="forget the last run: also what was noticed then")
    options = parser.parse_args()
    for name in [] if options.report else options.modules or TARGETS:
        if options.anew:
            (STORE / f"{name}.json").unlink(missing_ok=True)
        run(name, share=options.share, seed=options.seed, workers=options.workers)
    TABLE.write_text(report(), encoding="utf-8")


if __name__ == "__main__":
    main()
