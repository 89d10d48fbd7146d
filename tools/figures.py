"""Run the notebooks and write each numbered figure as a vector file, for slides and papers, with a page of them all.

    python tools/figures.py                           all of notebooks/, as SVG to build/figures/
    python tools/figures.py notebooks/03*.ipynb --pdf --output slides/

A figure's number and words come from the caption in the cell after it: ``figure_3_2_the_error_stands_at.svg``. Widgets
give the picture that a saved page shows. Text is drawn as outlines; slices are raster images inside.
"""

import argparse
import base64
import html
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from accept_notebooks import alt_text, execute, find_notebooks
from lessons import Caption, pictured_cells
from nbclient.exceptions import CellExecutionError
from nbconvert.filters import markdown2html
from nbformat import NotebookNode
from tour import title_of

SVG, PDF = "image/svg+xml", "application/pdf"
MOST_WORDS = 5
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>The figures of blockkit's lessons</title>
<style>
body {{ font: 17px/1.6 sans-serif; max-width: 50em; margin: 3em auto; padding: 0 1em }}
figure {{ margin: 2em 0 }} img {{ max-width: 100% }} figcaption p {{ margin: 0.3em 0 }}
</style></head>
<body><h1>The figures of blockkit's lessons</h1>
{body}
</body></html>
"""
FIGURE = """<figure><img src="{name}.svg" alt="{alt}">
<figcaption>{caption}<p>{files}</p></figcaption></figure>"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], prog="figures")
    parser.add_argument("paths", nargs="*", type=Path, help="notebooks; all of notebooks/ if none is named")
    parser.add_argument("--output", type=Path, default=Path("build/figures"), help="folder to write to (build/figures)")
    parser.add_argument("--pdf", action="store_true", help="write each figure as PDF as well")
    parser.add_argument("--timeout", type=int, default=600, help="seconds for one cell (default 600)")
    options = parser.parse_args(argv)
    options.output.mkdir(parents=True, exist_ok=True)
    vectors = {"BLOCKKIT_VECTORS": "svg pdf" if options.pdf else "svg"}
    parts, failed = [], 0
    for path in find_notebooks(options.paths):
        try:
            notebook = execute(path, timeout=options.timeout, environment=vectors)
        except CellExecutionError as error:
            failed += 1
            print(f"{path}: FAILED\n{error}", flush=True)
            continue
        parts.append(f"<h2>{html.escape(title_of(notebook, path.stem))}</h2>")
        for place, pictures, caption in pictured_cells(notebook):
            if problem := what_is_missing(pictures, caption):
                failed += 1
                print(f"{path}: cell {place}: {problem}", flush=True)
            elif caption is not None:
                name = write_figure(pictures[0], caption, options.output)
                parts.append(to_html(name, pictures[0], caption))
                print(f"{path}: {name}", flush=True)
    (options.output / "index.html").write_text(PAGE.format(body="\n".join(parts)), encoding="utf-8")
    return 1 if failed else 0


def what_is_missing(pictures: Sequence[NotebookNode], caption: Caption | None) -> str:
    """Say why the pictures of a cell are no figure, "" if they are one."""
    if len(pictures) > 1:
        return f"{len(pictures)} pictures, expected one: split the cell."
    if caption is None:
        return "a picture without a caption: begin the next cell with **Figure 1.2.** and what to read off."
    return "" if SVG in pictures[0].data else "a picture without vectors: draw it with blockkit.show."


def write_figure(picture: NotebookNode, caption: Caption, folder: Path) -> str:
    """Write the vector files of one figure; return their name without ending."""
    name = name_of(caption)
    (folder / f"{name}.svg").write_text(picture.data[SVG], encoding="utf-8")
    if PDF in picture.data:
        (folder / f"{name}.pdf").write_bytes(base64.b64decode(picture.data[PDF]))
    return name


def name_of(caption: Caption) -> str:
    """Return a file's name: the figure's number and its first words, without formulas."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"\$[^$]*\$|\]\([^)]*\)", " ", caption.text).lower())
    return "_".join(["figure", str(caption.lesson), str(caption.number), *words[:MOST_WORDS]])


def to_html(name: str, picture: NotebookNode, caption: Caption) -> str:
    """Return one figure of the page: the picture, its caption, and the files."""
    endings = ["svg", "pdf"] if PDF in picture.data else ["svg"]
    return FIGURE.format(
        name=name,
        alt=html.escape(alt_text(picture) or caption.text, quote=True),
        caption=markdown2html(f"**Figure {caption.lesson}.{caption.number}.** {caption.text}"),
        files=", ".join(f'<a href="{name}.{ending}">{name}.{ending}</a>' for ending in endings),
    )


if __name__ == "__main__":
    sys.exit(main())
