"""The slice viewer as someone uses it: a notebook in JupyterLab, a pointer, a wheel and keys."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

pytestmark = pytest.mark.ui

VOLUMES = """import numpy as np
import blockkit as bk
reference = bk.pulmonary_phantom((40, 48, 56), seed=0)
noise = np.random.default_rng(0).normal(size=(2, 40, 48, 56)).astype("float32")
image = reference.numpy() + 0.02 * (noise[0] + 1j * noise[1])
smooth = (reference + reference.roll(1, 0) + reference.roll(1, 1) + reference.roll(1, 2)) / 4
volumes = {"MBDL": image, "CS": smooth, "reference": reference, "error of MBDL": abs(image - reference.numpy())}"""
CANVAS = 'viewer = bk.SliceViewer(volumes, orientation="HAR")\nviewer'
IMAGE = 'viewer = bk.SliceViewer(volumes, face="image")\nviewer'
UNCHANGED_MS = 3000
PATIENCE_MS = 30_000  # a busy machine is slow, and what does not come at all is found out all the same
ALL = {(axis, column) for axis in range(3) for column in range(4)}
DEAF = """class Deaf(bk.SliceViewer):
    def _handle(self, event, act):
        if event["type"] in ("ready", "texts"):
            super()._handle(event, act)
Deaf(volumes)"""
BROKEN = """def fail(*args):
    raise MemoryError("no room for a line")
