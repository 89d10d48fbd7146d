"""A figure in the forms in which a notebook gets it: as PNG with its fingerprint, and as vectors where asked for.

The environment variable ``BLOCKKIT_VECTORS`` asks: ``svg``, ``pdf`` or ``svg pdf``. Then each figure and each widget's
picture carries these forms too; slices are raster images inside, text is drawn as outlines.
"""

import os
from functools import partial
from typing import Any

import matplotlib
from IPython.core.formatters import BaseFormatter
from IPython.core.getipython import get_ipython
from IPython.core.pylabtools import print_figure
from matplotlib.figure import Figure
from traitlets import Unicode

from blockkit.show.fingerprint import MIME, Record, fingerprint

VARIABLE = "BLOCKKIT_VECTORS"
VECTORS = {"svg": "image/svg+xml", "pdf": "application/pdf"}


def pictures(figure: Figure) -> dict[str, Any]:
    """Return a figure's PNG and fingerprint, and the vector forms that the environment asks for, by MIME type."""
    png: Any = print_figure(figure, fmt="png", base64=True)  # type: ignore[no-untyped-call]
    vectors = {VECTORS[form]: draw_vector(figure, form) for form in asked_for()}
    return {"image/png": png, MIME: fingerprint(figure), **vectors}


def asked_for() -> list[str]:
    """Return the names of the vector forms that the environment asks for, or raise if there is no such form."""
    forms = os.environ.get(VARIABLE, "").split()
    unknown = [form for form in forms if form not in VECTORS]
    if unknown:
        raise ValueError(f"{VARIABLE} names {', '.join(unknown)}, expected one or more of {', '.join(VECTORS)}.")
    return forms


def draw_vector(figure: Figure, form: str) -> Any:
    """Return a figure as SVG text or PDF in base64, the same bytes each time: without a date, with ids that repeat."""
    dateless = {"Date": None} if form == "svg" else {"CreationDate": None}
    with matplotlib.rc_context({"svg.hashsalt": "blockkit"}):
        return print_figure(figure, fmt=form, base64=True, metadata=dateless)  # type: ignore[no-untyped-call]


class FingerprintFormatter(BaseFormatter):
    """Give IPython the fingerprint of each matplotlib figure that it displays."""

    format_type = Unicode(MIME)
    _return_type = dict

    def __call__(self, obj: object) -> Record | None:
        """Return the fingerprint of a figure, and nothing for any other object."""
        return fingerprint(obj) if isinstance(obj, Figure) else None


def register() -> None:
    """Let the running IPython, if there is one, show figures in the forms of :func:`pictures`."""
    shell = get_ipython()
    if shell is None or shell.display_formatter is None:
        return
    formatters = shell.display_formatter.formatters
    formatters[MIME] = FingerprintFormatter(parent=shell.display_formatter)
    try:
        formatters["image/png"].lookup_by_type(Figure)
    except KeyError:
        formatters["image/png"].for_type(Figure, partial(print_figure, fmt="png", base64=True))
    for form in asked_for():
        formatters[VECTORS[form]].for_type(Figure, partial(draw_vector, form=form))
