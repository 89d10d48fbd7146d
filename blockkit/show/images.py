"""The face of the slice viewer that needs ipywidgets alone: pictures, and sliders that move them."""

import base64
from collections.abc import Sequence
from html import escape
from typing import Any

import ipywidgets as widgets

from blockkit.show.pixels import encode_png
from blockkit.show.render import AXES, PARTS
from blockkit.show.scene import Key
from blockkit.show.state import MOST_ZOOM, Event, box, shown_names
from blockkit.show.texts import edge_marks, sides
from blockkit.show.view import View

FIELDS = ("part", "slab", "zoom", "profile", "partner", "blinking", "column")
WIDEST = "clamp(180px, 32vh, 420px)"  # of a column; it shrinks where the page is narrow
PIXEL_CLASS, SQUARE_CLASS = "blockkit-voxels", "blockkit-squares"
MOST_SQUARES = 200  # along an axis; more are smoothed, as there may be no room for each
STYLE = f"""<style>
.{PIXEL_CLASS} {{ object-fit: fill; justify-self: center; }}
.{SQUARE_CLASS} {{ image-rendering: pixelated; }}
.blockkit-text {{ text-align: center; line-height: 1.4; color: var(--jp-ui-font-color1, inherit); }}
.blockkit-text table {{ margin: 0 auto; font-size: 12px; }}
.blockkit-text :is(td, th) {{ padding: 0 5px; font-weight: normal; text-align: right; white-space: nowrap; }}
.blockkit-heard {{ position: absolute; width: 1px; height: 1px; margin: 0; overflow: hidden; clip-path: inset(50%); }}
.blockkit-alert {{ color: var(--jp-error-color1, #d32f2f); }}
</style>"""


