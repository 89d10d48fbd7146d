import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blockkit.show import SliceViewer, shapes_only
from blockkit.show.canvas import STATIC
from blockkit.show.fingerprint import MIME, differences, fingerprint
from blockkit.show.pixels import CROSSHAIR_COLOR, NAN_COLOR
from blockkit.show.slices import Face

RNG = np.random.default_rng(0)
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
PNG = b"\x89PNG"
BOTH = pytest.mark.parametrize("face", ["canvas", "image"])


def volume(shape: tuple[int, ...] = (6, 8, 10)) -> np.ndarray:
    return (RNG.normal(size=shape) + 1j * RNG.normal(size=shape)).astype(np.complex64)


class Browser:
    """Stands for the browser behind a canvas: keeps what is sent, and sends events."""

    def __init__(self, viewer: SliceViewer) -> None:
        self.face = viewer._face
        self.got: list[tuple[dict[str, Any], list[bytes]]] = []
        self.face.send = lambda content, buffers=None: self.got.append((content, buffers or []))

    def send(self, **event: Any) -> dict[str, Any]:
        self.face._receive(self.face, {"reply": len(self.got) + 1, **event}, [])
        return self.got[-1][0]

    def changed(self) -> set[tuple[int, int]]:
        return {(panel["volume"], panel["axis"]) for panel in self.got[-1][0]["panels"]}


def pictures(viewer: SliceViewer) -> dict[tuple[int, int], bytes]:
    return {place: bytes(picture.value) for place, picture in viewer._face.pictures.items()}


def test_the_canvas_is_the_face_where_anywidget_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(SliceViewer({"a": volume()})._face).__name__ == "CanvasFace"
    monkeypatch.setattr("blockkit.show.slices.find_spec", lambda name: None)
    assert type(SliceViewer({"a": volume()})._face).__name__ == "ImageFace"
    with pytest.raises(ValueError, match="face is 'cnavas', expected one of 'auto'"):
        SliceViewer({"a": volume()}, face="cnavas")  # type: ignore[arg-type]


def test_the_script_of_the_canvas_comes_with_the_package() -> None:
    assert {path.name for path in STATIC.iterdir()} == {"viewer.css", "viewer.js"}


def test_a_browser_that_opens_gets_every_panel_and_the_words() -> None:
    browser = Browser(SliceViewer({"a": volume(), "b": torch.from_numpy(volume())}))
    frame = browser.send(type="ready")
    assert browser.changed() == {(v, axis) for v in range(2) for axis in range(3)}
    sizes = [panel["rows"] * panel["columns"] for panel in frame["panels"]]
    assert [len(buffer) for buffer in browser.got[-1][1]] == sizes == [80, 60, 48] * 2
    assert frame["view"]["planes"] == ["axial, z = 3", "coronal, y = 4", "sagittal, x = 5"]
    assert json.loads(json.dumps(frame))["view"]["position"] == [3, 4, 5]
    assert frame["reply"] == 1


@pytest.mark.parametrize(
    ("event", "axes"),
    [
        ({"type": "scroll", "axis": 0, "steps": 1}, {0}),
        ({"type": "key", "key": "ArrowLeft", "axis": 0}, {2}),
        ({"type": "move", "axis": 1, "row": 0, "col": 0}, {0, 2}),
        ({"type": "move", "axis": 0, "row": 4, "col": 5}, set()),
        ({"type": "zoom", "steps": 1}, set()),
        ({"type": "key", "key": "b", "column": 0}, set()),
        ({"type": "key", "key": "m"}, {0, 1, 2}),
    ],
)
def test_only_the_panels_that_an_event_changes_are_sent(event: dict[str, Any], axes: set[int]) -> None:
    browser = Browser(SliceViewer({"a": volume(), "reference": volume()}))
    browser.send(type="ready")
    browser.send(**event)
    assert browser.changed() == {(v, axis) for v in range(2) for axis in axes}


def test_a_window_drag_sends_the_images_or_the_errors() -> None:
    browser = Browser(SliceViewer({"a": volume(), "error": volume()}))
    browser.send(type="ready")
    browser.send(type="drag", dx=0.1, dy=0.1, axis=0, column=0)
    assert browser.changed() == {(0, axis) for axis in range(3)}
    browser.send(type="drag", dx=0.1, dy=0.1, axis=0, column=1)
    assert browser.changed() == {(1, axis) for axis in range(3)}


def test_the_sent_bytes_are_those_of_the_renderer() -> None:
    viewer = SliceViewer({"a": volume()})
    browser = Browser(viewer)
    browser.send(type="ready")
    browser.send(type="scroll", axis=0, steps=2)
    view = viewer._view
    assert browser.got[-1][1] == [view.scene.indices(view.state, "a", 0).tobytes()]


