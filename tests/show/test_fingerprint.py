import json
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.figure import Figure

from blockkit.show import plot_bars, plot_curves, plot_trajectory, shapes_only, show_slices
from blockkit.show.fingerprint import differences, fingerprint, same_text

RNG = np.random.default_rng(3)
VOLUME = RNG.normal(size=(6, 40, 52)) + 2
Change = Callable[[np.ndarray], np.ndarray]


def moved(old: Figure, new: Figure) -> list[str]:
    stored = json.loads(json.dumps(fingerprint(old)))
    return differences(stored, fingerprint(new))


def picture(volume: np.ndarray) -> Figure:
    return show_slices({"ours": volume, "reference": VOLUME})


def with_lesion(volume: np.ndarray) -> np.ndarray:
    volume = volume.copy()
    volume[3, 20:23, 30:34] += 2
    return volume


def with_nan(volume: np.ndarray) -> np.ndarray:
    volume = volume.copy()
    volume[3, 5, 6] = np.nan
    return volume


def noisy(level: float) -> Change:
    def change(volume: np.ndarray) -> np.ndarray:
        return volume + level * np.linalg.norm(volume) / np.sqrt(volume.size) * RNG.normal(size=volume.shape)

    return change


@pytest.mark.parametrize("level", [0.0, 1e-7, 1e-4])
def test_noise_of_one_in_ten_thousand_passes(level: float) -> None:
    assert moved(picture(VOLUME), picture(noisy(level)(VOLUME))) == []


@pytest.mark.parametrize(
    "change",
    [
        noisy(5e-3),
        lambda v: 1.01 * v,
        lambda v: np.roll(v, 1, axis=2),
        lambda v: np.roll(v, 1, axis=1),
        lambda v: v.copy()[:, ::-1],
        lambda v: v[:, :-1],
        with_lesion,
        with_nan,
    ],
    ids=["noise", "gain", "shift x", "shift y", "flip", "crop", "lesion", "nan"],
)
def test_a_changed_picture_is_noticed(change: Change) -> None:
    figure = show_slices({"ours": change(VOLUME)})
    assert any("axes[0] image0" in line for line in moved(show_slices({"ours": VOLUME}), figure))


def test_the_message_tells_how_far_the_data_moved() -> None:
    (line,) = moved(picture(VOLUME), picture(1.01 * VOLUME))
    assert line.startswith("axes[0] image0: data moved by ")
    assert line.endswith(" % (allowed 0.1 %)")
    assert 0.8 < float(line.split(" by ")[1].split(" %")[0]) < 1.25


def test_a_nan_that_goes_elsewhere_is_noticed() -> None:
    first, second = VOLUME.copy(), VOLUME.copy()
    first[3, 5, 6], second[3, 5, 7] = np.nan, np.nan
    assert moved(picture(first), picture(second))


def test_titles_windows_colors_and_columns_are_compared() -> None:
    old = fingerprint(picture(VOLUME))
    for other in (
        show_slices({"theirs": VOLUME, "reference": VOLUME}),
        show_slices({"ours": VOLUME, "reference": 2 * VOLUME}),
        show_slices({"error": VOLUME, "reference": VOLUME}),
        show_slices({"ours": VOLUME, "reference": VOLUME, "third": VOLUME}),
        show_slices({"ours": VOLUME, "reference": VOLUME}, index=2),
    ):
        assert differences(old, fingerprint(other))


def test_a_curve_is_compared_point_by_point_on_each_axis() -> None:
    x, y = np.arange(150.0), 0.1 * np.exp(-np.arange(150) / 40)
    old = plot_curves({"loss": (x, y)}, "iteration", "loss")
    assert moved(old, plot_curves({"loss": (x, y * (1 + 1e-5))}, "iteration", "loss")) == []
    assert any("line0.y: data" in s for s in moved(old, plot_curves({"loss": (x, 1.01 * y)}, "iteration", "loss")))
    assert any("line0.x: data" in s for s in moved(old, plot_curves({"loss": (1.01 * x, y)}, "iteration", "loss")))
    assert moved(old, plot_curves({"loss": (x, y)}, "iteration", "loss (a.u.)"))
    assert moved(old, plot_curves({"loss": (x, y)}, "iteration", "loss", log="y"))
    assert moved(old, plot_curves({"cost": (x, y), "loss": (x, y)}, "iteration", "loss"))


