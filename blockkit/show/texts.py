"""What a viewer says in words: titles, the table under a column, the description that a screen reader reads."""

from collections.abc import Sequence
from html import escape

from blockkit.show.render import AXES, is_error
from blockkit.show.scene import Scene
from blockkit.show.scores import Scores
from blockkit.show.state import PLANES, ViewState, depth, in_plane, shown_names

OPPOSITE = {"H": "F", "F": "H", "A": "P", "P": "A", "R": "L", "L": "R"}


def check_orientation(orientation: str | None) -> str:
    """Return three letters, the side of the body where z, y and x begin, or "" for ``None``."""
    if orientation is None:
        return ""
    letters = orientation if isinstance(orientation, str) else ""
    pairs = {frozenset((letter, OPPOSITE.get(letter, ""))) for letter in letters}
    if len(letters) != 3 or len(pairs) != 3 or not set(letters) <= set(OPPOSITE):
        raise ValueError(
            f"orientation is {orientation!r}, expected three letters for where z, y and x begin, one of each pair H/F "
            'A/P and R/L, such as "HAR"; or None to leave them out.'
        )
    return orientation


def edge_marks(orientation: str, axis: int) -> list[str]:
    """Return the letters at the top, bottom, left and right of a plane across ``axis``; the axes' names without any."""
    row, column = in_plane(axis)
    if not orientation:
        return [f"{AXES[row]} ↓", "", f"{AXES[column]} →", ""]
    first, last = orientation, [OPPOSITE[letter] for letter in orientation]
    return [first[row], last[row], first[column], last[column]]


def sides(marks: Sequence[str]) -> str:
    """Return the letters of :func:`edge_marks` in words: "A above, P below, R left, L right"."""
    words = [f"{mark} {side}" for mark, side in zip(marks, ("above", "below", "left", "right"), strict=True)]
    return ", ".join(words) if all(marks) else "  ".join(mark for mark in marks if mark)


def plane_title(state: ViewState, axis: int) -> str:
    """Return the name of the planes across ``axis`` and where they lie: "axial, z = 28"."""
    first, last = depth(state, axis)
    if last - first == 1:
        return f"{PLANES[axis]}, {AXES[axis]} = {first}"
    return f"{PLANES[axis]}, maximum of {AXES[axis]} = {first} to {last - 1}"


def magnified(scene: Scene, state: ViewState, name: str) -> str:
    """Return the name of a volume; that of an error map with how much it is magnified."""
    return f"{name} × {scene.magnification(state, name):.3g}" if is_error(name) else name


def column_title(scene: Scene, state: ViewState, column: int) -> str:
    """Return the title of a column: its name, how much an error map is magnified, what a blink put in its place."""
    name = shown_names(state)[column]
    title = magnified(scene, state, name)
    return title if name == state.names[column] else f"{title} (for {state.names[column]})"


def score_html(rows: Sequence[Sequence[str]], plane: str) -> str:
    """Return the rows of :meth:`Scores.table` as an HTML table, "" for none."""
    if not rows:
        return ""
    cells = [f"<tr><th></th><th>{escape(plane)}</th><th>volume</th></tr>"]
    for row in rows:
        span = ' colspan="3"' if len(row) == 1 else ""
        cells.append("<tr>" + "".join(f"<td{span}>{escape(cell)}</td>" for cell in row) + "</tr>")
    return f"<table>{''.join(cells)}</table>"


def describe(scene: Scene, scores: Scores, state: ViewState, voxel_size: Sequence[float]) -> str:
    """Return what is seen, in sentences: which volumes, their shape, the position and the scores."""
    sizes = " x ".join(f"{size:.3g}" for size in voxel_size)
    shape = " x ".join(map(str, state.shape))
    titles = [column_title(scene, state, column) for column in range(len(state.names))]
    planes = "; ".join(plane_title(state, axis) for axis in range(3))
    kinds = "magnitude" if state.slab != 1 else state.part
    sentences = [
        f"{len(titles)} volume{'s' * (len(titles) > 1)} side by side: {', '.join(titles)}.",
        f"Each has {shape} voxels (z, y, x) of {sizes} mm.",
        f"Three planes through z = {state.position[0]}, y = {state.position[1]}, x = {state.position[2]}: {planes}.",
        f"Shown is the {kinds}{f', magnified {state.zoom:.3g} times' if state.zoom > 1 else ''}.",
    ]
    for name, caption in scores.whole(wait=not scores.large).items():
        sentences.append(f"{name} against the reference: {caption.replace(chr(10), ', ')}.")
    return " ".join(sentences)