def test_the_pointer_asks_for_values_without_moving() -> None:
    v = volume()
    v[3, 1, 2] = 7
    viewer = SliceViewer({"a": v})
    answer = Browser(viewer).send(type="probe", axis=0, column=0, row=1, col=2)
    assert answer["values"] == ["7 ∠ 0.00"]
    assert answer["at"] == "values at z = 3, y = 1, x = 2"
    assert viewer.position == (3, 4, 5)


def test_scores_and_the_description_come_when_asked_for() -> None:
    browser = Browser(SliceViewer({"<a>": volume(), "reference": volume()}))
    answer = browser.send(type="texts")
    assert "PSNR" in answer["tables"][0]
    assert answer["tables"][1] == ""
    assert "6 x 8 x 10 voxels" in answer["label"]


def test_the_save_button_answers_with_a_png() -> None:
    browser = Browser(SliceViewer({"a": volume()}))
    answer = browser.send(type="save")
    assert answer["name"] == "slices_z3_y4_x5.png"
    assert browser.got[-1][1][0].startswith(PNG)


@pytest.mark.parametrize(
    "event", [{"type": "move", "axis": 0}, {"type": "dance"}, {"type": "set", "name": "part", "value": 3}]
)
def test_an_error_in_a_callback_is_shown_and_not_raised(event: dict[str, Any]) -> None:
    viewer = SliceViewer({"a": volume()})
    browser = Browser(viewer)
    answer = browser.send(**event)
    assert answer["type"] == "error"
    assert answer["reply"] == 1
    assert answer["text"].partition(":")[0] in ("KeyError", "ValueError")
    assert browser.send(type="scroll", axis=0, steps=1)["type"] == "frame"


def test_an_error_under_the_pictures_is_shown_too(monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = SliceViewer({"<a>": volume()}, face="image")

    def fail(*_: object) -> None:
        raise MemoryError("no <room>")

    monkeypatch.setattr(viewer._view.scene, "marked", fail)
    viewer._face.controls["z"].value = 1
    assert "MemoryError: no &lt;room&gt;" in viewer._face._alert.value
    assert viewer._face.controls["z"].value == viewer.position[0] == 3
    monkeypatch.undo()
    viewer._face.controls["z"].value = 2
    assert viewer._face._alert.value == ""


def test_each_slider_redraws_what_it_changes() -> None:
    viewer = SliceViewer({"a": volume()}, face="image")
    for axis, name in enumerate("zyx"):
        before = pictures(viewer)
        viewer._face.controls[name].value = 1
        assert all(before[place] != after for place, after in pictures(viewer).items())
        assert viewer.position[axis] == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("part", "phase"),
        ("slab", 3),
        ("window", (10, 60)),
        ("zoom", 2.0),
        ("blinking", True),
        ("slab", 0),
    ],
)
def test_each_control_changes_the_pictures_and_reset_undoes_it(name: str, value: object) -> None:
    viewer = SliceViewer({"a": volume(), "reference": volume()}, face="image")
    before = pictures(viewer)
    viewer._face.controls[name].value = value
    assert pictures(viewer)[0, 0] != before[0, 0]
    viewer._face._send({"type": "reset"})
    assert pictures(viewer) == before
    assert viewer._face.controls["window"].value == (0, 100)


def test_the_error_slider_leaves_the_images_alone() -> None:
    viewer = SliceViewer({"a": volume(), "error": volume()}, face="image")
    before = pictures(viewer)
    viewer._face.controls["error_window"].value = (0, 50)
    after = pictures(viewer)
    assert all((before[place] != after[place]) == (place[0] == 1) for place in before)


def test_blinking_shows_the_other_volume_in_the_chosen_column() -> None:
    viewer = SliceViewer({"a": volume(), "b": volume(), "reference": volume()}, face="image")
    before = pictures(viewer)
    viewer._face.controls["column"].value = 1
    viewer._face.controls["blinking"].value = True
    assert pictures(viewer) == before | {(1, axis): before[2, axis] for axis in range(3)}
    assert "reference (for b)" in viewer._face._titles[1].value


def test_the_profile_stands_under_the_pictures() -> None:
    viewer = SliceViewer({"a": volume()}, face="image")
    assert viewer._face._profile.value == ""
    viewer._face.controls["profile"].value = 2
    assert "x (voxels) at z = 3, y = 4" in viewer._face._profile.value


