"""How long the kernel takes to answer an event of the slice viewer, at four volumes of 300 x 200 x 300 voxels.

    python benchmarks/viewer.py

The image face counts its scores of the slice, which come after its pictures. The way through the browser and back
comes on top: see benchmarks/ui.py.
"""

import time
from typing import Any

import numpy as np
from common import machine

import blockkit as bk

SHAPE = (300, 200, 300)
EVENTS = {
    "next axial slice": {"type": "key", "key": "PageDown", "axis": 0},
    "crosshair, three planes": {"type": "set", "name": "position", "value": None},
    "window": {"type": "drag", "dx": 0.01, "dy": 0.01, "axis": 0, "column": 0},
    "slab of 20, next slice": {"type": "key", "key": "PageDown", "axis": 0},
}


def main() -> None:
    volumes = make_volumes()
    print(f"{machine()}\n\n| event | canvas (ms) | image (ms) |\n|:--|--:|--:|")
    faces = [bk.SliceViewer(volumes, face=face) for face in ("canvas", "image")]
    for viewer in faces:
        viewer._face.send = lambda content, buffers=None: None
        viewer._view.scores.whole()
        viewer._face.paint()
    for name, event in EVENTS.items():
        for viewer in faces:
            viewer.slab = 20 if "slab" in name else 1
        times = [milliseconds(viewer, event) for viewer in faces]
        print(f"| {name} | {times[0]:.0f} | {times[1]:.0f} |")


def make_volumes() -> dict[str, np.ndarray]:
    """Return MBDL, CS, reference (complex64) and an error map (float32): smooth shapes with noise."""
    rng = np.random.default_rng(0)
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE), indexing="ij")
    texture = 0.7 + 0.3 * np.sin(9 * x + 8 * y + 7 * z)  # no two slices are the same
    reference = (np.hypot(np.hypot(z, y), x) < 0.8) * texture * np.exp(1j * (x + y)).astype(np.complex64)
    noise = 0.05 * rng.standard_normal(SHAPE, dtype=np.float32)
    volumes = {"MBDL": reference + noise, "CS": reference - 0.5j * noise, "reference": reference}
    return {**volumes, "error of MBDL": np.abs(noise)}


def act(viewer: Any, event: dict[str, Any]) -> None:
    viewer._handle(event, viewer._face._act)


def milliseconds(viewer: Any, event: dict[str, Any], n: int = 30) -> float:
    """Return the mean time of ``n`` answers."""
    start = time.perf_counter()
    for i in range(n):
        if event.get("name") == "position":
            event = {**event, "value": [100 + i, 100 + i, 100 + i]}
        act(viewer, event)
    return (time.perf_counter() - start) * 1000 / n


if __name__ == "__main__":
    main()
