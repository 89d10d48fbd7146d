"""Fingerprints of figures: a few numbers that tell whether what is drawn has changed.

A picture in a saved notebook cannot be compared byte by byte: fonts and antialiasing differ between machines. So each
figure carries, beside its PNG, a small record of the data drawn in it. Each array :math:`v` is kept as its shape, its
norm and 32 sums :math:`s_j = \\sum_i r_{ij} v_i` with fixed random signs :math:`r_{ij}`. As the mean of
:math:`s_j^2` is :math:`\\|v\\|^2`, two records tell how far the data moved, without the data. An array of at most 32
numbers is kept as it is.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from typing import Any, TypeAlias, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.category import StrCategoryFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from numpy.typing import ArrayLike, NDArray

MIME = "application/vnd.blockkit.fingerprint+json"
N_SUMS = 32
MANY = 12

Record: TypeAlias = dict[str, Any]
Values: TypeAlias = NDArray[np.float64]
Drawing = TypeVar("Drawing")

_NUMBER = re.compile(r"[-+\u2212]?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?")
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+\b")


def shapes_only(drawing: Drawing) -> Drawing:
    """Mark a figure or a viewer whose values differ from machine to machine, and return it.

    Its fingerprint keeps shapes, labels and titles, and leaves out values, limits and the numbers in texts. For figures
    of a training run inside the notebook, of wall times, or of rounding errors.

    Examples
    --------
    >>> figure = bk.show.shapes_only(bk.show.plot_curves({"loss": [0.5, 0.3]}, "step", "loss"))
    """
    drawing.blockkit_values = False  # type: ignore[attr-defined]
    return drawing


def fingerprint(figure: Figure) -> Record:
    """Return the fingerprint of a matplotlib figure: a few kB that can be written as JSON."""
    texts = {"figure": _figure_texts(figure)}
    limits: dict[str, list[float]] = {}
    arrays: dict[str, Values] = {}
    for i, axes in enumerate(figure.axes):
        if axes.get_label() == "<colorbar>":
            texts[f"axes[{i}] color bar"] = axes.get_ylabel() or axes.get_xlabel()
            continue
        texts |= {f"axes[{i}] {key}": text for key, text in _axes_texts(axes).items()}
        limits |= {f"axes[{i}] {name}": list(limit) for name, limit in _axes_limits(axes).items()}
        arrays |= {f"axes[{i}] {name}": values for name, values in _axes_arrays(axes)}
    values = bool(getattr(figure, "blockkit_values", True))
    return record_of(arrays, texts, limits, values=values)


def record_of(
    arrays: Mapping[str, ArrayLike],
    texts: Mapping[str, str],
    limits: Mapping[str, list[float]] | None = None,
    *,
    values: bool = True,
) -> Record:
    """Return a fingerprint of named real arrays, texts and limits; only shapes and words where ``values`` is false."""
    return {
        "values": values,
        "texts": {key: text if values else _NUMBER.sub("#", text) for key, text in texts.items() if text},
        "limits": {key: [_rounded(v) for v in pair] for key, pair in (limits or {}).items()} if values else {},
        "arrays": {key: _array_record(np.asarray(array), values) for key, array in arrays.items()},
    }


def differences(stored: Record, drawn: Record, tolerance: float = 1e-3) -> list[str]:
    """Say how the fingerprint ``drawn`` differs from ``stored``, one sentence each; an empty list means the same.

    Parameters
    ----------
    stored, drawn
        Two fingerprints.
    tolerance
        How far data and limits may move, as a fraction of their norm and of their span.
    """
    said = []
    if stored["values"] != drawn["values"]:
        said.append("one of the two figures is marked shapes_only, the other is not")
    for section, compare in (("texts", _text_moved), ("limits", _limits_moved), ("arrays", _array_moved)):
        old, new = stored[section], drawn[section]
        said += [f"{key} is gone" for key in old if key not in new]
        said += [f"{key} is new" for key in new if key not in old]
        moved = {key: compare(old[key], new[key], tolerance) for key in old if key in new}
        said += [f"{key}: {how}" for key, how in moved.items() if how]
    return said


def same_text(stored: str, fresh: str) -> bool:
    """Compare two texts, their numbers to the last printed digit.

    A number with a decimal point or an exponent may differ by one unit in its last place; whole numbers and all other
    characters are the same, apart from memory addresses and the width of blanks.
    """
    old, new = (_ADDRESS.sub("0x", text) for text in (stored, fresh))
    if [part.split() for part in _NUMBER.split(old)] != [part.split() for part in _NUMBER.split(new)]:
        return False
    return all(_same_number(a, b) for a, b in zip(_NUMBER.findall(old), _NUMBER.findall(new), strict=True))


def _same_number(old: str, new: str) -> bool:
    a, b = (Decimal(text.replace("\u2212", "-")) for text in (old, new))
    if not any(mark in old + new for mark in ".eE"):
        return a == b
    units = [Decimal(1).scaleb(int(number.as_tuple().exponent)) for number in (a, b)]
    return abs(a - b) <= min(units) * (1 if units[0] == units[1] else 2)


def _text_moved(old: str, new: str, _tolerance: float) -> str:
    return "" if same_text(old, new) else f"{old!r} became {new!r}"


def _limits_moved(old: list[float], new: list[float], tolerance: float) -> str:
    span = abs(old[1] - old[0])
    moved = max(abs(a - b) for a, b in zip(old, new, strict=True))
    return "" if moved <= tolerance * span else f"{old} became {new}"


def _array_moved(old: Record, new: Record, tolerance: float) -> str:
    if old["shape"] != new["shape"]:
        return f"shape {old['shape']} became {new['shape']}"
    if old.get("not_finite", 0) != new.get("not_finite", 0):
        return f"{old.get('not_finite', 0)} values that are NaN or infinite became {new.get('not_finite', 0)}"
    if not (old.keys() & new.keys() & {"numbers", "sums"}):
        return ""
    kind = "numbers" if "numbers" in old else "sums"
    step = np.subtract(*(np.array(record[kind].split(), dtype=np.float64) for record in (old, new)))
    moved = float(np.linalg.norm(step)) / (1 if kind == "numbers" else np.sqrt(N_SUMS))
    if moved <= tolerance * old["norm"]:
        return ""
    share = f"{100 * moved / old['norm']:.3g} %" if old["norm"] else "everything: it was zero"
    return f"data moved by {share} (allowed {100 * tolerance:.3g} %)"


def _array_record(array: NDArray[Any], values: bool) -> Record:
    record: Record = {"shape": list(array.shape)}
    if values:
        numbers = np.ma.filled(np.ma.asarray(array, dtype=np.float64), np.nan).ravel()
        finite = np.isfinite(numbers)
        numbers = np.where(finite, numbers, 0)
        record["norm"] = _rounded(float(np.linalg.norm(numbers)))
        few = numbers.size <= N_SUMS
        record["numbers" if few else "sums"] = _joined(numbers if few else _signed_sums(numbers))
        if not finite.all():
            record["not_finite"] = int((~finite).sum())
    return record


def _joined(numbers: Iterable[float]) -> str:
    return " ".join(f"{number:.6g}" for number in numbers)


def _signed_sums(numbers: Values) -> list[float]:
    bits = np.random.PCG64(20).random_raw(numbers.size)
    total = float(numbers.sum())
    return [2 * float(numbers[(bits >> np.uint64(j)) & np.uint64(1) == 1].sum()) - total for j in range(N_SUMS)]


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _figure_texts(figure: Figure) -> str:
    width, height = figure.get_size_inches()
    size = f"{width:.2f} x {height:.2f} inches, {len(figure.axes)} axes"
    return " | ".join([size, *(text.get_text() for text in figure.texts)])


def _axes_texts(axes: Axes) -> dict[str, str]:
    legend = axes.get_legend()
    return {
        "title": " ".join(axes.get_title(side) for side in ("left", "center", "right")).strip(),
        "texts": " | ".join(text.get_text() for text in axes.texts),
        "legend": " | ".join(text.get_text() for text in legend.get_texts()) if legend else "",
        "colors": " ".join(image.get_cmap().name for image in axes.images),
        **{f"{name} label": axis.label.get_text() for name, axis in _axis_of(axes).items()},
        **{f"{name} scale": scale for name, axis in _axis_of(axes).items() if (scale := axis.get_scale()) != "linear"},
        **{f"{name} ticks": _tick_names(axis) for name, axis in _axis_of(axes).items()},
    }


def _axis_of(axes: Axes) -> dict[str, Axis]:
    return {name: getattr(axes, f"{name}axis") for name in "xyz" if hasattr(axes, f"{name}axis")}


def _tick_names(axis: Axis) -> str:
    formatter = axis.get_major_formatter()
    if not isinstance(axis.get_major_locator(), FixedLocator) and not isinstance(formatter, StrCategoryFormatter):
        return ""
    return " | ".join(label.get_text() for label in axis.get_ticklabels())


def _axes_limits(axes: Axes) -> dict[str, tuple[float, float]]:
    limits = {f"{name} limits": getattr(axes, f"get_{name}lim")() for name in _axis_of(axes)}
    return limits | {f"image{i} window": image.get_clim() for i, image in enumerate(axes.images)}


def _axes_arrays(axes: Axes) -> Iterator[tuple[str, Values]]:
    for i, image in enumerate(axes.images):
        yield f"image{i}", image.get_array()  # type: ignore[misc]
    lines = [_line_points(line) for line in axes.lines]
    patches = [patch.get_patch_transform().transform_path(patch.get_path()).vertices for patch in axes.patches]
    for kind, drawn in (("line", lines), ("patch", patches)):
        grouped = [np.concatenate(drawn)] if len(drawn) > MANY else drawn
        for i, points in enumerate(grouped):
            for name, column in zip("xyz", np.asarray(points).T, strict=False):
                yield f"{kind}{i}.{name}", column
    for i, collection in enumerate(axes.collections):
        offsets: Any = getattr(collection, "_offsets3d", None) or np.ma.asarray(collection.get_offsets()).T
        vertices = [path.vertices for path in collection.get_paths()]
        columns = np.concatenate(vertices).T if vertices else np.zeros((2, 0))
        for name, points in [*zip("xyz", offsets, strict=False), ("outline x", columns[0]), ("outline y", columns[1])]:
            yield f"collection{i}.{name}", points
        if (colors := collection.get_array()) is not None:
            yield f"collection{i} color", colors


def _line_points(line: Any) -> Values:
    points = (
        line.get_data_3d() if hasattr(line, "get_data_3d") else (line.get_xdata(orig=False), line.get_ydata(orig=False))
    )
    return np.stack([np.ma.filled(np.ma.asarray(p, dtype=np.float64), np.nan) for p in points], axis=-1)
