import matplotlib
import numpy as np
import pytest
import torch

from blockkit.metrics import psnr
from blockkit.show import plot_blocks, show_coils, show_mip, show_slices

RNG = np.random.default_rng(0)


def volume(shape: tuple[int, int, int] = (5, 7, 9)) -> np.ndarray:
    return RNG.normal(size=shape) + 1j * RNG.normal(size=shape)


@pytest.mark.parametrize(
    ("axes", "index", "cut"), [("z", None, np.s_[2]), ("y", 1, np.s_[:, 1]), ("x", -1, np.s_[..., 8])]
)
def test_the_drawn_slice_is_the_slice_of_the_volume(axes: str, index: int | None, cut: object) -> None:
    v = volume()
    figure = show_slices({"v": torch.from_numpy(v)}, axes=axes, index=index)
    assert np.allclose(figure.axes[0].images[0].get_array(), np.abs(v[cut]))  # type: ignore[index]


def test_three_axes_give_three_rows_with_the_position_at_their_left() -> None:
    figure = show_slices({"a": volume(), "b": volume()}, axes="zyx", index=(1, 2, 3), crosshair=True)
    assert [ax.get_ylabel() for ax in figure.axes[:6:2]] == ["z = 1", "y = 2", "x = 3"]
    assert [ax.get_title() for ax in figure.axes[:2]] == ["a", "b"]
    assert [line.get_ydata()[0] for line in figure.axes[2].lines[:1]] == [1]  # type: ignore[index]


def test_metrics_under_a_column_are_those_of_the_whole_volume() -> None:
    a, r = volume(), volume()
    figure = show_slices({"a": a, "reference": r, "error": np.abs(a - r)}, metrics=True)
    assert f"PSNR {psnr(a, r):.1f} dB" in figure.axes[0].get_xlabel()
    assert [ax.get_xlabel() for ax in figure.axes[1:3]] == ["", ""]


def test_metrics_without_a_reference_are_refused() -> None:
    with pytest.raises(ValueError, match='named "reference"'):
        show_slices({"a": volume()}, metrics=True)


def test_a_volume_with_nan_says_so_in_place_of_its_metrics() -> None:
    bad = volume()
    bad[1, 2, 3] = np.nan
    assert "NaN" in show_slices({"a": bad, "reference": volume()}, metrics=True).axes[0].get_xlabel()


def test_images_share_one_window_and_errors_have_their_own_colors() -> None:
    figure = show_slices({"a": 3 * volume(), "reference": volume(), "error": 0.1 * volume()})
    images = [ax.images[0] for ax in figure.axes[:3]]
    assert images[0].get_clim() == images[1].get_clim() != images[2].get_clim()
    assert [image.get_cmap().name for image in images] == ["gray", "gray", "magma"]


def test_a_voxel_twice_as_high_is_drawn_twice_as_high() -> None:
    ax = show_slices({"a": volume()}, axes="y", voxel_size=(2.0, 1.0, 1.0)).axes[0]
    assert ax.get_aspect() == 2.0


@pytest.mark.parametrize("axis", ["z", "y", "x"])
def test_a_projection_holds_the_largest_magnitude_along_its_axis(axis: str) -> None:
    v = volume()
    image = show_mip({"v": v}, axis=axis).axes[0].images[0].get_array()
    assert np.allclose(image, np.abs(v).max(axis="zyx".index(axis)))


@pytest.mark.parametrize("n_coils", [1, 8, 9, 12, 20])
def test_every_coil_gets_a_picture(n_coils: int) -> None:
    maps = torch.randn(n_coils, 3, 4, 5, dtype=torch.complex64)
    figure = show_coils(maps, axis="y", part="phase")
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == [f"coil {i}" for i in range(n_coils)]
    assert np.allclose(figure.axes[0].images[0].get_array(), np.angle(maps[0, :, 2].numpy()))


def test_a_single_volume_in_place_of_maps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(coil, z, y, x\)"):
        show_coils(volume())


def test_the_marked_block_and_its_halo_are_drawn_where_they_lie() -> None:
    figure = plot_blocks(volume((8, 20, 30)), (8, 10, 12), halo=(0, 3, 4), block=(0, 1, 2))
    block, window = figure.axes[0].patches
    assert block.get_bbox().bounds == (23.5, 9.5, 6, 10)
    assert window.get_bbox().bounds == (19.5, 6.5, 10, 13)


@pytest.mark.parametrize("block", [(0, 2, 0), (1, 0, 0), (0, 0), (-1, 0, 0)])
def test_a_block_that_is_not_in_the_grid_is_refused(block: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="block"):
        plot_blocks(volume((8, 20, 30)), (8, 10, 12), block=block)


def test_a_negative_halo_is_refused() -> None:
    with pytest.raises(ValueError, match="halo"):
        plot_blocks(volume(), (2, 2, 2), halo=-1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 64, 64), (64, 1, 1), (3, 2, 50)])
def test_thin_volumes_are_drawn(shape: tuple[int, int, int]) -> None:
    figure = show_slices({"a": volume(shape), "reference": volume(shape)}, axes="zyx", crosshair=True, metrics=True)
    figure.draw_without_rendering()
    assert figure.axes[0].images[0].get_array().shape == shape[1:]


def test_unknown_words_are_refused_by_name() -> None:
    for options, word in (({"axes": "w"}, "'w'"), ({"axes": ""}, "axes"), ({"part": "abs"}, "'abs'")):
        with pytest.raises(ValueError, match=word):
            show_slices({"a": volume()}, **options)  # type: ignore[arg-type]


def test_drawing_leaves_the_settings_of_matplotlib_alone() -> None:
    before = dict(matplotlib.rcParams)
    show_slices({"a": volume()}, axes="zyx")
    plot_blocks(volume(), (2, 2, 2), halo=1)
    assert dict(matplotlib.rcParams) == before
