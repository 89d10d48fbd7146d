"""A page that stands by itself: the reconstructions of one scan, their scores, memory and times."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from IPython.core.pylabtools import print_figure
from matplotlib.figure import Figure
from torch import Tensor

from blockkit.data.files import printable, written_beside
from blockkit.data.scan import Scan
from blockkit.ledger import GIB
from blockkit.show.figures import captions, show_mip, show_slices

REFERENCE = "reference"
_MEASURES = ("PSNR", "SSIM", "NRMSE")
_STYLE = """
body { max-width: 68rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; color: #1b1b1b;
  background: #fff; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: 0.3rem 0.9rem; border-bottom: 1px solid #bbb; text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; }
figure { margin: 1.5rem 0; }
"""


@dataclass(frozen=True)
class Result:
    """What a method made of a scan.

    Attributes
    ----------
    image
        Complex, shape ``(z, y, x)``.
    seconds
        That it took.
    n_bytes
        Peak memory beside the scan and the weights.
    predicted
        Whether ``n_bytes`` is told by a trace, or was counted while the method ran.
    """

    image: Tensor
    seconds: float
    n_bytes: int
    predicted: bool


def write_report(path: str | os.PathLike[str], scan: Scan, results: Mapping[str, Result], *, title: str) -> None:
    """Write one HTML file with everything in it: nothing is fetched when it is opened, and nothing in it runs.

    Parameters
    ----------
    path
        Where to write; a file that is there is replaced once the new one is whole.
    scan
        What was reconstructed; its reference, if there is one, is shown and compared with.
    results
        What each method made of it, by the name to show.
    title
        Of the page, such as the scan's file name.

    Raises
    ------
    ValueError
        If an image has not the shape of the scan's.
    FileNotFoundError
        If the folder does not exist.
    """
    volumes = {name: result.image for name, result in results.items()}
    if scan.reference is not None:
        volumes[REFERENCE] = scan.reference
    names = ", ".join(volumes)
    planes = show_slices(volumes, axes="zyx", voxel_size=scan.voxel_size)
    brightest = show_mip(volumes, axis="y", voxel_size=scan.voxel_size)
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{_text(_facts(scan))}</p>",
        _table(["method", *_columns(scan)], _rows(scan, results)),
        "<p>Memory is what a method takes at its peak beside the scan and the weights, in GiB of 2<sup>30</sup> bytes: "
        "predicted by a trace, or counted while it ran. Seconds are without the density compensation, done once. "
        + ("Scores are over the whole volume, on magnitude, against the reference." if scan.reference is not None else
           "The scan has no reference, so nothing is said about quality: a clean image may be wrong.")
        + "</p>",
        _figure(planes, f"Middle slices across z, y and x of {names}.", "Middle slices: magnitude, one grey window."),
        _figure(brightest, f"Maximum intensity projections along y of {names}.", "Maximum intensity along y."),
        "<p>Made by blockkit. Not for clinical use.</p>",
    ]  # fmt: skip
    head = f'<meta charset="utf-8"><title>{_text(title)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    page = f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'
    with written_beside(path) as part:
        part.write_text(page, encoding="utf-8")


def _facts(scan: Scan) -> str:
    shape, voxel = (" x ".join(f"{n:.4g}" for n in sizes) for sizes in (scan.image_shape, scan.voxel_size))
    n_samples = scan.kspace.shape[1]
    return f"{shape} voxels (z, y, x) of {voxel} mm, {scan.n_coils} coils, {n_samples:,} samples of each."


def _columns(scan: Scan) -> Sequence[str]:
    measured = ("PSNR (dB)", "SSIM", "NRMSE") if scan.reference is not None else ()
    return "seconds", "memory (GiB)", "", *measured


def _rows(scan: Scan, results: Mapping[str, Result]) -> list[list[str]]:
    scores: Mapping[str, str] = {}
    if scan.reference is not None:
        scores = captions({**{name: result.image for name, result in results.items()}, REFERENCE: scan.reference})
    rows = []
    for name, result in results.items():
        how = "predicted" if result.predicted else "counted"
        rows.append([name, f"{result.seconds:.1f}", f"{result.n_bytes / GIB:.3g}", how])
        if scores:
            said = dict(line.partition(" ")[::2] for line in scores[name].splitlines())
            rows[-1] += [said.get(measure, "none").removesuffix(" dB") for measure in _MEASURES]
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = ["".join(f'<th scope="col">{_text(cell)}</th>' for cell in head)]
    cells += ["".join(f"<td>{_text(cell)}</td>" for cell in row) for row in rows]
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _figure(figure: Figure, alt: str, caption: str) -> str:
    picture: Any = print_figure(figure, fmt="png", base64=True)  # type: ignore[no-untyped-call]
    source = f"data:image/png;base64,{''.join(picture.split())}"
    return f'<figure><img src="{source}" alt="{_text(alt)}"><figcaption>{_text(caption)}</figcaption></figure>'


def _text(words: str) -> str:
    return escape(printable(words))
