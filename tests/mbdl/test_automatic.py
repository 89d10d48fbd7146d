"""A reconstruction takes the largest blocks that fit, and smaller ones when memory runs out all the same."""

from dataclasses import replace
from math import prod

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from blockkit.blockwise.memory import predict_peak
from blockkit.mbdl import automatic, planner, room, unrolled
from blockkit.mbdl.automatic import in_fitting_blocks, settled
from blockkit.mbdl.data_consistency import prepare
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.unrolled import UnrolledNetwork
from tests.mbdl.small_scans import make_scan

SHAPE = (8, 8, 64)
SCAN = make_scan(0, SHAPE)
A = SCAN.encoding()
apply_blockwise = unrolled.apply_blockwise


def make_model(block_shape: tuple[int, int, int] | str | None) -> UnrolledNetwork:
    torch.manual_seed(1)
    return UnrolledNetwork(ResidualCNN(4, 2), 2, block_shape=block_shape)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Let blocks of more than 1300 voxels run out of memory, and return the list of those that were tried."""
    blocks = []

    def apply(network, x, block_shape, **options):  # type: ignore[no-untyped-def]
        if not isinstance(x, FakeTensor):
            blocks.append(block_shape)
            if prod(block_shape) > 1300:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd much more.")
        return apply_blockwise(network, x, block_shape, **options)

    monkeypatch.setattr(unrolled, "apply_blockwise", apply)
    return blocks


@torch.no_grad()
def image_of(model: UnrolledNetwork) -> Tensor:
    return model(A, SCAN.kspace)


def test_what_fits_as_a_whole_is_run_as_one_block_and_the_model_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, blocks = make_model("auto"), []

    def apply(network, x, block_shape, **options):  # type: ignore[no-untyped-def]
        blocks.append(block_shape)
        return apply_blockwise(network, x, block_shape, **options)

    monkeypatch.setattr(unrolled, "apply_blockwise", apply)
    assert torch.equal(image_of(model), image_of(make_model(SHAPE)))
    assert set(blocks) == {SHAPE}
    assert model.block_shape == "auto"


@pytest.mark.slow
def test_the_block_is_the_largest_with_which_a_reconstruction_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = UnrolledNetwork(ResidualCNN(64, 2), 1, block_shape="auto")
    monkeypatch.setattr(room, "_scratch_rate", lambda *_, training: 0.0)
    case = room._case(model, A, training=False, share_held_out=0.0)
    blocks = room._candidates(model, SHAPE)
    needed = [planner._with_block(model, block, case).bytes - room._loaded(model, case) for block in blocks]
    budget = (max(needed) + min(needed)) / 2
    monkeypatch.setattr(room, "free_bytes", lambda _: int(budget / room.SHARE_TO_TAKE))
    expected = next(block for block, n_bytes in zip(blocks, needed, strict=True) if n_bytes <= budget)
    assert expected != SHAPE
    assert settled(model, A).block_shape == expected
    assert room._case(model, SCAN, training=False, share_held_out=0.0) == replace(case, normal="auto")


def test_blocks_get_smaller_until_a_reconstruction_fits(tried: list[tuple[int, int, int]]) -> None:
    expected = image_of(make_model((8, 8, 16)))
    tried.clear()
    with pytest.warns(RuntimeWarning, match=r"Out of memory by blocks of \(8, 8, (64|32)\): going on by") as said:
        image = image_of(make_model("auto"))
    assert len(said) == 2
    assert tried[:2] == [(8, 8, 64), (8, 8, 32)]
    assert set(tried[2:]) == {(8, 8, 16)}
    assert torch.equal(image, expected)


def test_a_block_of_ones_own_is_kept_and_the_message_says_what_would_fit(tried: list[tuple[int, int, int]]) -> None:
    expected = (
        r"Out of memory by blocks of \(8, 8, 48\) \(CUDA out of memory\. Tried to allocate 2\.00 GiB\.\)\. "
        r'With model\.block_shape = \(8, 8, 22\) it takes .* GiB\. Or write model\.block_shape = "auto"'
    )
    with torch.no_grad(), pytest.raises(MemoryError, match=expected):
        in_fitting_blocks(make_model((8, 8, 48)), A, SCAN.kspace, automatic=False)


@pytest.mark.slow
def test_if_the_smallest_block_is_too_large_the_message_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(network, x, *args, **options):  # type: ignore[no-untyped-def]
        if isinstance(x, FakeTensor):
            return apply_blockwise(network, x, *args, **options)
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(unrolled, "apply_blockwise", fail)
    with pytest.warns(RuntimeWarning, match="going on"), pytest.raises(MemoryError, match="No block is small enough"):
        image_of(make_model("auto"))


def test_a_prediction_counts_the_block_that_would_be_taken_and_not_the_choice() -> None:
    with torch.no_grad():
        expected = predict_peak(make_model(SHAPE), A, SCAN.kspace)
        assert predict_peak(make_model("auto"), A, SCAN.kspace) == expected


def test_with_gradients_it_is_the_block_of_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, model = [], make_model("auto")

    def largest(model, scan, *, training):  # type: ignore[no-untyped-def]
        asked.append(training)
        return SHAPE

    monkeypatch.setattr(automatic, "largest_fitting", largest)
    image_of(model)
    model(A, SCAN.kspace).abs().sum().backward()
    assert asked == [False, True]
    assert all(parameter.grad is not None for parameter in model.regularizers.parameters())
    model.recompute = False
    with pytest.raises(ValueError, match="recompute False"):
        model(A, SCAN.kspace)


def test_where_the_scan_is_not_known_auto_is_refused_with_what_to_write() -> None:
    with (
        torch.no_grad(),
        pytest.raises(ValueError, match=r'block_shape is "auto".*model\.block_shape = \(64, 64, 64\)'),
    ):
        make_model("auto").unroll(prepare(A, SCAN.kspace))


@pytest.mark.slow
def test_a_process_with_a_part_of_the_memory_counts_on_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda _: 2**40)
    monkeypatch.setattr(room, "_part", [])
    room.check_room(make_model(SHAPE), SCAN, training=False, unless="")
    room.count_on(10**5)
    with pytest.raises(room.NoRoomError):
        room.check_room(make_model(SHAPE), SCAN, training=False, unless="")
