import base64
import html
import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import nn

import blockkit as bk
from blockkit.mbdl.planner import GIB, plan
from blockkit.show import MemoryExplorer, explorer, shapes_only
from blockkit.show.explorer_controls import read_shape
from blockkit.show.fingerprint import MIME, differences, fingerprint
from blockkit.show.memory_plots import PART_COLORS
from blockkit.show.setting import Setting

PATH, TEXT = "{http://www.w3.org/2000/svg}path", "{http://www.w3.org/2000/svg}text"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
SMALL: dict[str, Any] = {"image_shape": (61, 50, 70), "n_coils": 6, "n_samples": 20_000, "n_unrolls": 4}
TINY: dict[str, Any] = {"image_shape": (24, 20, 22), "n_coils": 3, "n_samples": 900, "n_unrolls": 2}


def flat(setting: Setting) -> dict[str, object]:
    """Return all fields of a setting and of its case, by name."""
    return {name: value for name, value in vars(setting).items() if name != "case"} | vars(setting.case)


def controls(made: MemoryExplorer) -> dict[str, Any]:
    of_name: dict[str, Any] = made._controls.by_name
    return of_name


def pictures(made: MemoryExplorer) -> dict[str, str]:
    return {name: picture.value for name, picture in made._pictures.items()}


def peaks(made: MemoryExplorer) -> tuple[object, ...]:
    """Return what the bars show."""
    return made.setting.naive().parts, made.setting.blockwise().parts, made.setting.budget


def trouble(made: MemoryExplorer) -> str:
    said: str = made._trouble.value
    return said


CHANGES = {
    "preset": ("350 x 250 x 350", {"image_shape": (350, 250, 350), "block_shape": None}),
    "matrix": ("64 x 48 x 64", {"image_shape": (64, 48, 64), "block_shape": None}),
    "coils": (9, {"n_coils": 9}),
    "samples": (0.5, {"n_samples": 500_000}),
    "unrolls": (7, {"n_unrolls": 7}),
    "channels": (48, {"n_channels": 48}),
    "layers": (7, {"n_layers": 7}),
    "block": ((31, 25, 24), {"block_shape": (31, 25, 24)}),
    "coils at once": (3, {"coils_at_once": 3}),
    "recompute": (False, {"recompute": False}),
    "offload": (True, {"offload": "disk"}),
    "maps": (True, {"interpolated_maps": True}),
    "precision": ("half", {"precision": "half"}),
    "run": (False, {"training": False}),
    "budget": (40.0, {"budget_gib": 40.0}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_control_changes_its_own_setting_and_no_other(name: str) -> None:
    made = MemoryExplorer(**SMALL)
    made._controls.choose((31, 25, 35))
    before, drawn, bars = flat(made.setting), pictures(made), peaks(made)
    value, expected = CHANGES[name]
    controls(made)[name].value = value
    after = flat(made.setting)
    assert trouble(made) == ""
    assert {key for key in after if after[key] != before[key]} == set(expected)
    assert all(after[key] == new for key, new in expected.items() if new is not None)
    assert (pictures(made)["parts"] != drawn["parts"]) == (peaks(made) != bars)
    assert (peaks(made) != bars) == (name != "coils at once")  # here the peak is elsewhere
    sketched = name in ("preset", "matrix", "block", "layers")  # the layers set the halo
    assert (pictures(made)["blocks"] != drawn["blocks"]) == sketched


def test_the_preset_follows_the_matrix_that_is_typed() -> None:
    made = MemoryExplorer(**SMALL)
    assert controls(made)["preset"].value == "another size"
    controls(made)["matrix"].value = "450 300 450"
    assert controls(made)["preset"].value == "450 x 300 x 450"
    before = made.setting
    controls(made)["preset"].value = "another size"
    assert made.setting == before


def test_double_precision_is_that_of_the_images_too() -> None:
    made = MemoryExplorer(**SMALL)
    before = made.setting.naive().bytes
    controls(made)["precision"].value = "double"
    assert made.setting.case.dtype == torch.complex128
    assert made.setting.naive().bytes == pytest.approx(2 * before, rel=0.02)


def test_all_controls_are_tested() -> None:
    assert set(CHANGES) == set(controls(MemoryExplorer(**SMALL)))


def test_what_has_no_effect_is_turned_off() -> None:
    made = MemoryExplorer(**SMALL)
    controls(made)["offload"].value = True
    controls(made)["recompute"].value = False
    assert made.setting.offload is None
    assert controls(made)["offload"].disabled
    controls(made)["run"].value = False
    assert controls(made)["recompute"].disabled
    assert made.setting.recompute


@pytest.mark.slow
def test_it_starts_with_the_block_that_the_plan_finds() -> None:
    found = plan(network=bk.ResidualCNN(32, 5), budget_gib=0.25, **SMALL)
    made = MemoryExplorer(budget_gib=0.25, **SMALL)
    assert made.setting.block_shape == found.block_shape == made._best
    assert made.setting.blockwise().bytes == pytest.approx(found.n_bytes, rel=0.03)
    assert made.setting.work() == pytest.approx(found.work)


def test_fit_to_budget_chooses_the_largest_block_that_fits() -> None:
    made = MemoryExplorer(budget_gib=0.25, **SMALL)
    best = made.setting.block_shape
    made._controls.choose(made._blocks[-1])
    made.fit_to_budget()
    assert made.setting.block_shape == best
    larger = made._blocks[made._blocks.index(best) - 1]
    assert made.setting.blockwise(larger).bytes > made.setting.budget >= made.setting.blockwise().bytes


def press(made: MemoryExplorer, name: str) -> None:
    next(
        b for row in made.children for b in getattr(row, "children", ()) if getattr(b, "description", "") == name
    ).click()


def test_a_budget_that_is_too_small_says_what_the_smallest_block_takes() -> None:
    made = MemoryExplorer(budget_gib=0.01, **SMALL)
    press(made, "Fit to budget")
    assert "No block fits: the smallest takes 0.0" in trouble(made)
    assert made._best is None


@pytest.mark.parametrize(
    "text", ["", "300 x 200", "300 x 200 x 300 x 1", "a x b x c", "0 x 20 x 20", "1.5 x 2 x 3", "-3 3 3"]
)
def test_a_matrix_that_is_none_is_a_message_and_changes_nothing(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = MemoryExplorer(**SMALL)
    before, drawn = made.setting, pictures(made)
    controls(made)["matrix"].value = text
    assert "atrix" in trouble(made)
    assert 'role="alert"' in trouble(made)
    assert made.setting == before
    assert pictures(made) == drawn
    controls(made)["matrix"].value = "32, 30, 28"
    assert trouble(made) == ""
    assert made.setting.case.image_shape == (32, 30, 28)
    assert capsys.readouterr().err == ""


def test_a_matrix_beyond_any_machine_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at most 1e"):
        read_shape("9000 x 9000 x 9000")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"precision": "half", "maps": True, "coils at once": 2},
        {"precision": "double", "run": False},
        {"recompute": False, "block": (12, 10, 11)},
        {"offload": True, "unrolls": 2},
    ],
    ids=str,
)
def test_the_code_runs_and_gives_the_same_numbers(changes: dict[str, object]) -> None:
    made = MemoryExplorer(**TINY)
    controls(made)["channels"].value = 8
    controls(made)["block"].value = (12, 20, 22)
    for name, value in changes.items():
        controls(made)[name].value = value
    code = made.setting.code()
    assert len(code.splitlines()) == 3
    assert "from " not in code  # public names alone
    made_here: dict[str, Any] = {}
    exec(code, made_here)
    model, said = made_here["model"], made_here["plan"]
    assert (model.block_shape, model.recompute) == (said.block_shape, made.setting.recompute)
    assert said.block_shape == made.setting.block_shape
    traced = made.setting.trace()
    assert (said.n_bytes, said.parts) == (traced.bytes, traced.parts)
    assert said.work == pytest.approx(made.setting.work())
    assert said.budget_gib == made.setting.budget_gib


