"""How the planner seeks a block and what it says, with made-up peaks: nothing is traced."""

import re
from dataclasses import replace
from math import prod

import pytest
import torch
from torch import nn

from blockkit.blockwise.memory import Peak
from blockkit.ledger import GIB
from blockkit.mbdl import planner
from blockkit.mbdl.footprint import Case
from blockkit.mbdl.planner import LEAST_BLOCK, Plan, candidates, largest_block, plan, plan_run
from blockkit.mbdl.unrolled import UnrolledNetwork

SHAPE = (70, 34, 50)
CASE = Case(SHAPE, 6, 20_000)


def convolution() -> nn.Module:
    return nn.Conv3d(2, 2, 3, padding=1)


def made_up(model, case):
    """A peak that grows with the block and with the unrolls; each option saves another number of bytes."""
    voxels = prod(model.block_shape or case.image_shape)
    images = 1000 * model.n_unrolls * (model.offload != "disk") * case.training
    windows = voxels * (2 if model.recompute else 3)
    rest = 500 * (not case.interpolated_maps) + 70 * case.training
    return Peak(bytes=images + windows + rest, parts={"images": images, "windows": windows, "maps": rest})


@pytest.fixture
def asked(monkeypatch):
    """The model and the case of each prediction, which is made up."""
    seen = []
    monkeypatch.setattr(planner, "predict_run", lambda model, case: seen.append((model, case)) or made_up(model, case))
    return seen


BLOCKS = candidates(SHAPE, (1, 1, 1))


@pytest.mark.parametrize("i", range(len(BLOCKS)))
def test_the_first_candidate_that_fits_is_found_and_one_byte_less_takes_the_next(i, asked):
    model = UnrolledNetwork(convolution(), 5)
    takes = made_up(UnrolledNetwork(model.regularizers[0], 5, block_shape=BLOCKS[i]), CASE).bytes
    found = plan_run(model, CASE, takes)
    assert (found.block_shape, found.n_bytes, found.budget_gib) == (BLOCKS[i], takes, takes / GIB)
    assert sum(found.parts.values()) == takes
    assert len(asked) <= 7 < len(BLOCKS)
    assert {seen.n_unrolls for seen, _ in asked} == {2, 5}
    assert len({(seen.n_unrolls, seen.block_shape) for seen, _ in asked}) == len(asked)
    if i + 1 < len(BLOCKS):
        assert plan_run(model, CASE, takes - 1).block_shape == BLOCKS[i + 1]
    else:
        with pytest.raises(ValueError, match="even the smallest block"):
            plan_run(model, CASE, takes - 1)
    assert model.block_shape is None


def test_the_search_keeps_the_data_term_the_offload_and_the_case(asked):
    model = UnrolledNetwork(convolution(), 1, data_term="cg", offload="disk")
    largest_block(model, replace(CASE, training=False), 1e6)
    assert {(seen.data_term, seen.offload, seen.n_unrolls) for seen, _ in asked} == {("cg", "disk", 1)}
    assert {case.training for _, case in asked} == {False}


