"""Which mutants a module has: every small way to break it.

They are those of mutmut 3 (constants, operators, comparisons, arguments left out or None, assignments of None, branches
of ``a if b else c``), and more: a condition negated, a statement left out, None returned. Functions with a decorator
are broken too, which mutmut leaves out, and so are the module's constants. None is made inside of a ``raise``, of a
docstring, of a type or of a string with a space in it: how an error is worded is nothing to test twice.
"""

from collections.abc import Iterator
from typing import NamedTuple

import libcst as cst
from mutmut.mutation.file_mutation import MutationVisitor
from mutmut.mutation.mutators import mutation_operators
from mutmut.mutation.pragma_handling import IgnoredCode


class Mutant(NamedTuple):
    """One change of a module: in which function, which line, what is there now, and the text of the whole file."""

    function: str
    line: int
    was: str
    now: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.function}: {self.was} => {self.now}"


def _negate(node: cst.If | cst.While) -> Iterator[cst.CSTNode]:
    test = node.test.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
    yield node.with_changes(test=cst.UnaryOperation(cst.Not(), test))


def _leave_out(node: cst.SimpleStatementLine) -> Iterator[cst.CSTNode]:
    if isinstance(node.body[0], cst.Expr) and isinstance(node.body[0].value, cst.Call | cst.Yield):
        yield node.with_changes(body=[cst.Pass()])


def _return_none(node: cst.Return) -> Iterator[cst.CSTNode]:
    if node.value is not None and getattr(node.value, "value", "") != "None":
        yield node.with_changes(value=cst.Name("None"))


MORE = [(cst.If, _negate), (cst.While, _negate), (cst.SimpleStatementLine, _leave_out), (cst.Return, _return_none)]


class _Visitor(MutationVisitor):
    """Collects mutmut's mutations and ours, of decorated functions too, but none of what is only said."""

    def _skip_node_and_children(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.Raise | cst.Decorator):
            return True
        if isinstance(node, cst.SimpleString | cst.ConcatenatedString):
            return " " in str(node.evaluated_value)
        return not isinstance(node, cst.FunctionDef) and super()._skip_node_and_children(node)


def mutants_of(text: str) -> list[Mutant]:
    """Return the mutants of a module's functions and of its constants, in the order of the lines."""
    visitor = _Visitor([*mutation_operators, *MORE], IgnoredCode(set(), set(), set()))
    module = cst.MetadataWrapper(cst.parse_module(text)).visit(visitor)
    codes = [module.code_for_node(one) for one in module.body]
    places = {id(node): (i, name) for i, one in enumerate(module.body) for node, name in _mutable(one)}
    found = {}
    for mutation in visitor.mutations:
        if id(mutation.original_node) not in places:
            continue
        i, name = places[id(mutation.original_node)]
        changed = module.code_for_node(module.body[i].deep_replace(mutation.original_node, mutation.mutated_node))
        now = text.replace(codes[i], changed)
        line, was, becomes = _difference(text.splitlines(), now.splitlines())
        like = sum(one.name.startswith(f"{name}: {was} => {becomes}") for one in found.values())
        found.setdefault(now, Mutant(name, line, was, becomes + f"  # {like + 1}" * (like > 0), now))
    found.pop(text, None)
    return list(found.values())


def _mutable(one: cst.CSTNode) -> Iterator[tuple[cst.CSTNode, str]]:
    """Return the nodes below a statement of the module that are mutated, each with the name of its function."""
    if isinstance(one, cst.FunctionDef):
        yield from ((node, one.name.value) for node in _walk(one))
    elif isinstance(one, cst.ClassDef):
        methods = [method for method in one.body.body if isinstance(method, cst.FunctionDef)]
        yield from ((node, f"{one.name.value}.{method.name.value}") for method in methods for node in _walk(method))
    elif isinstance(one, cst.SimpleStatementLine) and isinstance(one.body[0], cst.Assign):
        name = str(getattr(one.body[0].targets[0].target, "value", ""))
        yield from ((node, name) for node in _walk(one.body[0].value) if not isinstance(node, cst.Call))


def _walk(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    yield node
    for child in node.children:
        yield from _walk(child)


def _difference(old: list[str], new: list[str]) -> tuple[int, str, str]:
    """Return the number of the first line that differs, and the lines that differ, before and after."""
    first = next((i for i, pair in enumerate(zip(old, new, strict=False)) if pair[0] != pair[1]), 0)
    rest = min(len(old), len(new)) - first
    same = next((i for i in range(rest) if old[-1 - i] != new[-1 - i]), rest)
    was, now = (" ".join(line.strip() for line in lines[first : len(lines) - same]) for lines in (old, new))
    return first + 1, was, now
