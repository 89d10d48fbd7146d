"""Write the reference as HTML into build/docs/: the docstrings, grouped as the house is, and the repository's pages.

Sphinx reads the docstrings as they are: reStructuredText in numpy's sections. The pages lie in the same places relative
to each other as in the repository, so that their links serve in both. Formulas become MathML, which browsers show
without a script and without a network. A warning is an error.
"""

import argparse
import inspect
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import blockkit as bk

ROOT = Path(__file__).parent.parent
WINGS = {
    "physics": "Physics: what the scanner does to an image",
    "blockwise": "Blockwise: a network on a volume, block by block",
    "mbdl": "MBDL: the unrolled network, its training and its memory",
    "classic": "Classic: compressed sensing, to compare with",
    "data": "Data: scans, files and phantoms",
    "metrics": "Metrics: how far an image is from another",
    "show": "Show: viewers and figures",
    "cli": "The shell: `python -m blockkit`",
}
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "data_samples/README.md",
    "benchmarks/results/*.*",
)
LINKED = ("LICENSE", "CITATION.cff", ".devcontainer/devcontainer.json", "docs/images/*.png")
WIDE = ".content { width: 58em; max-width: 100% } table.docutils { font-size: 80% }\n"  # for examples and tables
INDEX = """\
# blockkit {version}

{summary}

Start with the [README](README.md) and the notebooks. Here are the names that `import blockkit as bk` gives, in the
order in which a scan becomes an image, then what lies behind them. Their examples take for granted:

```python
import torch
import blockkit as bk

volume = bk.pulmonary_phantom((24, 18, 24))  # where an example has a scan
scan = bk.simulate_scan(volume, (16, 12, 16), n_coils=4, n_spokes=80)
```

{tables}

```{{toctree}}
:hidden:
:caption: bk

{reference}
```

```{{toctree}}
:hidden:
:caption: Pages

README <README>
{docs}
data_samples/README
CHANGELOG
CONTRIBUTING
```

```{{toctree}}
:hidden:
:caption: Behind bk
:titlesonly:

{inside}
```

```{{toctree}}
:hidden:
:caption: Benchmarks

{results}
```
"""


def public() -> dict[str, object]:
    """Return what ``bk`` gives, by name: ``bk.__all__``, then what is loaded only when it is asked for."""
    return {name: getattr(bk, name) for name in (*bk.__all__, "SliceViewer", "MemoryExplorer", "TrainingView")}


def modules() -> list[str]:
    """Return the modules that have something to say, in the order of their names."""
    return [info.name for info in walk_packages(bk.__path__, "blockkit.") if not info.name.endswith("__main__")]


def wing_of(module: str) -> str:
    """Return the wing that a module belongs to; what lies on the ground floor stands with the physics."""
    part = module.split(".")[1]
    return part if part in WINGS else "physics"