def test_where_unrolls_do_not_add_up_the_search_goes_on_to_smaller_blocks(monkeypatch):
    def more_than_the_sum(model, case):
        voxels = prod(model.block_shape or case.image_shape) * case.training
        return Peak(bytes=voxels + (model.n_unrolls == 5) * (voxels > prod(BLOCKS[-1])) * voxels // 2)

    monkeypatch.setattr(planner, "predict_run", more_than_the_sum)
    model = UnrolledNetwork(convolution(), 5)
    fits = [prod(block) for block in BLOCKS[:-1]]
    for voxels in fits[4], fits[-1]:
        block, peak = largest_block(model, CASE, voxels)
        assert peak.bytes <= voxels
        assert peak.bytes == more_than_the_sum(UnrolledNetwork(convolution(), 5, block_shape=block), CASE).bytes
        larger = BLOCKS[BLOCKS.index(block) - 1]
        assert prod(larger) * 1.5 > voxels
    assert largest_block(model, CASE, 1.0)[0] == BLOCKS[-1]


class Corrected(nn.Module):
    """Takes four channels, and no layer says so: pairs of voxels along x trade the gradient of each other."""

    sees_gradient = True

    def forward(self, x):
        return x[:, :2] - 0.1 * x[:, 2:].unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


def test_the_stride_of_a_regularizer_that_sees_the_gradient_is_kept(asked):
    block, _ = largest_block(UnrolledNetwork(Corrected(), 2), CASE, 1.0)
    assert block == candidates(SHAPE, (1, 1, 2))[-1] != candidates(SHAPE, (1, 1, 1))[-1]


def test_candidates_are_as_equal_as_the_stride_allows_down_to_the_least_block():
    assert candidates((40, 20, 33), (1, 1, 1)) == [
        *((40, 20, 33), (20, 20, 33), (20, 20, 17), (14, 20, 17), (14, 10, 17), (14, 10, 11))
    ]
    assert candidates((33, 5, 16), (4, 1, 8)) == [(36, 5, 16), (20, 5, 16), (12, 5, 16)]
    assert candidates((96, 8, 8), (32, 8, 8)) == [(96, 8, 8), (64, 8, 8), (32, 8, 8)]
    assert candidates((40, 20, 64), (1, 1, 64)) == [(40, 20, 64), (20, 20, 64), (14, 20, 64), (14, 10, 64)]
    assert [z for z, _, _ in candidates((104, 1, 1), (8, 1, 1))] == [
        104,
        56,
        40,
        32,
        24,
        16,
    ]  # 24 comes of 5 and 6 cuts
    assert candidates((LEAST_BLOCK, LEAST_BLOCK + 1, 2), (1, 1, 1)) == [(16, 17, 2), (16, 9, 2)]


def test_what_is_missing_is_said_to_the_byte_and_nothing_that_does_not_help(monkeypatch):
    monkeypatch.setattr(planner, "predict_run", lambda model, case: _times_gib(made_up(model, case)))
    model, smallest = UnrolledNetwork(convolution(), 3), prod(BLOCKS[-1])
    takes = 3000 + 2 * smallest + 570
    with pytest.raises(ValueError, match="even the smallest block") as error:
        plan_run(model, CASE, 1000 * GIB)
    assert str(error.value) == (
        f"budget_gib is 1000, and even the smallest block takes {takes} GiB (images 3000, windows {2 * smallest}, "
        f'maps 570): {takes - 1000} GiB are missing. What helps: offload="disk" saves 3000 GiB; '
        "interpolated_maps=True saves 500 GiB; training=False (reconstruction only) saves 3070 GiB."
    )
    frugal = replace(CASE, training=False, interpolated_maps=True)
    with pytest.raises(ValueError, match=rf"{2 * smallest - 1000} GiB are missing\. $"):
        plan_run(model, frugal, 1000 * GIB)
    offloaded = UnrolledNetwork(convolution(), 3, offload="disk")
    with pytest.raises(ValueError, match=r"What helps: interpolated_maps=True saves 500 GiB; training=False .* 70 GiB"):
        plan_run(offloaded, CASE, 1000 * GIB)


def test_an_option_that_saves_nothing_is_not_named(monkeypatch):
    monkeypatch.setattr(planner, "predict_run", lambda model, case: Peak(bytes=5 * GIB, parts={"images": 5 * GIB}))
    with pytest.raises(ValueError, match=r"takes 5 GiB \(images 5\): 3 GiB are missing\. $"):
        plan_run(UnrolledNetwork(convolution(), 3), CASE, 2 * GIB)


def _times_gib(peak):
    return Peak(bytes=peak.bytes * GIB, parts={name: n * GIB for name, n in peak.parts.items()})


def test_a_whole_model_beyond_the_budget_is_told_of_the_smallest_block(monkeypatch):
    monkeypatch.setattr(planner, "predict_run", lambda model, case: _times_gib(made_up(model, case)))
    kept = UnrolledNetwork(convolution(), 3, recompute=False)
    with pytest.raises(ValueError, match=r"and the model takes 360570 GiB") as error:
        plan(SHAPE, n_coils=6, n_samples=20_000, network=kept, budget_gib=1)
    assert f"What helps: the smallest block, recomputed in backward, saves {357_000 - 2 * prod(BLOCKS[-1])}" in str(
        error.value
    )
    assert 'offload="disk"' not in str(error.value)
    assert (kept.block_shape, kept.recompute, kept.offload) == (None, False, None)


@pytest.mark.parametrize(
    ("recompute", "training", "again"), [(True, True, 4 / 3), (False, True, 1), (True, False, 1), (False, False, 1)]
)
def test_the_work_is_that_of_all_windows_and_of_recomputation(recompute, training, again, asked):
    shape = (16, 12, 20)
    model = UnrolledNetwork(convolution(), 2, block_shape=(8, 12, 5), recompute=recompute)
    found = plan(shape, n_coils=1, n_samples=90, network=model, budget_gib=1, training=training)
    windows = 2 * 9 * (4 * 7)  # a halo of 1 on the inner side; windows are of one size: 5 + 2 of the inner ones
    assert found.n_blocks == 8
    assert found.work == pytest.approx(windows / (16 * 20) * again)
    whole = UnrolledNetwork(convolution(), 2)
    assert plan(shape, n_coils=1, n_samples=90, network=whole, budget_gib=1, training=training).work == 1


def test_what_is_asked_is_what_is_predicted(asked, monkeypatch):
    rates = []
    monkeypatch.setattr(planner, "scratch_rate", lambda *of, training: rates.append((*of, training)) or 7.0)
    network, sizes = convolution(), {"n_coils": 3, "n_samples": 500, "budget_gib": 1}
    plan(SHAPE, network=network, n_unrolls=2, **sizes)
    plain = Case(SHAPE, 3, 500)
    assert {case for _, case in asked} == {plain}
    assert not rates
    assert all(model.regularizers[0] is network and model.offload is None for model, _ in asked)
    assert {model.n_unrolls for model, _ in asked} == {2}
    for options, expected in (
        ({"training": False}, replace(plain, training=False)),
        ({"interpolated_maps": True}, replace(plain, interpolated_maps=True)),
        ({"coils_at_once": 2}, replace(plain, coils_at_once=2)),
        ({"coils_at_once": 9}, replace(plain, coils_at_once=3)),
        ({"off_resonance": True}, replace(plain, off_resonance=True)),
        ({"calibrate": True}, replace(plain, scratch_rate=7.0)),
        ({"calibrate": True, "training": False}, replace(plain, scratch_rate=7.0, training=False)),
    ):
        asked.clear()
        plan(SHAPE, network=network, n_unrolls=2, **sizes, **options)
        assert {case for _, case in asked} == {expected}
    assert rates == [(network, torch.device("cpu"), True), (network, torch.device("cpu"), False)]
    asked.clear()
    plan(SHAPE, network=convolution().double(), n_unrolls=2, offload="disk", **sizes)
    assert {(model.offload, case.dtype) for model, case in asked} == {("disk", torch.complex128)}


def test_a_plan_prints_as_a_table():
    parts = {"weights": 2**29, "windows": 5 * 2**29, "mine": 1}
    printed = str(Plan((8, 9, 10), 12, 3 * 2**30, parts, 1.256, 4.0))
    assert printed.splitlines() == [
        "blocks of 8 x 9 x 10 voxels, 12 an unroll, 1.26 x the regularizer's work",
        "       0.5 GiB  weights, gradients, optimizer state",
        "       2.5 GiB  one batch of windows with its activations",
        "  9.31e-10 GiB  mine",
        "         3 GiB  of 4",
    ]
    large = str(Plan((8, 9, 10), 12, 1234 * 2**30, {}, 1.0, 1300.0))
    assert re.search(r"^ +1234 GiB  of 1300$", large, re.MULTILINE)
