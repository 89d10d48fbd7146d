import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from blockkit.show import plot_bars, plot_curves, plot_points, plot_trajectory


def test_a_curve_without_x_is_drawn_over_whole_numbers() -> None:
    line = plot_curves({"a": torch.tensor([3.0, 1.0, 2.0])}, "iteration", "loss").axes[0].lines[0]
    assert line.get_xydata().tolist() == [[0, 3], [1, 1], [2, 2]]


def test_a_pair_of_rows_is_x_and_y_and_a_pair_of_numbers_is_two_points() -> None:
    lines = plot_curves({"a": ([1, 10], [5, 6]), "b": (7, 8)}, "x", "y", log="x").axes[0].lines
    assert lines[0].get_xydata().tolist() == [[1, 5], [10, 6]]
    assert lines[1].get_xydata().tolist() == [[0, 7], [1, 8]]


def test_a_curve_of_one_point_can_be_seen_beside_long_ones() -> None:
    lines = plot_curves({"CS": ([1, 2], [5, 6]), "MBDL": ([1.5], [8])}, "s", "dB").axes[0].lines
    assert lines[1].get_xydata().tolist() == [[1.5, 8]]
    assert lines[1].get_markersize() > lines[0].get_markersize()


def test_rows_of_unequal_length_are_refused_by_the_name_of_the_curve() -> None:
    with pytest.raises(ValueError, match="'loss'"):
        plot_curves({"loss": ([1, 2, 3], [1, 2])}, "x", "y")


def test_bars_have_the_height_of_their_values_and_say_it() -> None:
    ax = plot_bars(["a", "b"], [1.5, 300], "GiB", limit=80, limit_label="budget").axes[0]
    assert [patch.get_height() for patch in ax.patches] == [1.5, 300]
    assert [text.get_text() for text in ax.texts] == ["1.5", "300"]
    assert ax.get_legend().get_texts()[0].get_text() == "budget (80)"


def test_parts_are_stacked_and_the_sum_is_written_above() -> None:
    ax = plot_bars(["a", "b"], {"one": [1, 2], "two": [10, 20]}, "GiB").axes[0]
    assert [patch.get_y() for patch in ax.patches] == [0, 0, 1, 2]
    assert [text.get_text() for text in ax.texts] == ["11", "22"]


def test_labels_that_are_equal_still_get_a_bar_each() -> None:
    assert [patch.get_x() for patch in plot_bars(["a", "a"], [1, 2], "s").axes[0].patches] == pytest.approx(
        [-0.31, 0.69]
    )


def test_a_missing_value_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one for each of 3 labels"):
        plot_bars(["a", "b", "c"], [1, 2], "s")


def test_points_lie_where_they_are_told_to() -> None:
    ax = plot_points({"CS": (30.0, 27.5), "MBDL": (1.0, 28.5)}, "s", "dB", log="x").axes[0]
    assert [line.get_xydata()[0].tolist() for line in ax.lines] == [[30, 27.5], [1, 28.5]]


def test_an_unknown_axis_for_log_is_refused() -> None:
    with pytest.raises(ValueError, match="log"):
        plot_curves({"a": [1, 2]}, "x", "y", log="z")


@pytest.mark.parametrize(("highest", "plain"), [(400.0, True), (1e7, False)])
def test_a_short_logarithmic_axis_has_plain_numbers_and_a_long_one_powers(highest: float, plain: bool) -> None:
    figure = plot_curves({"a": [20.0, highest]}, "x", "peak (GiB)", log="y")
    FigureCanvasAgg(figure).draw()
    ax = figure.axes[0]
    low, high = ax.get_ylim()
    ticks = [*ax.yaxis.get_major_ticks(), *ax.yaxis.get_minor_ticks()]
    labels = {tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high} - {""}
    assert ("100" in labels) is plain
    assert all("10^" in label for label in labels) is not plain
    assert not plain or {"20", "30", "40", "60"} <= labels


def test_the_density_of_a_full_cartesian_grid_is_one() -> None:
    n = np.arange(-12, 12)
    k = np.stack(np.meshgrid(n, n, n, indexing="ij"), axis=-1).reshape(-1, 3)
    inside = k[np.linalg.norm(k, axis=1) <= 12]
    inside = inside[: len(inside) // 2 * 2]
    density = plot_trajectory(torch.from_numpy(inside), 2).axes[1].lines[0].get_ydata()
    assert np.allclose(density[3:-1], 1, atol=0.35)  # type: ignore[index]
    assert np.mean(density[3:-1]) == pytest.approx(1, abs=0.05)  # type: ignore[index]


@pytest.mark.parametrize(("shape", "n_readout"), [((10, 2), 5), ((10, 3), 4), ((10, 3), 1), ((10,), 2)])
def test_a_trajectory_that_is_not_made_of_spokes_is_refused(shape: tuple[int, ...], n_readout: int) -> None:
    with pytest.raises(ValueError, match="n_readout"):
        plot_trajectory(np.zeros(shape), n_readout)


def test_the_ticks_of_k_space_are_few_enough_to_be_read_apart() -> None:
    k = 10 * np.random.default_rng(0).uniform(-1, 1, size=(40, 3))
    space = plot_trajectory(k, 20).axes[0]
    assert max(len(space.get_xticks()), len(space.get_yticks()), len(space.get_zticks())) <= 7
