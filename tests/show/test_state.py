from dataclasses import replace

import pytest

from blockkit.show.state import (
    MOST_ZOOM,
    ViewState,
    box,
    depth,
    initial,
    move_to,
    other_volume,
    shown_names,
    step,
)

SHAPE = (10, 20, 30)
NAMES = ("MBDL", "reference", "error of MBDL")


@pytest.fixture
def state() -> ViewState:
    return initial(NAMES, SHAPE)


def key(state: ViewState, name: str, **more: object) -> ViewState:
    return step(state, {"type": "key", "key": name, **more})


def test_it_starts_in_the_middle_with_the_reference_to_blink_with(state: ViewState) -> None:
    assert state.position == (5, 10, 15)
    assert state.partner == "reference"
    assert [box(state, axis) for axis in range(3)] == [(0, 20, 0, 30), (0, 10, 0, 30), (0, 10, 0, 20)]


@pytest.mark.parametrize(("axis", "expected"), [(0, (5, 3, 4)), (1, (3, 10, 4)), (2, (3, 4, 15))])
def test_a_click_moves_the_two_coordinates_of_its_plane(
    state: ViewState, axis: int, expected: tuple[int, int, int]
) -> None:
    moved = step(state, {"type": "move", "axis": axis, "column": 1, "row": 3, "col": 4})
    assert moved.position == expected
    assert (moved.axis, moved.column) == (axis, 1)


def test_the_crosshair_stays_in_the_volume(state: ViewState) -> None:
    assert step(state, {"type": "move", "axis": 0, "row": -5, "col": 99}).position == (5, 0, 29)
    assert step(state, {"type": "scroll", "axis": 0, "steps": 99}).position == (9, 10, 15)
    assert step(state, {"type": "scroll", "axis": 0, "steps": -99}).position == (0, 10, 15)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ArrowUp", (4, 10, 15)),
        ("ArrowDown", (6, 10, 15)),
        ("ArrowLeft", (5, 10, 14)),
        ("ArrowRight", (5, 10, 16)),
        ("PageUp", (5, 9, 15)),
        ("PageDown", (5, 11, 15)),
        ("Home", (5, 0, 15)),
        ("End", (5, 19, 15)),
    ],
)
def test_keys_move_in_the_plane_that_has_them(state: ViewState, name: str, expected: tuple[int, int, int]) -> None:
    assert key(state, name, axis=1).position == expected


def test_a_key_counts_its_repeats_and_shift_makes_ten_of_one(state: ViewState) -> None:
    assert key(state, "ArrowRight", times=3).position == (5, 10, 18)
    assert key(state, "ArrowRight", shift=True).position == (5, 10, 25)


def test_a_key_without_a_meaning_changes_nothing(state: ViewState) -> None:
    assert key(state, "q") == state


def test_dragging_with_shift_moves_the_window_of_images_or_of_errors(state: ViewState) -> None:
    drag = {"type": "drag", "dx": 0.0, "dy": 0.25}
    image = step(state, {**drag, "column": 0})
    assert image.window == (0.25, 1.25)
    assert image.error_window == (0.0, 1.0)
    error = step(state, {**drag, "column": 2})
    assert error.window == (0.0, 1.0)
    assert error.error_window == (0.25, 1.25)
    narrow = step(state, {"type": "drag", "column": 0, "dx": -0.5, "dy": 0.0})
    assert narrow.window == (0.25, 0.75)


def test_a_window_never_turns_over_or_closes(state: ViewState) -> None:
    for dx, dy in ((-99, 0), (0, 99), (0, -99), (99, 0)):
        low, high = step(state, {"type": "drag", "column": 0, "dx": dx, "dy": dy}).window
        assert 0 <= low < high <= 2.01
    low, high = step(state, {"type": "set", "name": "window", "value": [0.9, 0.1]}).window
    assert low == 0.9 < high


