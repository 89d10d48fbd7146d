"""Run notebooks from a fresh kernel and store their outputs, byte for byte the same when run twice.

    python tools/accept_notebooks.py                      run and store all of notebooks/
    python tools/accept_notebooks.py notebooks/00*.ipynb  these
    python tools/accept_notebooks.py --check              store nothing, fail where the outputs would change

A cell tagged ``nbval-ignore-output`` (wall times, resident memory) keeps its stored output until its source changes,
or until ``--fresh`` is given. On another machine the last digits differ: there, ``pytest --nbval notebooks/`` compares
with a tolerance.
"""

import argparse
import base64
import hashlib
import os
import re
import struct
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

IGNORE_TAG = "nbval-ignore-output"
IGNORE_COMMENT = "# NBVAL_IGNORE_OUTPUT"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
SOURCE_MARK = "accepted_source"
KEPT_CELL_METADATA = ("tags", "jupyter", SOURCE_MARK)
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
ONE_THREAD = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+\b")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], prog="accept_notebooks")
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks; all of notebooks/ if none is named")
    parser.add_argument("--check", action="store_true", help="store nothing; fail where the outputs would change")
    parser.add_argument("--fresh", action="store_true", help="run the ignored cells' outputs anew as well")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one cell (default 600)")
    options = parser.parse_args(argv)
    failed = 0
    for path in find_notebooks(options.paths):
        said = accept(path, check=options.check, fresh=options.fresh, timeout=options.timeout)
        failed += not said.startswith(("same", "stored"))
        print(f"{path}: {said}", flush=True)
    return 1 if failed else 0


def find_notebooks(paths: Sequence[Path]) -> list[Path]:
    """Return ``paths``, or all notebooks of ``notebooks/`` in order."""
    found = list(paths) or sorted(Path("notebooks").glob("*.ipynb"))
    missing = [str(path) for path in found if not path.is_file()]
    if missing or not found:
        raise SystemExit(f"no such notebook: {', '.join(missing)}" if missing else "there is no notebook in notebooks/")
    return found


def accept(path: Path, *, check: bool = False, fresh: bool = False, timeout: int = 600) -> str:
    """Run one notebook, store it unless ``check``, and say what came of it."""
    stored = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(stored, as_version=4)
    try:
        text = dumps(canonical(execute(path, timeout=timeout), previous=None if fresh else notebook))
    except CellExecutionError as error:
        return f"FAILED\n{error}"
    if text == stored:
        return "same"
    if check:
        changed = ", ".join(map(str, changed_cells(notebook, nbformat.reads(text, as_version=4))))
        return f"CHANGED in cells {changed or '(only the notebook metadata)'}"
    path.write_text(text, encoding="utf-8")
    return f"stored, {len(text) / 1e3:.0f} kB"


def execute(path: Path, *, timeout: int = 600, environment: Mapping[str, str] | None = None) -> NotebookNode:
    """Return the notebook run from a fresh kernel of this Python, in its own folder, on one thread.

    ``environment`` holds further variables for the kernel.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["kernelspec"] = METADATA["kernelspec"]
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.resolve().parent)}},
        store_widget_state=False,
        record_timing=False,
        extra_arguments=["--log-level=40"],
    )
    with tempfile.TemporaryDirectory() as profile:
        client.execute(env=kernel_environment(profile) | dict(environment or {}))
    return notebook


def kernel_environment(profile: str) -> dict[str, str]:
    """Return the environment of a kernel whose results repeat: one thread, and no startup files of the user."""
    return os.environ | ONE_THREAD | {"PYTHONHASHSEED": "0", "IPYTHONDIR": profile}


def canonical(notebook: NotebookNode, previous: NotebookNode | None = None) -> NotebookNode:
    """Strip what differs from run to run: times, random ids, widget state, addresses, PNG text; keep alt texts."""
    kept = ignored_outputs(previous) if previous is not None else {}
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        source = cell.source = cell.source.rstrip()
        cell.id = f"cell-{number:02d}"
        cell.metadata.pop(SOURCE_MARK, None)
        cell.metadata = nbformat.from_dict({k: cell.metadata[k] for k in KEPT_CELL_METADATA if k in cell.metadata})
        cell.pop("attachments", None)
        if cell.cell_type == "code":
            cell.outputs = merge_streams([_canonical_output(output) for output in cell.outputs])
            if is_ignored(cell):
                cell.outputs = kept.get(_mark(source), cell.outputs)
                cell.metadata[SOURCE_MARK] = _mark(source)
                for output in cell.outputs:
                    if "execution_count" in output:
                        output["execution_count"] = cell.execution_count
    return notebook


def is_ignored(cell: NotebookNode) -> bool:
    """Tell whether the outputs of a cell may differ from run to run."""
    return IGNORE_TAG in cell.metadata.get("tags", []) or IGNORE_COMMENT in cell.source


def ignored_outputs(notebook: NotebookNode) -> dict[str, list[NotebookNode]]:
    """Return the stored outputs of the ignored cells whose source has not changed since."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and is_ignored(cell)]
    marks = {cell.metadata.get(SOURCE_MARK): cell.outputs for cell in cells if cell.outputs}
    return {mark: outputs for mark, outputs in marks.items() if mark in {_mark(cell.source.rstrip()) for cell in cells}}


def merge_streams(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Join neighboring pieces of one stream: where they are cut is a matter of timing."""
    merged: list[NotebookNode] = []
    for output in outputs:
        last = merged[-1] if merged else {}
        if output.output_type == "stream" and last.get("name") == output.name:
            merged[-1].text += output.text
        else:
            merged.append(output)
    return merged


def strip_png(data: bytes) -> bytes:
    """Return a PNG file without its text and time chunks: the pixels and nothing else."""
    signature, position, kept = data[:8], 8, []
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        chunk = data[position : position + 12 + length]
        position += len(chunk)
        if chunk[4:8] not in (b"tEXt", b"iTXt", b"zTXt", b"tIME", b"eXIf"):
            kept.append(chunk)
    return signature + b"".join(kept)


def alt_text(output: NotebookNode) -> str:
    """Return the words that stand for the picture of an output, "" where there are none."""
    return str(output.get("metadata", {}).get("image/png", {}).get("alt", ""))


def dumps(notebook: NotebookNode) -> str:
    """Return the notebook as JSON in one fixed form."""
    return nbformat.writes(notebook, version=4).rstrip("\n") + "\n"


def changed_cells(old: NotebookNode, new: NotebookNode) -> list[int]:
    """Return the numbers of the cells that differ."""
    longest = max(len(old.cells), len(new.cells))
    return [i for i in range(longest) if old.cells[i : i + 1] != new.cells[i : i + 1]]


def _canonical_output(output: NotebookNode) -> NotebookNode:
    if "text" in output:
        output.text = _ADDRESS.sub("0x0", output.text)
    if "data" in output:
        output.data.pop(WIDGET_VIEW, None)
        spoken = alt_text(output)
        output.metadata = nbformat.from_dict({"image/png": {"alt": spoken}} if spoken else {})
        if "image/png" in output.data:
            picture = strip_png(base64.b64decode(output.data["image/png"]))
            output.data["image/png"] = base64.b64encode(picture).decode("ascii")
        if isinstance(output.data.get("text/plain"), str):
            output.data["text/plain"] = _ADDRESS.sub("0x0", output.data["text/plain"])
    return output


def _mark(source: str) -> str:
    return hashlib.sha256(source.encode()).hexdigest()[:12]


if __name__ == "__main__":
    sys.exit(main())
