"""The face of the slice viewer that reacts to pointer, wheel and keys: a canvas in the browser, by anywidget."""

from pathlib import Path
from typing import Any

import anywidget
import traitlets

from blockkit.show.scene import Key
from blockkit.show.state import Event
from blockkit.show.view import View

STATIC = Path(__file__).parent / "static"


class CanvasFace(anywidget.AnyWidget):  # type: ignore[misc]
    """Send the panels that an event changed to the browser, one byte a voxel, and take events from there.

    Parameters
    ----------
    view
        What is shown.
    handle
        Called with each event that may change the state; it answers by :meth:`paint` or :meth:`fail`.
    """

    _esm = STATIC / "viewer.js"
    _css = STATIC / "viewer.css"
    setup = traitlets.Dict().tag(sync=True)
    palettes = traitlets.Bytes().tag(sync=True)

    def __init__(self, view: View, handle: Any) -> None:
        self._view, self._handle = view, handle
        self._sent: dict[tuple[int, int], Key] = {}
        self._reply = 0
        palettes = b"".join(table.tobytes() for table in view.scene.palettes.values())
        super().__init__(setup=view.setup(), palettes=palettes)
        self.on_msg(self._receive)

    def paint(self) -> None:
        """Send what the state says, and the panels whose bytes the browser does not have."""
        view = self._view
        panels, buffers, keys = [], [], {}
        for volume, name in enumerate(view.state.names):
            for axis in range(3):
                key = view.scene.key(view.state, name, axis)
                if self._sent.get((volume, axis)) != key:
                    indices = view.scene.indices(view.state, name, axis)
                    rows, columns = indices.shape
                    colors = view.scene.colors(view.state, name)
                    panels.append({"volume": volume, "axis": axis, "rows": rows, "columns": columns, "colors": colors})
                    buffers.append(indices.tobytes())
                    keys[volume, axis] = key
        self._answer({"type": "frame", "panels": panels, "view": view.words()}, buffers)
        self._sent |= keys

    def paint_texts(self) -> None:
        """Send the scores under the columns and the description."""
        self._answer({"type": "texts", "tables": self._view.tables(), "label": self._view.describe()})

    def fail(self, text: str) -> None:
        """Show an error over the panels."""
        self._answer({"type": "error", "text": text})

    def _receive(self, _widget: object, event: Event, _buffers: object) -> None:
        self._reply = int(event.get("reply", 0))
        self._handle(event, self._act)
        self._reply = 0

    def _act(self, event: Event) -> None:
        kind = event.get("type")
        if kind == "ready":
            self._sent.clear()
            self.paint()
        elif kind == "texts":
            self.paint_texts()
        elif kind == "probe":
            self._answer({"type": "values", **self._view.probe(event)})
        elif kind == "save":
            name = "slices_z{}_y{}_x{}.png".format(*self._view.state.position)
            self._answer({"type": "file", "name": name}, [self._view.png()])
        else:
            self._view.step(event)
            self.paint()

    def _answer(self, content: dict[str, Any], buffers: list[bytes] | None = None) -> None:
        self.send({**content, "reply": self._reply}, buffers)