def test_zooming_keeps_the_crosshair_where_it_is_in_the_panel(state: ViewState) -> None:
    zoomed = step(state, {"type": "set", "name": "zoom", "value": 2})
    assert box(zoomed, 0) == (5, 15, 8, 23)
    top, bottom, left, right = box(step(zoomed, {"type": "zoom", "steps": 1}), 0)
    assert top <= 10 < bottom
    assert left <= 15 < right
    assert box(step(zoomed, {"type": "set", "name": "zoom", "value": 1}), 0) == (0, 20, 0, 30)


def test_a_zoomed_view_follows_the_crosshair_by_as_little_as_needed(state: ViewState) -> None:
    zoomed = step(state, {"type": "set", "name": "zoom", "value": 2})
    assert box(move_to(zoomed, (5, 12, 15)), 0) == box(zoomed, 0)
    assert box(move_to(zoomed, (5, 16, 15)), 0) == (7, 17, 8, 23)
    assert box(move_to(zoomed, (5, 0, 29)), 0) == (0, 10, 15, 30)


def test_the_zoom_has_an_end_and_one_voxel_stays(state: ViewState) -> None:
    zoomed = step(state, {"type": "zoom", "steps": 99})
    assert zoomed.zoom == MOST_ZOOM
    assert box(zoomed, 2) == (5, 6, 10, 11)
    assert step(zoomed, {"type": "zoom", "steps": -99}).zoom == 1


def test_a_slab_lies_around_the_crosshair_and_ends_with_the_volume(state: ViewState) -> None:
    assert depth(state, 0) == (5, 6)
    assert depth(replace(state, slab=4), 0) == (4, 8)
    assert depth(replace(state, slab=4, position=(9, 0, 0)), 0) == (8, 10)
    assert depth(replace(state, slab=0), 2) == (0, 30)
    assert key(state, "m").slab == 0
    assert key(key(state, "m"), "m").slab == 1


def test_blinking_puts_the_reference_in_the_place_of_the_active_column(state: ViewState) -> None:
    blinking = key(state, "b", column=0)
    assert shown_names(blinking) == ["reference", "reference", "error of MBDL"]
    assert shown_names(key(blinking, "b", column=0)) == list(NAMES)
    assert blinking.position == state.position


def test_the_partner_itself_blinks_with_another(state: ViewState) -> None:
    assert shown_names(key(state, "b", column=1)) == ["MBDL", "MBDL", "error of MBDL"]
    chosen = step(state, {"type": "set", "name": "partner", "value": "error of MBDL"})
    assert other_volume(chosen) == "error of MBDL"


def test_going_to_another_column_ends_the_blink(state: ViewState) -> None:
    blinking = key(state, "b", column=0)
    assert shown_names(step(blinking, {"type": "scroll", "column": 1, "steps": 1})) == list(NAMES)


def test_one_volume_alone_does_not_blink() -> None:
    alone = initial(["a"], SHAPE)
    assert key(alone, "b") == alone


def test_p_turns_the_profile_through_the_axes_and_off(state: ViewState) -> None:
    seen = []
    for _ in range(4):
        state = key(state, "p")
        seen.append(state.profile)
    assert seen == [0, 1, 2, -1]


def test_reset_undoes_everything_but_the_active_plane(state: ViewState) -> None:
    changed = state
    for event in (
        {"type": "move", "axis": 1, "column": 1, "row": 0, "col": 0},
        {"type": "drag", "dx": 0.1, "dy": 0.1},
        {"type": "zoom", "steps": 2},
        {"type": "set", "name": "part", "value": "phase"},
        {"type": "set", "name": "slab", "value": 5},
        {"type": "set", "name": "profile", "value": 2},
    ):
        changed = step(changed, event)
    assert key(changed, "r") == replace(state, axis=1, column=1)
    assert step(changed, {"type": "reset"}) == replace(state, axis=1, column=1)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"type": "dance"}, "type 'dance', expected one of move"),
        ({}, "type None"),
        ({"type": "set", "name": "shape", "value": 1}, "cannot set 'shape'"),
        ({"type": "set", "name": "partner", "value": "x"}, "cannot set 'partner'"),
        ({"type": "set", "name": "part", "value": "x"}, "part is 'x'"),
    ],
)
def test_an_event_that_is_none_says_so(state: ViewState, event: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        step(state, event)
