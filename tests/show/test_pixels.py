import io
import zlib

import matplotlib.image
import numpy as np
import pytest
import torch

from blockkit.show.pixels import CROSSHAIR, LOST, N_LEVELS, crop, encode_png, mark, palette, quantize
from blockkit.show.render import (
    all_brightest,
    brightest,
    check_index,
    check_volumes,
    check_voxel_size,
    project,
    project_whole,
    take_part,
    take_plane,
    windows,
)

WHITE = N_LEVELS - 1


def some_volume(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


def test_the_window_maps_to_the_first_and_the_last_color_and_clips_beyond() -> None:
    plane = np.array([[-1.0, 0.0, 1.0], [2.0, 3.0, 9.0]])
    assert quantize(plane, (0.0, 2.0)).tolist() == [[0, 0, 127], [253, 253, 253]]
    assert quantize(plane, (-1.0, 9.0)).tolist() == [[0, 25, 51], [76, 101, 253]]


def test_a_nan_has_its_own_byte_and_leaves_its_neighbors_alone() -> None:
    plane = np.ones((3, 4))
    plane[1, 2] = np.nan
    panel = quantize(plane, (0.0, 1.0))
    assert panel[1, 2] == LOST
    assert (np.delete(panel.ravel(), 6) == WHITE).all()


def test_infinities_are_clipped_like_any_number_out_of_the_window() -> None:
    assert quantize(np.array([[np.inf, -np.inf]]), (0.0, 1.0)).tolist() == [[WHITE, 0]]


def test_no_number_of_an_image_becomes_a_mark() -> None:
    levels = np.unique(quantize(np.linspace(-1, 2, 3000)[None], (0.0, 1.0)))
    assert levels.tolist() == list(range(N_LEVELS))


def test_the_crosshair_is_dotted_and_leaves_a_gap_at_its_voxel() -> None:
    panel = np.zeros((7, 9), np.uint8)
    marked = mark(panel, 3, 4) == CROSSHAIR
    rows, columns = np.nonzero(marked)
    assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == {
        *((row, 4) for row in (1, 5)),
        *((3, column) for column in (0, 2, 6, 8)),
    }
    assert not panel.any()


@pytest.mark.parametrize("at", [(0, 0), (6, 8), (0, 8)])
def test_a_crosshair_in_a_corner_stays_inside(at: tuple[int, int]) -> None:
    marked = mark(np.zeros((7, 9), np.uint8), *at)
    assert marked[at] == 0
    assert (marked[at[0]] == CROSSHAIR).sum() == 4
    assert (marked[:, at[1]] == CROSSHAIR).sum() == 3


def test_one_voxel_has_no_room_for_a_crosshair() -> None:
    assert mark(np.full((1, 1), 7, np.uint8), 0, 0).tolist() == [[7]]


def test_an_empty_window_still_tells_what_lies_above_it() -> None:
    assert quantize(np.array([[4.0, 5.0, 6.0, np.nan]]), (5.0, 5.0)).tolist() == [[0, 0, WHITE, LOST]]


def test_a_crop_is_the_rows_and_columns_asked_for() -> None:
    assert crop(np.arange(20).reshape(4, 5), (1, 3, 2, 5)).tolist() == [[7, 8, 9], [12, 13, 14]]


def test_the_palette_ends_with_the_crosshair_and_the_red_of_nan() -> None:
    grey = np.repeat(np.linspace(0, 1, N_LEVELS)[:, None], 4, axis=1)
    table = palette(grey)
    assert table[[0, WHITE, CROSSHAIR, LOST]].tolist() == [[0, 0, 0], [255, 255, 255], [255, 196, 0], [214, 39, 40]]
    assert (np.diff(table[:N_LEVELS, 0].astype(int)) >= 1).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (13, 8)])
def test_a_png_holds_the_bytes_and_their_palette(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    panel = rng.integers(0, 256, shape, dtype=np.uint8)
    table = rng.integers(0, 256, (256, 3), dtype=np.uint8)
    data = encode_png(panel, table)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, start = {}, 8
    while start < len(data):
        length = int.from_bytes(data[start : start + 4], "big")
        kind, body = data[start + 4 : start + 8], data[start + 8 : start + 8 + length]
        assert data[start + 8 + length : start + 12 + length] == zlib.crc32(kind + body).to_bytes(4, "big")
        chunks[kind] = body
        start += 12 + length
    assert chunks[b"IHDR"] == shape[1].to_bytes(4, "big") + shape[0].to_bytes(4, "big") + bytes([8, 3, 0, 0, 0])
    assert chunks[b"PLTE"] == table.tobytes()
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(shape[0], -1)
    assert (rows[:, 0] == 0).all()
    assert (rows[:, 1:] == panel).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_projection_is_the_largest_magnitude_of_its_slab(axis: int) -> None:
    volume = some_volume((5, 6, 7))
    expected = np.abs(volume.numpy())
    slab = expected.take([1, 2, 3], axis=axis).max(axis=axis)
    assert np.allclose(project(volume, axis, 1, 4), slab)
    assert np.allclose(project(volume.numpy(), axis, 1, 4), slab)
    assert np.allclose(project_whole(volume)[axis], expected.max(axis=axis))


def test_a_projection_looks_past_nan_unless_there_is_nothing_else() -> None:
    volume = np.ones((3, 2, 2))
    volume[0, 0, 0] = np.nan
    volume[:, 1, 1] = np.nan
    for image in (project(volume, 0, 0, 3), project_whole(volume)[0]):
        assert np.isnan(image).tolist() == [[False, False], [False, True]]
        assert image[0, 0] == 1


def test_a_projection_of_whole_numbers_does_not_overflow() -> None:
    assert project(np.full((2, 2, 2), -128, dtype=np.int8), 0, 0, 2).tolist() == [[128, 128], [128, 128]]


def test_projecting_leaves_the_volume_as_it_is() -> None:
    volume = np.arange(24.0).reshape(2, 3, 4)
    project_whole(volume)
    assert (volume == np.arange(24.0).reshape(2, 3, 4)).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_plane_is_the_same_from_torch_and_from_numpy(axis: int) -> None:
    volume = some_volume((3, 4, 5))
    expected = volume.numpy().take(2, axis=axis)
    assert (take_plane(volume, axis, 2) == expected).all()
    assert (take_plane(volume.numpy(), axis, 2) == expected).all()


def test_a_conjugated_view_shows_its_conjugate() -> None:
    volume = some_volume((3, 4, 5))
    assert np.allclose(take_part(take_plane(volume.conj(), 0, 1), "phase"), -np.angle(volume[1].numpy()))


def test_a_plane_of_a_numpy_volume_is_a_view() -> None:
    volume = np.zeros((3, 4, 5))
    assert np.shares_memory(take_plane(volume, 1, 2), volume)


@pytest.mark.parametrize("part", ["magnitude", "phase", "real", "imaginary"])
def test_each_part_of_complex_numbers_is_what_its_name_says(part: str) -> None:
    values = np.array([3 + 4j, -1j], dtype=np.complex64)
    expected = {"magnitude": [5, 1], "phase": [np.arctan2(4, 3), -np.pi / 2], "real": [3, 0], "imaginary": [4, -1]}
    assert np.allclose(take_part(values, part), expected[part])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.bool_, np.float16, np.float64])
