"""Run the notebooks without a browser and write them as HTML pages with their pictures: a tour of blockkit.

    python tools/tour.py                                       all of notebooks/, to build/tour/
    python tools/tour.py notebooks/00*.ipynb --output pages/   these, to a folder of your own

The notebooks themselves stay as they are.
"""

import argparse
import html
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from accept_notebooks import alt_text, canonical, execute, find_notebooks
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbformat import NotebookNode

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>A tour of blockkit</title>
<style>body {{ font: 17px/1.6 sans-serif; max-width: 40em; margin: 3em auto; padding: 0 1em }}</style></head>
<body><h1>A tour of blockkit</h1>
<ul>
{items}
</ul></body></html>
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], prog="tour")
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks; all of notebooks/ if none is named")
    parser.add_argument("--output", type=Path, default=Path("build/tour"), help="folder of the pages (build/tour)")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one cell (default 600)")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    items, failed = [], 0
    for path in find_notebooks(options.paths):
        try:
            notebook = canonical(execute(path, timeout=options.timeout))
        except CellExecutionError as error:
            failed += 1
            print(f"{path}: FAILED\n{error}", flush=True)
            continue
        page = options.output / f"{path.stem}.html"
        page.write_text(to_html(notebook, path.stem), encoding="utf-8")
        items.append(f'<li><a href="{html.escape(page.name)}">{html.escape(title_of(notebook, path.stem))}</a></li>')
        print(f"{path}: {page}", flush=True)
    (options.output / "index.html").write_text(PAGE.format(items="\n".join(items)), encoding="utf-8")
    return 1 if failed else 0


def to_html(notebook: NotebookNode, name: str) -> str:
    """Return the notebook as one HTML page that holds its pictures, each with the alt text that it came with."""
    page, _ = HTMLExporter().from_notebook_node(notebook, resources={"metadata": {"name": name}})
    page = str(page)
    for output in (one for cell in notebook.cells for one in cell.get("outputs", []) if alt_text(one)):
        start = page.rfind("<img", 0, max(page.find(output.data["image/png"].strip()), 0))
        if start >= 0:
            alt = f'alt="{html.escape(alt_text(output))}"'
            page = page[:start] + re.sub(r'alt="[^"]*"', lambda _, alt=alt: alt, page[start:], count=1)
    return page


def title_of(notebook: NotebookNode, otherwise: str) -> str:
    """Return the first heading of a notebook."""
    for cell in notebook.cells:
        heading = re.search(r"^# +(.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
        if heading:
            return re.sub(r"[*`_]", "", heading[1]).strip()
    return otherwise


if __name__ == "__main__":
    sys.exit(main())