def test_the_page_shows_the_code_that_it_copies() -> None:
    made = MemoryExplorer(budget_gib=3, **SMALL)
    lines = '<pre class="blockkit-lines">{}</pre>'
    assert made._code.value == lines.format(html.escape(made.setting.code()))
    controls(made)["offload"].value = True
    assert "offload=&#x27;disk&#x27;" in made._code.value
    assert made._code.value == lines.format(html.escape(made.setting.code()))


def test_an_own_network_has_no_channels_and_layers_to_choose() -> None:
    network = nn.Sequential(nn.Conv3d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, 2, 3, padding=1))
    made = MemoryExplorer(network, **SMALL)
    assert controls(made)["channels"] not in made._controls.box.children
    assert made.setting.network_bytes().halo == (2, 2, 2)
    made_here: dict[str, Any] = {"network": network}
    exec(made.setting.code(), made_here)
    assert made_here["plan"].n_bytes == made.setting.trace().bytes


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"network": "ResidualCNN"}, TypeError, "network is a str, expected a torch.nn.Module, or None"),
        ({"image_shape": (9, 9)}, ValueError, "expected three"),
        ({"n_coils": 0}, ValueError, "n_coils is 0"),
        ({"budget_gib": 0}, ValueError, "expected more than 0 GiB"),
        ({"budget_gib": "8 GB"}, TypeError, "budget_gib is '8 GB'"),
        ({"network": nn.Sequential(nn.Conv3d(2, 2, 3, padding=1), nn.InstanceNorm3d(2))}, ValueError, "InstanceNorm3d"),
    ],
)
def test_a_wrong_argument_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MemoryExplorer(**{**SMALL, **change})


def test_tracing_draws_what_the_trace_finds_beside_the_sums() -> None:
    made = MemoryExplorer(**SMALL)
    press(made, "Trace exactly")
    assert trouble(made) == ""
    assert set(made._checks) == {"naive", "in blocks"}
    for bars in made._checks.values():
        assert bars["traced"] == pytest.approx(bars["closed form"], rel=0.03)
    assert made._pictures["checks"].layout.display is None
    assert made._progress.value == 2 * 4 - 1
    assert made._progress.layout.visibility == "hidden"
    controls(made)["coils"].value = 7
    assert made._pictures["checks"].layout.display == "none"