class ImageFace(widgets.VBox):  # type: ignore[misc]
    """Show the panels of a view as pictures; the parameters are those of :class:`CanvasFace`."""

    def __init__(self, view: View, handle: Any) -> None:
        self._view, self._handle = view, handle
        self._showing = False
        self._sent: dict[tuple[int, int], Key] = {}
        self.controls = self._make_controls()
        names, axes = range(len(view.state.names)), range(3)
        self.pictures = {(column, axis): self._picture(axis) for axis in axes for column in names}
        self._titles, self._values, self._tables = ([widgets.HTML() for _ in names] for _ in range(3))
        self._planes = [widgets.HTML() for _ in axes]
        self._alert, self._profile, self._saved, self._described = (widgets.HTML() for _ in range(4))
        rows = [self._row(self._titles)]
        for axis in axes:
            rows += [self._planes[axis], self._row([self.pictures[column, axis] for column in names])]
        rows += [self._row(self._values), self._row(self._tables), self._profile]
        super().__init__([widgets.HTML(STYLE + self._ratios()), *self._bars(), self._alert, *rows, self._described])
        self.paint()

    def paint(self) -> None:
        """Draw the panels that the state changed, and its words."""
        self._show_state()
        view, active = self._view, self._view.state.axis
        for axis in (active, *(axis for axis in range(3) if axis != active)):
            for column, name in enumerate(shown_names(view.state)):
                key = (*view.scene.key(view.state, name, axis), box(view.state, axis), view.state.position)
                if self._sent.get((column, axis)) != key:
                    table = view.scene.palettes[view.scene.colors(view.state, name)]
                    self.pictures[column, axis].value = encode_png(view.scene.marked(view.state, name, axis), table)
                    self._sent[column, axis] = key
        self._alert.value = ""
        self._show_words()

    def paint_texts(self) -> None:
        """Write the scores under the columns, and the description that only a screen reader finds."""
        self._described.value = f'<p class="blockkit-heard">{escape(self._view.describe())}</p>'
        for cell, table in zip(self._tables, self._view.tables(), strict=True):
            cell.value = _text(table)

    def fail(self, text: str) -> None:
        """Show an error over the panels, and the state that they have."""
        self._show_state()
        self._alert.value = f'<div role="alert" class="blockkit-alert">{escape(text)}</div>'

    def _show_words(self) -> None:
        words = self._view.words()
        for axis, text in enumerate(words["planes"]):
            self._planes[axis].value = escape(f"{text}: {sides(edge_marks(self._view.orientation, axis))}")
        for column, title in enumerate(words["titles"]):
            self._titles[column].value = _text(f"<b>{escape(title)}</b>")
            self._values[column].value = _text(escape(words["values"][column]))
        self._profile.value = words["svg"]
        self.paint_texts()

    def _show_state(self) -> None:
        state = self._view.state
        values = {
            **{AXES[axis]: state.position[axis] for axis in range(3)},
            **{name: getattr(state, name) for name in FIELDS},
            "window": tuple(round(100 * value) for value in state.window),
            "error_window": tuple(round(100 * value) for value in state.error_window),
        }
        self._showing = True
        for name, control in self.controls.items():
            control.value = values[name]
        self._showing = False

    def _changed(self, name: str, value: Any) -> None:
        if self._showing:
            return
        if name in AXES:
            position = [value if AXES[axis] == name else at for axis, at in enumerate(self._view.state.position)]
            event: Event = {"type": "set", "name": "position", "value": position, "axis": AXES.index(name)}
        elif name == "column":
            event = {"type": "scroll", "steps": 0, "column": value}
        elif name.endswith("window"):
            event = {"type": "set", "name": name, "value": [percent / 100 for percent in value]}
        else:
            event = {"type": "set", "name": name, "value": value}
        self._send(event)

    def _send(self, event: Event) -> None:
        self._handle(event, self._act)

    def _act(self, event: Event) -> None:
        if event["type"] == "save":
            picture = base64.b64encode(self._view.png()).decode("ascii")
            name = "slices_z{}_y{}_x{}.png".format(*self._view.state.position)
            self._saved.value = f'<a download="{name}" href="data:image/png;base64,{picture}">download {name}</a>'
            return
        self._view.step(event)
        self.paint()

    def _make_controls(self) -> dict[str, Any]:
        state = self._view.state
        columns = [(name, column) for column, name in enumerate(state.names)]
        profiles = [("none", -1), *((name, axis) for axis, name in enumerate(AXES))]
        controls = {
            **{name: _slider(name, n) for name, n in zip(AXES, state.shape, strict=True)},
            "part": _choice("show", PARTS),
            "slab": widgets.BoundedIntText(1, 0, max(state.shape), description="slab", layout=_wide(120), style=_TIGHT),
            "window": _range("window %"),
            "error_window": _range("error %"),
            "zoom": widgets.FloatSlider(1, min=1, max=MOST_ZOOM, description="zoom", layout=_wide(260), style=_TIGHT),
            "profile": _choice("profile", profiles, -1),
            "column": _choice("column", columns),
            "partner": _choice("blink with", state.names, state.partner),
            "blinking": widgets.ToggleButton(description="blink", layout=_wide(80)),
        }
        for name, control in controls.items():
            control.observe(lambda change, name=name: self._changed(name, change["new"]), names="value")
        return controls

    def _bars(self) -> list[Any]:
        buttons = {kind: widgets.Button(description=text, layout=_wide(90)) for kind, text in _BUTTONS.items()}
        for kind, button in buttons.items():
            button.on_click(lambda _button, kind=kind: self._send({"type": kind}))
        groups = [["z", "y", "x"], ["part", "slab", "window"], ["column", "partner", "blinking"], ["zoom", "profile"]]
        if any(self._view.setup()["errors"]):
            groups[1].append("error_window")
        bars = [[self.controls[name] for name in group] for group in groups]
        bars[-1] += [*buttons.values(), self._saved]
        return [widgets.HBox(bar, layout=widgets.Layout(flex_flow="row wrap")) for bar in bars]

    def _picture(self, axis: int) -> Any:
        setup = self._view.setup()
        share = 100 * setup["sizes"][axis][1] / setup["widest"]
        picture = widgets.Image(format="png", layout=widgets.Layout(width=f"{share:.2f}%", height="auto"))
        picture.add_class(PIXEL_CLASS).add_class(_ratio_class(setup["sizes"][axis]))
        if max(self._view.state.shape) <= MOST_SQUARES:
            picture.add_class(SQUARE_CLASS)
        return picture

    def _row(self, cells: list[Any]) -> Any:
        columns = f"repeat({len(cells)}, minmax(0, {WIDEST}))"
        return widgets.GridBox(cells, layout=widgets.Layout(grid_template_columns=columns, grid_gap="2px 8px"))

    def _ratios(self) -> str:
        sizes = self._view.setup()["sizes"]
        rules = [f".{_ratio_class(size)} {{ aspect-ratio: {size[1]:.6g} / {size[0]:.6g}; }}" for size in sizes]
        return f"<style>{' '.join(rules)}</style>"


_BUTTONS = {"reset": "reset", "save": "save PNG"}
_TIGHT = {"description_width": "initial"}


def _ratio_class(size: Sequence[float]) -> str:
    return f"blockkit-ratio-{size[1] / size[0]:.4f}".replace(".", "-")


def _text(html: str) -> str:
    return f'<div class="blockkit-text">{html}</div>' if html else ""


def _slider(name: str, n: int) -> Any:
    return widgets.IntSlider(n // 2, 0, n - 1, description=name, disabled=n == 1, layout=_wide(260), style=_TIGHT)


def _range(text: str) -> Any:
    return widgets.IntRangeSlider(value=(0, 100), max=200, description=text, layout=_wide(300), style=_TIGHT)


def _choice(text: str, options: Sequence[Any], value: Any = None) -> Any:
    chosen = {} if value is None else {"value": value}
    return widgets.Dropdown(options=options, description=text, layout=_wide(210), style=_TIGHT, **chosen)


def _wide(pixels: int) -> Any:
    return widgets.Layout(width=f"{pixels}px")