def test_a_small_bar_beside_a_large_one_is_compared_too() -> None:
    old = plot_bars(["naive", "blocks"], [1000.0, 2.0], "GiB")
    assert moved(old, plot_bars(["naive", "blocks"], [1000.0, 2.0 + 1e-4], "GiB")) == []
    assert any("patch1.y" in line for line in moved(old, plot_bars(["naive", "blocks"], [1000.0, 2.02], "GiB")))
    assert any("x ticks" in line for line in moved(old, plot_bars(["naive", "windows"], [1000.0, 2.0], "GiB")))
    assert moved(old, plot_bars(["naive", "blocks"], [1000.0, 2.0], "GiB", limit=80))


def test_three_dimensional_lines_are_compared() -> None:
    k = RNG.normal(size=(5, 8, 3)).reshape(-1, 3)
    turned = k[:, [1, 0, 2]]
    assert any("line" in line for line in moved(plot_trajectory(k, 8), plot_trajectory(turned, 8)))


def test_a_figure_marked_shapes_only_forgets_values_and_keeps_words_and_shapes() -> None:
    def curve(y: np.ndarray, label: str = "epoch") -> Figure:
        return shapes_only(plot_curves({"loss 0.08": y}, label, "loss", title="after 150 steps"))

    old = curve(RNG.random(30))
    assert moved(old, curve(RNG.random(30))) == []
    assert moved(old, curve(RNG.random(31)))
    assert moved(old, curve(RNG.random(30), "step"))
    assert "limits" not in json.dumps(fingerprint(old)).replace('"limits": {}', "")


def test_taking_the_mark_away_is_noticed() -> None:
    y = RNG.random(30)
    assert moved(shapes_only(plot_curves({"a": y}, "x", "y")), plot_curves({"a": y}, "x", "y"))


def test_drawing_does_not_change_the_fingerprint() -> None:
    figure = picture(VOLUME)
    before = fingerprint(figure)
    figure.draw_without_rendering()
    assert differences(before, fingerprint(figure)) == []


def test_a_fingerprint_of_a_large_picture_stays_small() -> None:
    assert len(json.dumps(fingerprint(show_slices({"a": RNG.normal(size=(2, 300, 400))})))) < 2000


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("error 1.23e-04", "error 1.24e-04"),
        ("27.40 dB", "27.41 dB"),
        ("0.999", "1.000"),
        ("9.98e-08", "1.00e-07"),
        ("norm  9.99", "norm 10.00"),
        ("35 GiB", "34.9 GiB"),
        ("<object at 0x7f12ab>", "<object at 0x55>"),
        ("-0.00", "0.00"),
        ("\u22121.5", "-1.5"),
    ],
)
def test_printed_numbers_may_differ_by_one_in_the_last_place(old: str, new: str) -> None:
    assert same_text(old, new)
    assert same_text(new, old)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("27.40 dB", "27.42 dB"),
        ("27.4 dB", "27.4 s"),
        ("64 blocks", "65 blocks"),
        ("1.5", "-1.5"),
        ("1e-5", "1e-3"),
        ("9e-5", "2e-4"),
        ("0.9", "0.95"),
        ("1 2", "12"),
        ("loss nan", "loss 0.1"),
        ("True", "False"),
        ("1.0 2.0", "1.0"),
    ],
)
def test_any_other_change_of_a_text_is_noticed(old: str, new: str) -> None:
    assert not same_text(old, new)
    assert not same_text(new, old)