def test_a_measurement_that_hits_its_limit_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError("The step hit its limit of 5 MiB, and its process ended.")

    monkeypatch.setattr(explorer, "run_in_own_process", full)
    made = MemoryExplorer(**SMALL)
    press(made, "Measure here")
    assert "hit its limit of 5 MiB" in trouble(made)
    assert made._progress.layout.visibility == "hidden"


@pytest.mark.slow
def test_measuring_draws_what_a_real_step_takes_beside_the_sums() -> None:
    made = MemoryExplorer(**SMALL)
    press(made, "Measure here")
    assert trouble(made) == ""
    assert len(made._checks) == 2
    for bars in made._checks.values():
        assert bars["counted"] == pytest.approx(bars["closed form"], rel=0.03)


def test_a_page_without_a_kernel_gets_the_picture_its_fingerprint_and_words() -> None:
    explorer = MemoryExplorer(**SMALL)
    bundle, metadata = explorer._repr_mimebundle_()
    assert metadata == {"image/png": {"alt": explorer.describe()}}
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert bundle["text/plain"].startswith("MemoryExplorer(Naive backprop takes ")
    stored = json.loads(json.dumps(bundle[MIME]))
    again, _ = MemoryExplorer(**SMALL)._repr_mimebundle_()
    assert differences(stored, again[MIME]) == []
    assert differences(stored, fingerprint(MemoryExplorer(**{**SMALL, "n_coils": 9}).figure()))
    assert WIDGET_VIEW in bundle


def test_an_explorer_can_be_marked_shapes_only() -> None:
    marked = (shapes_only(MemoryExplorer(**{**SMALL, "n_coils": n})) for n in (6, 7))
    first, second = (fingerprint(one.figure()) for one in marked)
    assert differences(first, second) == []


def test_the_words_say_what_the_pictures_show() -> None:
    made = MemoryExplorer(budget_gib=0.25, **SMALL)
    said = made.describe()
    for n_bytes in (made.setting.naive().bytes, made.setting.blockwise().bytes):
        assert f"{n_bytes / GIB:.3g} GiB" in said
    assert "which fits into 0.25 GiB" in said
    assert 'role="status"' in made._said.value


def test_this_machine_is_among_the_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explorer, "free_bytes", lambda _: 3 * GIB)
    options = dict(controls(MemoryExplorer(**SMALL))["budget"].options)
    assert options["this machine, 3 GiB free"] == 3
    monkeypatch.setattr(explorer, "free_bytes", lambda _: None)
    assert not any("this machine" in name for name, _ in controls(MemoryExplorer(**SMALL))["budget"].options)


@pytest.mark.parametrize("shape", [(1, 40, 36), (16, 16, 16), (450, 300, 450)])
def test_flat_small_and_large_volumes_are_drawn(shape: tuple[int, int, int]) -> None:
    made = MemoryExplorer(image_shape=shape)
    drawn = {name: ElementTree.fromstring(picture) for name, picture in pictures(made).items() if name != "checks"}
    assert set(drawn) == {"parts", "blocks", "curve"}
    for picture in drawn.values():
        width, height = map(float, picture.attrib["viewBox"].split()[2:])
        places = [list(map(float, re.findall(r"[-\d.]+", path.attrib["d"]))) for path in picture.iter(PATH)]
        assert all(-1 <= x <= width + 1 for place in places for x in place[::2])
        assert all(-1 <= y <= height + 1 for place in places for y in place[1::2])


def test_the_bars_are_as_high_as_the_bytes() -> None:
    made = MemoryExplorer(budget_gib=0.25, **SMALL)
    drawn = [
        path for path in ElementTree.fromstring(pictures(made)["parts"]).iter(PATH) if path.attrib["d"].count("L") == 3
    ]
    heights: dict[str, list[float]] = {}
    for path in drawn:
        numbers = list(map(float, re.findall(r"[-\d.]+", path.attrib["d"])))
        if numbers[2] - numbers[0] > 20:  # the squares of the legend are smaller
            heights.setdefault(path.attrib["fill"], []).append(numbers[5] - numbers[1])
    parts = made.setting.blockwise().parts
    pixels = {name: heights[PART_COLORS[name]][-1] for name in parts}
    scale = sum(parts.values()) / sum(pixels.values())
    for name, n_bytes in parts.items():
        assert scale * pixels[name] == pytest.approx(n_bytes, abs=0.2 * scale)


def test_the_figure_for_a_page_without_a_kernel_has_the_same_pictures() -> None:
    made = MemoryExplorer(**TINY)
    for axes, picture in zip(made.figure().axes, pictures(made).values(), strict=False):
        said = [text.text for text in ElementTree.fromstring(picture).iter(TEXT)]
        assert [text.get_text() for text in axes.texts] == said
    assert len(made.figure().axes) == 3
    press(made, "Trace exactly")
    assert len(made.figure().axes) == 4
