"""PSNR, SSIM and NRMSE of what a viewer shows and of its whole volumes, as rows of a table."""

from collections.abc import Callable
from threading import Thread

import numpy as np

from blockkit.show.figures import captions
from blockkit.show.render import Volume, is_error, take_plane
from blockkit.show.scene import Scene
from blockkit.show.state import ViewState, depth

LARGE = 2**21
MEASURES = ("PSNR", "SSIM", "NRMSE")
PENDING = "…"


class Scores:
    """How near each volume comes to the one named ``"reference"``; without one there is nothing to say.

    The scores of the whole volumes are computed once: when they are asked for, or, above 2 million voxels, beside the
    work of the viewer, as they take seconds.
    """

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._whole: dict[str, str] | None = None if "reference" in scene.volumes else {}
        self._shown: tuple[tuple[int, ...], dict[str, str]] = ((), {})
        self._worker: Thread | None = None
        self.large = int(np.prod(scene.shape)) > LARGE

    def whole(self, *, wait: bool = True) -> dict[str, str]:
        """Return the captions of the whole volumes by name; those still at work are left out unless ``wait``."""
        if self._whole is None and wait:
            if self._worker is not None:
                self._worker.join()
            else:
                self._compute()
        return self._whole or {}

    def start(self, done: Callable[[], None]) -> None:
        """Begin with the whole volumes, beside other work where they are large, and call ``done`` after that."""
        if self._whole is None and self._worker is None and self.large:
            self._worker = Thread(target=self._compute, args=(done,), daemon=True)
            self._worker.start()

    def shown(self, state: ViewState) -> dict[str, str]:
        """Return the captions of what is shown across the active axis, on magnitude, by name."""
        if "reference" not in self._scene.volumes:
            return {}
        key = (state.axis, *depth(state, state.axis))
        if self._shown[0] != key:
            names = [name for name in self._scene.volumes if not is_error(name)]
            self._shown = key, captions({name: self._plane(state, name) for name in names})
        return self._shown[1]

    def table(self, name: str, shown: str) -> list[list[str]]:
        """Return rows of measure, what is shown, whole volume for the caption ``shown``; one cell alone is a remark."""
        if "reference" not in self._scene.volumes or name == "reference" or is_error(name):
            return []
        whole = self.whole(wait=not self.large).get(name, "")
        numbers = [_numbers(caption) for caption in (shown, whole)]
        pending = PENDING if self._whole is None else "–"
        rows = [[measure, numbers[0].get(measure, "–"), numbers[1].get(measure, pending)] for measure in MEASURES]
        remarks = {caption for caption in (shown, whole) if caption and "\n" not in caption}
        return rows + [[remark] for remark in sorted(remarks)]

    def _plane(self, state: ViewState, name: str) -> Volume:
        if state.slab == 1:
            return take_plane(self._scene.volumes[name], state.axis, state.position[state.axis])
        return self._scene.image(state, name, state.axis)

    def _compute(self, done: Callable[[], None] | None = None) -> None:
        try:
            self._whole = captions(self._scene.volumes)
        except Exception as error:  # nobody would see an error of the thread
            self._whole = dict.fromkeys(self._scene.volumes, f"{type(error).__name__}: {error}")
        if done is not None:
            done()


def _numbers(caption: str) -> dict[str, str]:
    pairs = [line.partition(" ") for line in caption.splitlines()]
    return {name.rstrip(":"): value for name, _, value in pairs if name.rstrip(":") in MEASURES}
