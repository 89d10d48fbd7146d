import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from blockkit import metrics
from blockkit.show.pixels import CROSSHAIR, CROSSHAIR_COLOR, N_LEVELS
from blockkit.show.profile import profile_svg
from blockkit.show.scene import Scene
from blockkit.show.scores import MEASURES, PENDING, Scores
from blockkit.show.state import initial
from blockkit.show.texts import check_orientation, column_title, describe, edge_marks, plane_title, score_html, sides

RNG = np.random.default_rng(0)
SHAPE = (6, 8, 10)
WHITE = N_LEVELS - 1


def volume(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return (RNG.normal(size=shape) + 1j * RNG.normal(size=shape)).astype(np.complex64)


def test_a_panel_is_the_plane_in_the_shared_window_to_the_pixel() -> None:
    ramp = np.arange(6 * 8 * 10, dtype=float).reshape(SHAPE)
    scene = Scene({"half": ramp / 2, "reference": ramp})
    state = initial(["half", "reference"], SHAPE)
    top = np.percentile(ramp, 99.9)
    for axis, plane in enumerate((ramp[3], ramp[:, 4], ramp[:, :, 5])):
        for name, gain in (("reference", 1.0), ("half", 0.5)):
            expected = np.floor(np.clip(gain * plane / top, 0, 1) * WHITE + 0.5)
            assert (scene.indices(state, name, axis) == expected).all()


def test_the_visible_part_comes_with_its_crosshair() -> None:
    scene = Scene({"a": np.zeros(SHAPE)})
    state = replace(initial(["a"], SHAPE), zoom=2.0, first=(0, 2, 3), position=(0, 4, 5))
    panel = scene.marked(state, "a", 0)
    assert panel.shape == (4, 5)
    assert np.argwhere(panel == CROSSHAIR).tolist() == [[0, 2], [2, 0], [2, 4]]


def test_palettes_follow_the_meaning() -> None:
    scene = Scene({"a": volume(), "error": volume()})
    state = initial(["a", "error"], SHAPE)
    assert scene.colors(state, "a") == "magnitude"
    assert scene.colors(replace(state, part="real"), "a") == "magnitude"
    assert scene.colors(replace(state, part="phase"), "a") == "phase"
    assert scene.colors(replace(state, part="phase"), "error") == "error"
    grey = scene.palettes["magnitude"]
    assert (grey[:N_LEVELS, 0] == grey[:N_LEVELS, 2]).all()
    assert all(tuple(table[CROSSHAIR]) == CROSSHAIR_COLOR for table in scene.palettes.values())


def test_an_error_map_has_a_window_of_its_own_and_says_how_much_it_is_magnified() -> None:
    scene = Scene({"reference": np.full(SHAPE, 2.0), "error of a": np.full(SHAPE, 0.1)})
    state = initial(["reference", "error of a"], SHAPE)
    assert scene.window(state, "error of a") == (0.0, pytest.approx(0.1))
    assert column_title(scene, state, 1) == "error of a × 20"
    narrowed = replace(state, error_window=(0.0, 0.5), window=(0.5, 1.0))
    assert column_title(scene, narrowed, 1) == "error of a × 40"
    assert scene.window(narrowed, "error of a") == (0.0, pytest.approx(0.05))
    assert scene.window(narrowed, "reference") == (1.0, 2.0)


def test_a_projection_shows_the_largest_magnitude_whatever_the_part() -> None:
    v = volume()
    scene = Scene({"a": v})
    state = replace(initial(["a"], SHAPE), part="phase", slab=3)
    assert scene.kind(state, "a") == "magnitude"
    assert np.allclose(scene.image(state, "a", 1), np.abs(v[:, 3:6]).max(axis=1))
    assert np.allclose(scene.image(replace(state, slab=0), "a", 2), np.abs(v).max(axis=2))
    assert plane_title(state, 1) == "coronal, maximum of y = 3 to 5"


@pytest.mark.parametrize("change", [{"zoom": 3.0}, {"first": (0, 1, 1)}, {"column": 1}, {"profile": 2}])
def test_what_does_not_touch_the_bytes_does_not_touch_the_key(change: dict[str, object]) -> None:
    scene = Scene({"a": volume(), "b": volume()})
    state = initial(["a", "b"], SHAPE)
    other = replace(state, **change)  # type: ignore[arg-type]
    assert all(scene.key(state, "a", axis) == scene.key(other, "a", axis) for axis in range(3))


def test_moving_along_one_axis_changes_the_key_of_its_plane_alone() -> None:
    scene = Scene({"a": volume()})
    state = initial(["a"], SHAPE)
    moved = replace(state, position=(3, 4, 6))
    assert [scene.key(state, "a", axis) == scene.key(moved, "a", axis) for axis in range(3)] == [True, True, False]


def test_a_panel_is_rendered_again_only_when_its_key_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene({"a": volume()})
    state = initial(["a"], SHAPE)
    first = scene.marked(state, "a", 0)
    with monkeypatch.context() as patch:
        patch.setattr("blockkit.show.scene.quantize", lambda *_: pytest.fail("rendered again"))
        moved = scene.marked(replace(state, position=(3, 0, 0)), "a", 0)
    assert (moved != first).any()
    assert (scene.indices(replace(state, position=(1, 4, 5)), "a", 0) != scene.indices(state, "a", 0)).any()
    assert (scene.indices(replace(state, window=(0.0, 0.5)), "a", 0) != scene.indices(state, "a", 0)).any()


def test_whole_projections_stay_when_the_crosshair_moves() -> None:
    scene = Scene({"a": volume()})
    state = replace(initial(["a"], SHAPE), slab=0)
    moved = replace(state, position=(0, 0, 0))
    assert all(scene.key(state, "a", axis) == scene.key(moved, "a", axis) for axis in range(3))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_value_is_that_of_the_voxel_with_its_phase(axis: int) -> None:
    v = volume()
    v[1, 2, 3] = 3j
    scene = Scene({"a": v, "t": torch.from_numpy(v)})
    state = replace(initial(["a", "t"], SHAPE), position=(1, 2, 3))
    assert scene.value(state, "a", (1, 2, 3), axis) == scene.value(state, "t", (1, 2, 3), axis) == "3 ∠ 1.57"
    assert scene.value(replace(state, part="imaginary"), "a", (1, 2, 3), axis) == "3"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_profile_runs_through_the_crosshair(axis: int) -> None:
    v = volume()
    scene = Scene({"a": v, "t": torch.from_numpy(v)})
    state = replace(initial(["a", "t"], SHAPE), position=(1, 2, 3), profile=axis)
    expected = np.abs(v[tuple(slice(None) if a == axis else i for a, i in enumerate((1, 2, 3)))])
    assert np.allclose(scene.line(state, "a"), expected)
    assert np.allclose(scene.line(state, "t"), expected)


def test_the_picture_of_a_profile_has_a_line_for_each_volume_and_gaps_at_nan() -> None:
    lines = {"a<b": np.array([0.0, 1.0, np.nan, 2.0]), "c": np.array([2.0, 2.0, 2.0, 2.0])}
    root = ElementTree.fromstring(profile_svg(lines, position=1, xlabel="x", ylabel="magnitude"))
    paths = [one.get("d", "") for one in root.iter() if one.get("class") == "line"]
    assert [len(re.findall("M", path)) for path in paths] == [2, 1]
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", paths[1])]
    assert heights == [24.0] * 4
    assert "a<b" in "".join(root.itertext())


@pytest.mark.parametrize("line", [np.full(3, np.nan), np.zeros(3), np.ones(1)])
def test_a_profile_without_a_span_is_still_drawn(line: np.ndarray) -> None:
    assert "NaN" not in profile_svg({"a": line}, position=0, xlabel="x", ylabel="phase").upper().replace("NAN</", "")


def test_the_table_has_the_scores_of_the_slice_and_of_the_volume() -> None:
    v, reference = volume(), volume()
    scene = Scene({"a": v, "reference": reference, "error": v - reference})
    state = replace(initial(list(scene.volumes), SHAPE), axis=1)
    scores = Scores(scene)
    rows = scores.table("a", scores.shown(state)["a"])
    assert [row[0] for row in rows] == list(MEASURES)
    assert rows[0][1] == f"{metrics.psnr(v[:, 4], reference[:, 4]):.1f} dB"
    assert rows[1][1] == f"{metrics.ssim(v[:, 4], reference[:, 4]):.3f}"
    assert rows[2][2] == f"{metrics.nrmse(v, reference):.3f}"
    assert scores.table("reference", "") == scores.table("error", "") == []


def test_the_scores_of_a_plane_are_taken_again_when_it_moves_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene({"a": volume(), "reference": volume()})
    scores = Scores(scene)
    state = replace(initial(["a", "reference"], SHAPE), axis=1)
    first = scores.shown(state)
    with monkeypatch.context() as patch:
        patch.setattr("blockkit.show.scores.captions", lambda _: pytest.fail("taken again"))
        assert scores.shown(replace(state, position=(0, 4, 0), window=(0.1, 0.2), zoom=2.0)) == first
    assert scores.shown(replace(state, position=(3, 5, 5))) != first
    assert scores.shown(replace(state, slab=3)) != first
    assert scores.shown(replace(state, axis=0)) != first


def test_without_a_reference_there_are_no_scores() -> None:
    scene = Scene({"a": volume()})
    scores = Scores(scene)
    assert scores.shown(initial(["a"], SHAPE)) == {}
    assert scores.table("a", "") == []
    assert score_html([], "axial") == ""


def test_what_cannot_be_scored_says_why() -> None:
    nan = np.full(SHAPE, np.nan)
    scene = Scene({"a": nan, "zero": np.zeros(SHAPE), "reference": np.ones(SHAPE)})
    state = initial(list(scene.volumes), SHAPE)
    scores = Scores(scene)
    rows = scores.table("a", scores.shown(state)["a"])
    assert rows[0] == ["PSNR", "–", "–"]
    assert any("NaN" in row[0] for row in rows[3:])
    assert scores.table("zero", scores.shown(state)["zero"])[2] == ["NRMSE", "1.000", "1.000"]


def test_large_volumes_are_scored_beside_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockkit.show.scores.LARGE", 10)
    scene = Scene({"a": volume(), "reference": volume()})
    scores = Scores(scene)
    called: list[str] = []
    assert scores.table("a", "")[0] == ["PSNR", "–", PENDING]
    scores.start(lambda: called.append("done"))
    assert scores.whole()["a"].startswith("PSNR ")
    assert scores.table("a", "")[0][2].endswith("dB")
    assert scores._worker is not None
    scores._worker.join()
    assert called == ["done"]


def test_the_letters_at_the_edges_are_those_of_the_axes() -> None:
    assert edge_marks("HAR", 0) == ["A", "P", "R", "L"]
    assert edge_marks("HAR", 1) == ["H", "F", "R", "L"]
    assert edge_marks("FPL", 2) == ["F", "H", "P", "A"]
    assert edge_marks("", 0) == ["y ↓", "", "x →", ""]
    assert sides(edge_marks("HAR", 0)) == "A above, P below, R left, L right"
    assert sides(edge_marks("", 0)) == "y ↓  x →"


@pytest.mark.parametrize("letters", ["HA", "HFR", "XAR", "har", "HAAR", 3])
def test_letters_that_are_no_orientation_are_refused(letters: Any) -> None:
    with pytest.raises(ValueError, match="expected three letters"):
        check_orientation(letters)


def test_the_description_names_volumes_shape_position_and_scores() -> None:
    scene = Scene({"a": volume(), "reference": volume()})
    state = initial(["a", "reference"], SHAPE)
    text = describe(scene, Scores(scene), state, (1.5, 1.0, 1.0))
    for words in (
        "2 volumes",
        "a, reference",
        "6 x 8 x 10",
        "1.5 x 1 x 1 mm",
        "coronal, y = 4",
        "a against the reference: PSNR",
    ):
        assert words in text
