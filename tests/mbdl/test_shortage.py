"""When memory runs out in a step, it is named with what would fit, or the run goes on with less."""

import os
import subprocess
import sys
import threading
from math import prod
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from blockkit.data.scan import Scan
from blockkit.mbdl import room, unrolled
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.shortage import is_out_of_memory, with_room
from blockkit.mbdl.training import fit
from blockkit.mbdl.unrolled import UnrolledNetwork
from tests.mbdl.small_scans import make_scan

SHAPE = (8, 8, 64)
apply_blockwise = unrolled.apply_blockwise


@pytest.fixture(scope="module")
def scans() -> list[Scan]:
    return [make_scan(seed, SHAPE) for seed in range(2)]


def make_model(block_shape: tuple[int, int, int] | str | None) -> UnrolledNetwork:
    torch.manual_seed(1)
    return UnrolledNetwork(ResidualCNN(4, 2), 1, block_shape=block_shape)


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Let blocks of more than 1300 voxels run out of memory, and return the list of those that were tried."""
    tried = []

    def apply(network, x, block_shape, **options):  # type: ignore[no-untyped-def]
        tried.append(block_shape)
        if prod(block_shape) > 1300 and not isinstance(x, FakeTensor):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nAnd much more.")
        return apply_blockwise(network, x, block_shape, **options)

    monkeypatch.setattr(unrolled, "apply_blockwise", apply)
    return tried


def test_automatic_blocks_get_smaller_until_a_step_fits(
    scans: list[Scan], small_machine: list[tuple[int, int, int]]
) -> None:
    expected = fit(make_model((8, 8, 16)), scans, n_steps=3).losses
    small_machine.clear()
    model = make_model("auto")
    with pytest.warns(RuntimeWarning, match=r"after step 0, on scans\[\d\], by blocks of \(8, 8, (64|32)\): going"):
        history = fit(model, scans, validation=scans[:1], n_steps=3)
    assert small_machine[:2] == [(8, 8, 64)] * 2  # the second without the validation scans that were kept
    assert model.block_shape == (8, 8, 16)
    assert history.losses == pytest.approx(expected, rel=1e-4)
    assert not history.skipped


def test_a_block_of_ones_own_is_not_changed_and_the_message_says_what_would_fit(
    scans: list[Scan], small_machine: list[tuple[int, int, int]], tmp_path: Path
) -> None:
    model = make_model((8, 8, 48))
    expected = (
        r"Out of memory after step 0, on scans\[\d\], by blocks of \(8, 8, 48\) \(CUDA out of memory\. Tried to "
        r'allocate 2\.00 GiB\.\)\. With model\.block_shape = \(8, 8, 22\) it takes .* GiB\. Or write '
        r'model\.block_shape = "auto", .* The weights are those of step 0'
    )  # fmt: skip
    with pytest.raises(MemoryError, match=expected):
        fit(model, scans, n_steps=3, checkpoint=tmp_path / "run")
    assert model.block_shape == (8, 8, 48)


@pytest.mark.slow
def test_if_the_smallest_automatic_block_is_too_large_the_run_stops_and_says_so(
    scans: list[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(network, x, *args, **options):  # type: ignore[no-untyped-def]
        if isinstance(x, FakeTensor):
            return apply_blockwise(network, x, *args, **options)
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(unrolled, "apply_blockwise", fail)
    with (
        pytest.warns(RuntimeWarning, match="going on by"),
        pytest.raises(MemoryError, match=r"No block is small enough\. Try offload"),
    ):
        fit(make_model("auto"), scans, n_steps=3)


def test_kept_scans_are_given_back_before_anything_else(scans: list[Scan], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = fit(make_model((8, 8, 16)), scans, n_steps=5)
    calls = []

    def apply(*args, **options):  # type: ignore[no-untyped-def]
        calls.append(args)
        if len(calls) == 4:
            raise MemoryError
        return apply_blockwise(*args, **options)

    monkeypatch.setattr(unrolled, "apply_blockwise", apply)
    model = make_model((8, 8, 16))
    assert fit(model, scans, n_steps=5).losses == pytest.approx(expected.losses, rel=1e-6)
    assert len(calls) == 6
    assert model.block_shape == (8, 8, 16)


def test_a_step_that_fails_while_it_changes_the_weights_is_taken_back_and_tried_again(
    scans: list[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, model = make_model(None), make_model(None)
    expected = fit(whole, scans, n_steps=6)
    step, calls = torch.optim.Adam.step, []

    def fail_once(optimizer: torch.optim.Adam) -> None:
        calls.append(step(optimizer))
        if len(calls) == 4:
            raise MemoryError

    monkeypatch.setattr(torch.optim.Adam, "step", fail_once)
    assert fit(model, scans, n_steps=6).losses == pytest.approx(expected.losses, rel=1e-6)
    assert len(calls) == 7
    for value, other in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_automatic_block_is_the_largest_that_fits_and_never_grows(
    scans: list[Scan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda _: 2**19)
    model = make_model("auto")
    fit(model, scans[:1], n_steps=1, check_memory=False)
    assert prod(model.block_shape) < prod(SHAPE)
    monkeypatch.setattr(room, "free_bytes", lambda _: 2**40)
    model.block_shape = "auto"
    fit(model, scans[:1], n_steps=1)
    assert model.block_shape == SHAPE
    model.block_shape, model.recompute = "auto", False
    with pytest.raises(ValueError, match=r'model\.block_shape is "auto" and model\.recompute False'):
        fit(model, scans[:1], n_steps=1)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("FINUFFT general malloc failure"), True),
        (RuntimeError("cuFFT error: CUFFT_ALLOC_FAILED"), True),
        (RuntimeError("shape mismatch"), False),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("could not create a primitive descriptor for a matmul"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_want_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected

    def fail() -> None:
        raise error

    def make_room(said: str, foreseen: bool) -> None:
        raise LookupError(said)

    with pytest.raises(LookupError if expected else type(error)):
        with_room(fail, make_room)


def test_where_there_was_no_room_for_code_the_step_goes_on_in_a_new_thread() -> None:
    """OneDNN makes no kernel any more in a thread where it once had no room for one; elsewhere it does."""
    here, begun, made_room = threading.get_ident(), [], []

    def action() -> tuple[bool, torch.dtype]:
        begun.append(threading.get_ident())
        if begun[-1] == here:
            raise RuntimeError("could not create a primitive")
        if len(begun) < 4:
            raise MemoryError("no room for a tensor")
        a = torch.ones(2, 2, requires_grad=True)
        return (a @ a).requires_grad, (a @ a).dtype

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert with_room(action, lambda said, _: made_room.append(said)) == (False, torch.bfloat16)
        begun.clear()
        with torch.enable_grad(), torch.autocast("cpu", enabled=False):
            assert with_room(action, lambda said, _: made_room.append(said)) == (True, torch.float32)
    assert here not in begun[1:]
    assert made_room == ["no room for a tensor"] * 4  # nobody was asked to make room for code


def test_no_room_for_code_in_a_new_thread_either_is_want_of_memory() -> None:
    def action() -> None:
        raise RuntimeError("could not create a primitive")

    def make_room(said: str, foreseen: bool) -> None:
        raise LookupError(said)

    with pytest.raises(LookupError, match="could not create a primitive"):
        with_room(action, make_room)


LIMITED = """
import resource, warnings, torch
from math import prod
from pathlib import Path
import blockkit as bk
from tests.mbdl.small_scans import make_scan
torch.set_num_threads(1)
scan, shape = make_scan(0, (32, 32, 128)), (32, 32, 128)
model = bk.UnrolledNetwork(bk.ResidualCNN(32, 3), 1, block_shape="auto")
bk.fit(bk.UnrolledNetwork(bk.ResidualCNN(4, 2), 1), [scan], n_steps=1)  # loads what is loaded late
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (mapped + 70 * 2**20, resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    history = bk.fit(model, [scan], n_steps=1)
print(len(history.losses), prod(model.block_shape) < prod(shape), said[0].message)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc and a limit of the memory of a process")
def test_a_process_whose_memory_is_limited_goes_on_with_blocks_that_fit() -> None:
    # large tensors give back their addresses at once; else the heap, which differs from run to run, fills the limit
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    command = [sys.executable, "-c", LIMITED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "1 True Out of memory after step 0, on scans[0], by blocks of (32, 32, 128): going on"
    )
