import base64
import json

import numpy as np
import pytest
import torch

from blockkit.show import SliceViewer, shapes_only
from blockkit.show.fingerprint import MIME, differences, fingerprint
from blockkit.show.render import CROSSHAIR_COLOR

RNG = np.random.default_rng(0)
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def volume(shape: tuple[int, ...] = (6, 8, 10)) -> np.ndarray:
    return (RNG.normal(size=shape) + 1j * RNG.normal(size=shape)).astype(np.complex64)


def faces(viewer: SliceViewer) -> list[bytes]:
    return [bytes(face.value) for face in viewer._faces.values()]


def test_each_volume_has_three_faces() -> None:
    viewer = SliceViewer({"a": volume(), "b": torch.from_numpy(volume())})
    assert len(faces(viewer)) == 6
    assert all(face.startswith(b"\x89PNG") for face in faces(viewer))


def test_a_pixel_is_the_voxel_in_the_shared_window() -> None:
    ramp = np.arange(6 * 8 * 10, dtype=float).reshape(6, 8, 10)
    viewer = SliceViewer({"half": ramp / 2, "reference": ramp})
    viewer.position = (3, 0, 0)
    top = np.percentile(ramp, 99.9)
    expected = np.clip(ramp[3] / top, 0, 1) * 255
    assert np.abs(viewer.pixels("reference", "z")[1:, 1:, 0] - expected[1:, 1:]).max() <= 0.5
    assert np.abs(viewer.pixels("half", "z")[1:, 1:, 1] - expected[1:, 1:] / 2).max() <= 0.5


def test_moving_a_slider_moves_the_crosshair_in_every_volume() -> None:
    viewer = SliceViewer({"a": np.zeros((6, 8, 10)), "b": np.zeros((6, 8, 10))})
    viewer._sliders[2].value = 7
    for name in "ab":
        marked = viewer.pixels(name, "z").any(axis=-1)
        assert marked[:, 7].all()
        assert marked.sum() == 8 + 10 - 1
    assert tuple(viewer.pixels("a", "z")[0, 7]) == tuple(c // 2 for c in CROSSHAIR_COLOR)


def test_every_slider_redraws_what_it_changes() -> None:
    viewer = SliceViewer({"a": volume()})
    for slider in viewer._sliders:
        before = faces(viewer)
        slider.value = 1
        assert all(old != new for old, new in zip(before, faces(viewer), strict=True))


def test_setting_the_position_moves_the_sliders_and_checks_the_bounds() -> None:
    viewer = SliceViewer({"a": volume()})
    viewer.position = (0, -1, 9)
    assert viewer.position == (0, 7, 9)
    with pytest.raises(ValueError, match="along x is 10"):
        viewer.position = (0, 0, 10)
    assert viewer.position == (0, 7, 9)


def test_the_dropdown_changes_the_images_and_leaves_the_error_as_magnitude() -> None:
    viewer = SliceViewer({"a": volume(), "error": volume()})
    image, error = viewer.pixels("a", "y"), viewer.pixels("error", "y")
    viewer.part = "phase"
    assert (viewer.pixels("a", "y") != image).any()
    assert (viewer.pixels("error", "y") == error).all()


def test_the_window_slider_acts_on_images_and_not_on_errors() -> None:
    viewer = SliceViewer({"a": np.full((4, 4, 4), 1.0), "error": np.full((4, 4, 4), 1.0)})
    error = viewer.pixels("error", "z")
    viewer._window.value = (100, 100)
    viewer._window.value = (50, 100)
    assert viewer.pixels("a", "z")[0, 0, 0] == 255
    assert (viewer.pixels("error", "z") == error).all()


def test_volumes_are_not_copied() -> None:
    v = volume()
    viewer = SliceViewer({"a": v})
    v[:] = 0
    viewer._sliders[0].value = 1
    assert viewer.pixels("a", "z")[0, 0].tolist() == [0, 0, 0]


def test_metrics_stand_under_the_columns_that_have_some() -> None:
    viewer = SliceViewer({"a": volume(), "reference": volume(), "error": volume()})
    assert list(viewer._notes) == ["a"]
    assert viewer._notes["a"].startswith("PSNR ")
    assert SliceViewer({"a": volume()})._notes == {}


def test_a_page_without_a_kernel_gets_the_picture_and_its_fingerprint() -> None:
    v = volume()
    bundle = SliceViewer({"a": v})._repr_mimebundle_()
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert bundle["text/plain"] == "SliceViewer(a: 6 x 8 x 10 voxels)"
    stored = json.loads(json.dumps(bundle[MIME]))
    again = SliceViewer({"a": v})._repr_mimebundle_()
    assert again["image/png"] == bundle["image/png"]
    assert differences(stored, again[MIME]) == []
    assert differences(stored, fingerprint(SliceViewer({"a": 1.01 * v}).figure()))
    assert WIDGET_VIEW in bundle


def test_a_viewer_can_be_marked_shapes_only() -> None:
    first, second = (fingerprint(shapes_only(SliceViewer({"a": volume()})).figure()) for _ in range(2))
    assert differences(first, second) == []


@pytest.mark.parametrize(
    "one",
    [np.zeros((3, 4, 5)), np.full((3, 4, 5), np.nan), np.ones((1, 1, 1), bool), np.arange(60).reshape(3, 4, 5)],
    ids=["zeros", "nan", "one voxel", "whole numbers"],
)
def test_odd_volumes_still_give_a_picture(one: np.ndarray) -> None:
    viewer = SliceViewer({"a": one, "reference": one})
    assert len(faces(viewer)) == 6
    assert viewer.figure().axes[0].images


def test_a_title_is_text_and_not_markup() -> None:
    viewer = SliceViewer({"<script>": volume()})
    titles = viewer.children[3].children[0].children[0].value
    assert "<script>" not in titles
    assert "&lt;script&gt;" in titles


def test_faces_keep_the_proportions_of_the_voxels() -> None:
    viewer = SliceViewer({"a": volume((10, 20, 20))}, voxel_size=(4.0, 1.0, 1.0))
    layout = viewer._faces[1, "a"].layout
    assert int(layout.height[:-2]) == 2 * int(layout.width[:-2])