def summary(thing: object) -> str:
    """Return the first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def entry(name: str, thing: object, *options: str) -> str:
    """Return the directive that shows one function or class, with the members that have a docstring."""
    kind = "class" if inspect.isclass(thing) else "function"
    return "\n   ".join([f".. auto{kind}:: {name}", *options, *([":members:"] if kind == "class" else [])])


def rst(*parts: str) -> str:
    """Return lines of reStructuredText for a page in Markdown."""
    return "\n\n".join(["```{eval-rst}", *parts, "```"])


def reference_pages() -> Iterator[tuple[str, str]]:
    """Return for each wing its page of public names."""
    for wing, title in WINGS.items():
        named = {name: thing for name, thing in public().items() if wing_of(thing.__module__) == wing}
        if not named:
            continue
        found = [f"# {title}\n"]
        for module in sorted({thing.__module__ for thing in named.values()}):
            members = [name for name, thing in named.items() if thing.__module__ == module]
            head = [summary(import_module(module)), f"More: :mod:`{module}`"]
            found += [f"## {module.rsplit('.', 1)[1]}\n", rst(*head), ""]
            found += [rst(entry(f"blockkit.{name}", named[name])) for name in sorted(members, key=str.lower)]
        yield f"reference/{wing}", "\n".join(found) + "\n"


def inside_pages() -> Iterator[tuple[str, str]]:
    """Return for each wing a page of its modules: what each says, and what it defines beside ``bk``'s names."""
    shown = {id(thing) for thing in public().values()}
    pages: dict[str, list[str]] = {}
    for name in modules():
        module = import_module(name)
        own = [
            entry(f"{name}.{key}", thing)
            for key, thing in vars(module).items()
            if not key.startswith("_") and id(thing) not in shown and getattr(thing, "__module__", None) == name
            if (inspect.isfunction(thing) or inspect.isclass(thing)) and thing.__doc__
        ]
        faces = [
            f":{role(thing)}:`bk.{key} <blockkit.{key}>`" for key, thing in public().items() if thing.__module__ == name
        ]
        in_bk = [f"In ``bk``: {', '.join(faces)}."] if faces else []
        heading = f"## {name.removeprefix('blockkit.')}\n"
        pages.setdefault(wing_of(name), []).extend([heading, rst(f".. automodule:: {name}", *in_bk, *own)])
    for wing in WINGS:
        yield f"inside/{wing}", "\n".join([f"# Behind {wing}\n", *pages[wing]]) + "\n"


def table(wing: str) -> str:
    """Return the names of a wing, each with what it does."""
    here = [(name, thing) for name, thing in public().items() if wing_of(thing.__module__) == wing]
    if not here:
        return ""
    rows = [
        f"   * - :{role(thing)}:`bk.{name} <blockkit.{name}>`\n     - {summary(thing)}"
        for name, thing in sorted(here, key=lambda item: item[0].lower())
    ]
    head = f"## [{WINGS[wing]}](reference/{wing}.md)\n\n"
    return head + rst(".. list-table::\n   :widths: 30 70\n\n" + "\n".join(rows))


def role(thing: object) -> str:
    """Return the role that links to a function or class."""
    return "class" if inspect.isclass(thing) else "func"


def write_source(source: Path) -> None:
    """Write all that Sphinx reads into a folder."""
    shutil.rmtree(source, ignore_errors=True)
    for pattern in (*PAGES, *LINKED):
        for path in ROOT.glob(pattern):
            copy = source / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
            # A table without a heading gets one, to be listed by.
            if path.suffix == ".md" and not path.read_text(encoding="utf-8").startswith("# "):
                copy.write_text(f"# {path.stem}\n\n{path.read_text(encoding='utf-8')}", encoding="utf-8")
    shutil.copy(ROOT / "docs" / "conf.py", source)
    (source / "_static").mkdir()
    (source / "_static" / "wide.css").write_text(WIDE, encoding="utf-8")
    written = {**dict(reference_pages()), **dict(inside_pages())}
    for name, text in written.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / f"{name}.md").write_text(text, encoding="utf-8")
    lists = {
        "reference": "\n".join(name for name in written if name.startswith("reference/")),
        "inside": "\n".join(name for name in written if name.startswith("inside/")),
        "docs": "\n".join(sorted(f"docs/{path.stem}" for path in (ROOT / "docs").glob("*.md"))),
        "results": "\n".join(
            f"{path.stem} <benchmarks/results/{path.stem}>"
            for path in sorted((ROOT / "benchmarks" / "results").glob("*.md"))
        ),
    }
    tables = "\n\n".join(filter(None, map(table, WINGS)))
    text = INDEX.format(version=bk.__version__, summary=summary(bk), tables=tables, **lists)
    (source / "index.md").write_text(text, encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Write the source, run Sphinx on it, and say where to look."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "build" / "docs", help="the folder for the HTML")
    output = parser.parse_args(argv).output
    source = output.with_name(output.name + "_source")
    write_source(source)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-E", "-b", "html"]
    done = subprocess.run([*command, str(source), str(output)], check=False)
    if done.returncode == 0:
        print(f"Open {output / 'index.html'}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