viewer = bk.SliceViewer(volumes)
viewer._view.scene.line = fail
viewer"""
ODD = """import numpy as np
import blockkit as bk
lost, zeros, one = np.full((3, 4, 5), np.nan), np.zeros((6, 5, 4)), np.ones((1, 1, 1), bool)
flat, whole = np.random.default_rng(0).random((1, 40, 36)), np.arange(60).reshape(3, 4, 5)"""
ODD_NAMES = ("lost", "zeros", "one", "flat", "whole")
# Versions count the panels that the kernel sent; what is painted has the crosshair over it.
VERSIONS = "all => all.map(one => Number(one.dataset.version))"
PAINTED = "all => all.map(one => one.toDataURL())"
LINKS = "all => all.map(one => one.src)"


class Viewer:
    """The canvas in a page: what its panels show, and a hand on pointer and keys."""

    def __init__(self, page: Any, number: int = 0, *, columns: int = 4) -> None:
        self.page, self.number, self.columns, self.patience_ms = page, number, columns, PATIENCE_MS
        self.root = page.locator(".blockkit-viewer").nth(number)
        self.root.scroll_into_view_if_needed()
        self.wait("root.dataset.frames !== '0' && root.ariaBusy === 'false' && !root.ariaLabel.startsWith('slice')")
        self.root.scroll_into_view_if_needed()

    def all(self, script: str) -> list[Any]:
        """Return what a script makes of all panels."""
        made: list[Any] = self.root.locator(".blockkit-panel").evaluate_all(script)
        return made

    def wait(self, condition: str) -> None:
        """Wait until a condition on ``root`` holds."""
        where = f"document.querySelectorAll('.blockkit-viewer')[{self.number}]"
        self.page.wait_for_function(f"(root => {condition})({where})", timeout=self.patience_ms)

    def panel(self, axis: int, column: int) -> Any:
        return self.root.locator(".blockkit-panel").nth(self.columns * axis + column)

    def at(self) -> list[int]:
        said = [self.root.locator(".blockkit-plane span").nth(axis).inner_text() for axis in range(3)]
        return [int(re.findall(r"= (\d+)", text)[0]) for text in said]

    def sent(self, act: Callable[[], object]) -> set[tuple[int, int]]:
        """Return the panels (axis, column) that got new bytes by an act, when all that it asked for is answered."""
        before, frames = self.all(VERSIONS), self.root.get_attribute("data-frames")
        act()
        self.wait(f"root.dataset.frames !== '{frames}' && root.ariaBusy === 'false'")
        after = self.all(VERSIONS)
        n = self.columns
        return {(i // n, i % n) for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]}

    def press(self, axis: int, column: int, key: str) -> set[tuple[int, int]]:
        self.panel(axis, column).focus()
        return self.sent(lambda: self.page.keyboard.press(key))

    def point(self, axis: int, column: int, x: float, y: float) -> tuple[float, float]:
        box = self.panel(axis, column).bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def drag(self, axis: int, column: int, *stops: tuple[float, float]) -> None:
        self.page.mouse.move(*self.point(axis, column, *stops[0]))
        self.page.mouse.down()
        for stop in stops[1:]:
            self.page.mouse.move(*self.point(axis, column, *stop), steps=5)
        self.page.mouse.up()


@pytest.fixture(scope="module")
def page(lab: Any, browser: Any) -> Any:
    """A notebook with a canvas and, below it, the other face."""
    opened = lab.open(browser, [VOLUMES, CANVAS, IMAGE])
    yield opened
    opened.close()


@pytest.fixture
def viewer(page: Any, lab: Any) -> Any:
    lab.logged.clear()
    shown = Viewer(page)
    shown.root.locator("[data-do=reset]").click()
    shown.wait("root.ariaBusy === 'false'")
    yield shown
    assert lab.logged == []


def across(*axes: int) -> set[tuple[int, int]]:
    return {(axis, column) for axis in axes for column in range(4)}


def test_a_click_moves_the_crosshair_and_changes_the_planes_that_it_moves(viewer: Viewer) -> None:
    assert viewer.at() == [20, 24, 28]
    sent = viewer.sent(lambda: viewer.page.mouse.click(*viewer.point(0, 1, 0.26, 0.51)))
    z, y, x = viewer.at()
    assert (z, x) == (20, 14)
    assert y == 24
    assert sent == across(2)


def test_a_drag_takes_the_crosshair_along(viewer: Viewer) -> None:
    sent = viewer.sent(lambda: viewer.drag(1, 2, (0.5, 0.5), (0.7, 0.3), (0.901, 0.101)))
    assert viewer.at() == [4, 24, 50]
    assert sent == across(0, 2)


def test_the_wheel_scrolls_the_slice_under_the_pointer(viewer: Viewer) -> None:
    viewer.page.mouse.move(*viewer.point(0, 0, 0.5, 0.5))
    before = viewer.all(PAINTED)
    assert viewer.sent(lambda: viewer.page.mouse.wheel(0, 100)) == across(0)
    assert viewer.at() == [21, 24, 28]
    after = viewer.all(PAINTED)
    assert all(a != b for a, b in zip(before[:4], after[:4], strict=True))
    assert viewer.sent(lambda: viewer.page.mouse.wheel(0, -100)) == across(0)
    assert viewer.all(PAINTED)[:4] == before[:4]


def test_keys_move_scroll_zoom_blink_and_reset(viewer: Viewer) -> None:
    assert viewer.press(0, 0, "ArrowRight") == across(2)
    assert viewer.press(1, 0, "PageDown") == across(1)
    assert viewer.press(2, 0, "ArrowUp") == across(0)
    assert viewer.at() == [19, 25, 29]
    painted = viewer.all(PAINTED)
    assert viewer.press(0, 0, "b") == set()
    blinked = viewer.all(PAINTED)
    assert [i for i in range(12) if blinked[i] != painted[i]] == [0, 4, 8]
    assert viewer.root.locator(".blockkit-title").first.inner_text() == "reference (for MBDL)"
    assert viewer.press(0, 0, "b") == set()
    assert viewer.all(PAINTED) == painted
    assert viewer.press(0, 0, "+") == set()
    assert all(a != b for a, b in zip(painted, viewer.all(PAINTED), strict=True))
    assert viewer.press(0, 0, "m") == ALL
    viewer.press(0, 0, "p")
    assert viewer.root.locator(".blockkit-profile path.line").count() == 4
    viewer.press(0, 0, "r")
    assert viewer.at() == [20, 24, 28]


def test_keys_of_the_viewer_do_nothing_to_the_notebook(viewer: Viewer) -> None:
    cells = viewer.page.locator(".jp-Notebook .jp-Cell")
    types = cells.evaluate_all("all => all.map(one => one.className.match(/jp-(Code|Markdown|Raw)Cell/)[0])")
    for key in ("b", "b", "m", "m", "r"):
        viewer.press(0, 0, key)
    viewer.drag(0, 0, (0.2, 0.2), (0.4, 0.4))
    assert cells.evaluate_all("all => all.map(one => one.className.match(/jp-(Code|Markdown|Raw)Cell/)[0])") == types


def test_a_drag_with_shift_changes_the_window_of_its_kind_only(viewer: Viewer) -> None:
    at = viewer.at()
    viewer.page.keyboard.down("Shift")
    images = viewer.sent(lambda: viewer.drag(0, 0, (0.5, 0.5), (0.8, 0.6)))
    errors = viewer.sent(lambda: viewer.drag(0, 3, (0.5, 0.5), (0.2, 0.5)))
    viewer.page.keyboard.up("Shift")
    assert images == {place for place in ALL if place[1] < 3}
    assert errors == {place for place in ALL if place[1] == 3}
    assert viewer.at() == at


def test_controls_do_what_they_say(viewer: Viewer) -> None:
    root = viewer.root
    images = {place for place in ALL if place[1] < 3}
    assert viewer.sent(lambda: root.locator("[data-set=part]").select_option("phase")) == images
    assert viewer.sent(lambda: root.locator("[data-set=part]").select_option("magnitude")) == images
    assert viewer.sent(lambda: (root.locator("[data-set=slab]").fill("5"), viewer.page.keyboard.press("Enter"))) == ALL
    assert "maximum of z = 18 to 22" in root.inner_text()
    assert viewer.sent(lambda: root.locator("[data-do=reset]").click()) == ALL
    slider = root.locator(".blockkit-plane input").first
    assert viewer.sent(lambda: (slider.focus(), viewer.page.keyboard.press("ArrowRight"))) == across(0)
    assert viewer.at() == [21, 24, 28]
    with viewer.page.expect_download() as download:
        root.locator("[data-do=save]").click()
    assert download.value.suggested_filename == "slices_z21_y24_x28.png"


def test_the_value_under_the_pointer_is_written_under_each_column(viewer: Viewer) -> None:
    viewer.page.mouse.move(*viewer.point(0, 1, 0.26, 0.51))
    viewer.wait("root.querySelector('.blockkit-at').textContent.includes('x = 14')")
    values = viewer.root.locator(".blockkit-value").all_inner_texts()
    assert len(values) == 4
    assert all(re.match(r"[\d.e-]+", value) for value in values)
    assert viewer.at() == [20, 24, 28]


def test_a_screen_reader_hears_what_is_seen(viewer: Viewer) -> None:
    viewer.wait("root.ariaLabel.startsWith('4 volumes')")
    assert "PSNR" in viewer.root.get_attribute("aria-label")
    assert viewer.panel(1, 2).get_attribute("aria-label") == "reference, coronal, y = 24"


def test_odd_volumes_are_pictures_and_take_keys(notebook: Callable[..., Any], lab: Any, screenshot: Any) -> None:
    opened = notebook(ODD, *(f"bk.SliceViewer({{'a': {name}, 'error': {name}}})" for name in ODD_NAMES))
    for number, name in enumerate(ODD_NAMES):
        viewer = Viewer(opened, number, columns=2)
        for key in ("PageDown", "ArrowRight", "+", "m", "p", "b", "r"):
            viewer.press(0, 0, key)
        assert viewer.root.locator(".blockkit-alert").inner_text() == ""
        sizes = [viewer.panel(axis, 1).bounding_box() for axis in range(3)]
        assert all(size["width"] >= 5 and size["height"] >= 5 for size in sizes)
        screenshot(viewer.root, f"slices-odd-{name}")
    assert lab.logged == []


def test_without_its_callback_the_viewer_is_found_out(notebook: Callable[..., Any]) -> None:
    from playwright.sync_api import TimeoutError as Unchanged

    opened = notebook(VOLUMES, DEAF, BROKEN)
    viewer = Viewer(opened, 0)
    viewer.patience_ms = UNCHANGED_MS
    for act in (
        lambda: viewer.page.mouse.click(*viewer.point(0, 1, 0.26, 0.51)),
        lambda: viewer.press(0, 0, "PageDown"),
    ):
        with pytest.raises(Unchanged):
            viewer.sent(act)
    assert viewer.at() == [20, 24, 28]
    an_error_of_a_callback_is_read_in_the_widget(Viewer(opened, 1))


def an_error_of_a_callback_is_read_in_the_widget(viewer: Viewer) -> None:
    viewer.panel(0, 0).focus()
    viewer.page.keyboard.press("p")
    viewer.wait("root.querySelector('.blockkit-alert').textContent")
    assert viewer.root.locator(".blockkit-alert").inner_text() == "MemoryError: no room for a line"
    viewer.press(0, 0, "PageDown")
    assert viewer.root.locator(".blockkit-alert").inner_text() == ""


def test_the_sliders_of_the_other_face_move_its_pictures(page: Any, lab: Any) -> None:
    lab.logged.clear()
    pictures = page.locator("img.blockkit-voxels")
    pictures.nth(11).scroll_into_view_if_needed()
    before = pictures.evaluate_all(LINKS)
    page.locator(".noUi-handle").nth(0).focus()
    page.keyboard.press("ArrowRight")
    page.get_by_text("axial, z = 21").last.wait_for(timeout=PATIENCE_MS)
    page.wait_for_function(
        "old => [...document.querySelectorAll('img.blockkit-voxels')].every((one, i) => one.src !== old[i])",
        arg=before, timeout=PATIENCE_MS,
    )  # fmt: skip
    assert lab.logged == []


@pytest.mark.parametrize("width", [900, 1400, 2500])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_layout_holds(page: Any, viewer: Viewer, screenshot: Any, lab: Any, width: int, dark: bool) -> None:
    lab.paint(page, width=width, dark=dark)
    viewer.press(0, 0, "p")
    outputs = page.locator(".jp-OutputArea-output")
    for face, panels in (("canvas", ".blockkit-panel"), ("image", "img.blockkit-voxels")):
        boxes = [page.locator(panels).nth(i).bounding_box() for i in range(12)]
        output = outputs.filter(has=page.locator(panels))
        output.scroll_into_view_if_needed()
        screenshot(output, f"slices-{face}-{width}-{'dark' if dark else 'light'}")
        assert all(box["width"] >= 80 and box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
        rows = [boxes[i : i + 4] for i in (0, 4, 8)]
        assert all(a["x"] + a["width"] <= b["x"] for row in rows for a, b in pairwise(row))
    viewer.wait("root.scrollWidth <= root.clientWidth + 1")