def test_whole_and_real_numbers_are_shown_by_magnitude(dtype: type) -> None:
    volume = np.ones((2, 3, 4), dtype=dtype)
    assert brightest(volume) == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int16, torch.bool])
def test_torch_types_that_numpy_lacks_are_shown_too(dtype: torch.dtype) -> None:
    assert (take_plane(torch.ones(2, 3, 4).to(dtype), 0, 1) == 1).all()


def test_the_most_negative_whole_number_does_not_overflow() -> None:
    assert brightest(np.full((2, 2, 2), -128, dtype=np.int8)) == 128.0


def test_one_hot_voxel_does_not_darken_the_picture_by_more_than_ten() -> None:
    volume = np.ones((20, 20, 20))
    volume[3, 4, 5] = 1000
    assert brightest(volume) == 100.0


def test_the_reference_sets_the_window_of_all_images_but_not_of_the_errors() -> None:
    one = np.ones((4, 5, 6))
    levels = windows(
        all_brightest({"a": 3 * one, "reference": 2 * one, "error of a": 0.1 * one, "error of b": 0.2 * one})
    )
    assert levels["a"] == levels["reference"] == (0.0, 2.0)
    assert levels["error of a"] == levels["error of b"] == (0.0, pytest.approx(0.2))


def test_signed_parts_get_a_symmetric_window_and_phase_a_full_turn() -> None:
    tops = all_brightest({"a": np.full((2, 2, 2), -3.0), "error": np.ones((2, 2, 2))})
    assert windows(tops, "real")["a"] == (-3.0, 3.0)
    assert windows(tops, "phase") == {"a": (-np.pi, np.pi), "error": (0.0, 1.0)}


def test_a_volume_of_zeros_or_nan_gets_a_window_too() -> None:
    volumes = {"a": np.zeros((2, 2, 2)), "b": np.full((2, 2, 2), np.nan)}
    assert windows(all_brightest(volumes)) == {"a": (0.0, 1.0), "b": (0.0, 1.0)}


@pytest.mark.parametrize(
    ("volumes", "error", "words"),
    [
        ({}, ValueError, "0 entries"),
        (np.ones((2, 2, 2)), TypeError, "expected a dict"),
        ({"a": [1, 2]}, TypeError, "'a'.*list"),
        ({"a": np.ones((4, 5))}, ValueError, r"volume\[None\]"),
        ({"a": np.ones((1, 4, 5, 6))}, ValueError, r"volume\[0\]"),
        ({"a": np.ones((4, 0, 6))}, ValueError, "no voxel"),
        ({"a": np.ones((4, 5, 6)), "b": np.ones((4, 6, 5))}, ValueError, "'b'.*one shape"),
        ({"a": np.array([[["x"]]])}, TypeError, "dtype"),
        ({str(i): np.ones((2, 2, 2)) for i in range(9)}, ValueError, "9 entries"),
    ],
)
def test_unfit_volumes_are_refused_with_a_hint(volumes: object, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        check_volumes(volumes)  # type: ignore[arg-type]


def test_an_index_counts_from_the_end_when_negative_and_stays_inside() -> None:
    assert check_index(None, (5, 6, 7)) == (2, 3, 3)
    assert check_index(-1, (5, 6, 7), "y") == (2, 5, 3)
    assert check_index((0, -6, 6), (5, 6, 7)) == (0, 0, 6)
    with pytest.raises(ValueError, match="along y is 6, expected 0 to 5"):
        check_index((0, 6, 0), (5, 6, 7))
    with pytest.raises(ValueError, match="expected one, or three"):
        check_index((1, 2), (5, 6, 7))


@pytest.mark.parametrize("size", [0, -1.0, (1, 2), (1, 1, np.nan), (1, 0, 1)])
def test_a_voxel_without_extent_is_refused(size: object) -> None:
    with pytest.raises(ValueError, match="voxel_size"):
        check_voxel_size(size)  # type: ignore[arg-type]


def test_a_png_of_colors_is_read_back_as_they_are() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    read = matplotlib.image.imread(io.BytesIO(encode_png(pixels)), format="png")
    assert np.array_equal(np.rint(255 * read), pixels)