def test_saving_offers_a_file_to_download_and_writes_one(tmp_path: Path) -> None:
    viewer = SliceViewer({"a": volume()}, face="image")
    viewer._face._send({"type": "save"})
    assert 'download="slices_z3_y4_x5.png"' in viewer._face._saved.value
    viewer.save_png(tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(PNG)


@BOTH
def test_setting_the_position_moves_there_and_checks_the_bounds(face: Face) -> None:
    viewer = SliceViewer({"a": volume()}, face=face)
    viewer.position = (0, -1, 9)
    assert viewer.position == (0, 7, 9)
    with pytest.raises(ValueError, match="along x is 10"):
        viewer.position = (0, 0, 10)
    assert viewer.position == (0, 7, 9)


def test_setting_the_position_moves_the_sliders_and_the_canvas() -> None:
    viewer = SliceViewer({"a": volume()}, face="image")
    viewer.position = (0, 1, 2)
    assert [viewer._face.controls[name].value for name in "zyx"] == [0, 1, 2]
    viewer = SliceViewer({"a": volume()}, face="canvas")
    browser = Browser(viewer)
    viewer.position = (0, 1, 2)
    assert browser.got[-1][0]["view"]["position"] == (0, 1, 2)


@BOTH
def test_properties_set_what_they_read(face: Face) -> None:
    viewer = SliceViewer({"a": volume()}, face=face)
    viewer.part, viewer.slab, viewer.zoom, viewer.window = "real", 3, 2.0, (0.25, 0.5)
    assert (viewer.part, viewer.slab, viewer.zoom, viewer.window) == ("real", 3, 2.0, (0.25, 0.5))
    with pytest.raises(ValueError, match="part is 'odd'"):
        viewer.part = "odd"  # type: ignore[assignment]


def test_moving_the_crosshair_moves_it_in_every_volume() -> None:
    viewer = SliceViewer({"a": np.zeros((6, 8, 10)), "b": np.zeros((6, 8, 10))})
    viewer.position = (3, 4, 7)
    for name in "ab":
        marked = viewer.pixels(name, "z").any(axis=-1)
        assert set(np.argwhere(marked)[:, 0]) == {0, 2, 4, 6}
        assert np.argwhere(marked[:4])[:, 1].tolist() == [7, 7]
    assert tuple(viewer.pixels("a", "z")[0, 7]) == CROSSHAIR_COLOR


def test_a_part_changes_the_images_and_leaves_the_error_as_magnitude() -> None:
    viewer = SliceViewer({"a": volume(), "error": volume()})
    image, error = viewer.pixels("a", "y"), viewer.pixels("error", "y")
    viewer.part = "phase"
    assert (viewer.pixels("a", "y") != image).any()
    assert (viewer.pixels("error", "y") == error).all()


def test_a_name_that_is_no_volume_is_refused() -> None:
    with pytest.raises(ValueError, match="name is 'b', expected one of 'a'"):
        SliceViewer({"a": volume()}).pixels("b", "z")


def test_volumes_are_not_copied() -> None:
    v, t = volume(), torch.from_numpy(volume())
    viewer = SliceViewer({"a": v, "t": t})
    v[:] = 0
    t[:] = 0
    viewer.position = (1, 1, 1)
    assert not viewer.pixels("a", "z")[4].any()
    assert not viewer.pixels("t", "z")[4].any()


def test_the_figure_shows_what_the_viewer_shows() -> None:
    viewer = SliceViewer({"a": volume(), "reference": volume()})
    viewer.zoom, viewer.slab = 2, 3
    figure = viewer.figure()
    view = viewer._view
    drawn = figure.axes[0].images[0]
    assert drawn.get_array().shape == (4, 5)
    assert drawn.get_clim() == view.scene.window(view.state, "a")
    assert figure.axes[0].get_ylabel() == "maximum of z = 2 to 4"
    assert figure.axes[4].get_xlabel().startswith("PSNR ")
    before = fingerprint(figure)
    viewer._view.step({"type": "key", "key": "b", "column": 0})
    assert viewer.figure().axes[0].get_title() == "reference"
    assert differences(before, fingerprint(viewer.figure()))


def test_the_figure_says_how_much_an_error_is_magnified() -> None:
    image = np.full((6, 8, 10), 10.0)
    viewer = SliceViewer({"a": image, "reference": image, "error of a": image / 40})
    assert [axes.get_title() for axes in viewer.figure().axes[:3]] == ["a", "reference", "error of a × 40"]
    viewer._view.step({"type": "set", "name": "error_window", "value": (0, 0.5)})
    assert viewer.figure().axes[2].get_title() == "error of a × 80"
    assert viewer.figure().axes[6].get_xlabel().startswith("PSNR ")
    assert viewer.figure().axes[8].get_xlabel() == ""


def test_the_figure_says_where_the_sides_of_the_body_are() -> None:
    drawn = SliceViewer({"a": volume()}, orientation="HAR").figure().axes[:3]
    assert [[text.get_text() for text in axes.texts] for axes in drawn] == [
        ["A", "P", "R", "L"],
        ["H", "F", "R", "L"],
        ["H", "F", "A", "P"],
    ]
    assert not SliceViewer({"a": volume()}).figure().axes[0].texts


@BOTH
def test_a_page_without_a_kernel_gets_the_picture_its_words_and_its_fingerprint(face: Face) -> None:
    v = volume()
    bundle, metadata = SliceViewer({"a": v}, face=face)._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(PNG)
    assert bundle["text/plain"] == "SliceViewer(a: 6 x 8 x 10 voxels)"
    assert metadata["image/png"]["alt"].startswith("1 volume side by side: a. Each has 6 x 8 x 10 voxels")
    stored = json.loads(json.dumps(bundle[MIME]))
    again, _ = SliceViewer({"a": v}, face=face)._repr_mimebundle_()
    assert again["image/png"] == bundle["image/png"]
    assert differences(stored, again[MIME]) == []
    assert differences(stored, fingerprint(SliceViewer({"a": 1.01 * v}).figure()))
    assert WIDGET_VIEW in bundle


def test_a_large_volume_is_displayed_before_its_scores_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockkit.show.scores.LARGE", 10)
    monkeypatch.setattr("blockkit.show.scores.Thread.start", lambda _: None)
    viewer = SliceViewer({"a": volume(), "reference": volume()})
    monkeypatch.setattr("blockkit.show.scores.Thread.join", lambda _: pytest.fail("waited for the scores"))
    bundle, metadata = viewer._repr_mimebundle_()
    assert "PSNR" not in metadata["image/png"]["alt"]
    assert "PSNR" not in str(bundle[MIME]["texts"])


def test_a_viewer_can_be_marked_shapes_only() -> None:
    first, second = (fingerprint(shapes_only(SliceViewer({"a": volume()})).figure()) for _ in range(2))
    assert differences(first, second) == []


@BOTH
@pytest.mark.parametrize(
    "one",
    [np.zeros((3, 4, 5)), np.full((3, 4, 5), np.nan), np.ones((1, 1, 1), bool), np.arange(60).reshape(3, 4, 5)],
    ids=["zeros", "nan", "one voxel", "whole numbers"],
)
def test_odd_volumes_give_a_picture_and_take_every_event(one: np.ndarray, face: Face) -> None:
    viewer = SliceViewer({"a": one, "reference": one, "error": one}, face=face)
    assert viewer.figure().axes[0].images
    failures: list[str] = []
    viewer._face.fail = failures.append
    for key in ("ArrowUp", "PageDown", "End", "+", "b", "m", "p", "r"):
        viewer._handle({"type": "key", "key": key}, viewer._face._act)
    for event in (
        {"type": "drag", "dx": -9, "dy": 9},
        {"type": "set", "name": "part", "value": "phase"},
        {"type": "save"},
    ):
        viewer._handle(event, viewer._face._act)
    viewer._face.paint_texts()
    assert failures == []


def test_nan_is_red() -> None:
    one = np.ones((5, 6, 7))
    one[2, 1, 1] = np.nan
    assert tuple(SliceViewer({"a": one}).pixels("a", "z")[1, 1]) == NAN_COLOR


@pytest.mark.parametrize(
    "volumes", [{}, {"a": np.ones((4, 5))}, {"a": np.ones((2, 2, 2)), "b": np.ones((2, 2, 3))}, [1]]
)
def test_unfit_volumes_are_refused_with_a_hint(volumes: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=r"expected|one shape"):
        SliceViewer(volumes)


def test_a_title_is_text_and_not_markup() -> None:
    viewer = SliceViewer({"<script>": volume(), "reference": volume()}, face="image")
    assert "<script>" not in viewer._face._titles[0].value
    assert "&lt;script&gt;" in viewer._face._titles[0].value


def test_pictures_keep_the_proportions_of_the_voxels() -> None:
    viewer = SliceViewer({"a": volume((10, 20, 20))}, voxel_size=(4.0, 1.0, 1.0), face="image")
    picture = viewer._face.pictures[0, 1]
    assert picture.layout.width == "100.00%"
    assert "blockkit-ratio-0-5000" in picture._dom_classes
    assert ".blockkit-ratio-0-5000 { aspect-ratio: 20 / 40; }" in viewer._face.children[0].value
    assert SliceViewer({"a": volume((10, 20, 20))}, voxel_size=(4.0, 1.0, 1.0))._face.setup["sizes"][1] == [40.0, 20.0]


def test_the_other_face_holds_the_description_too() -> None:
    viewer = SliceViewer({"<a>": volume()}, face="image")
    assert "1 volume side by side: &lt;a&gt;." in viewer._face._described.value
