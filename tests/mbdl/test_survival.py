"""Training loses nothing that was learned: through kills, a full disk, bad scans, and want of memory."""

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from blockkit.data.folder import ScanFolder
from blockkit.data.scan import Scan
from blockkit.mbdl import checkpoint, prepared
from blockkit.mbdl.determinism import repeatable
from blockkit.mbdl.interrupt import interruptible
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.prepared import BadScanError
from blockkit.mbdl.progress import History, Progress
from blockkit.mbdl.training import fit
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import load_model
from blockkit.physics.engines import Finufft
from blockkit.physics.fourier import NUFFT
from blockkit.physics.trajectory import radial_3d
from tests.mbdl.small_scans import make_scan

SCANS = [make_scan(seed) for seed in range(3)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.Dropout(0.3), nn.Conv3d(4, 2, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.1 * self.inside(x)


def make_model(network: type[nn.Module] | None = None) -> UnrolledNetwork:
    torch.manual_seed(1)
    return UnrolledNetwork(network() if network else ResidualCNN(4, 2), 1)


def equal(a: UnrolledNetwork, b: UnrolledNetwork) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


class Cut:
    """A watcher that ends a run by an error after a step, as a crash would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, progress: Progress) -> None:
        if progress.step == self.step and not progress.ended:
            raise RuntimeError("cut off")


@pytest.mark.long
def test_a_run_that_is_killed_fifty_times_ends_with_the_bits_of_one_that_is_not(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.mbdl.killed", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    n_complete, n_places = map(int, done.stdout.split())
    assert n_complete > 1
    assert n_places > 5


@pytest.mark.parametrize("network", [None, WithDropout])
def test_a_run_that_is_cut_off_within_a_pass_goes_on_bit_for_bit(
    network: type[nn.Module] | None, tmp_path: Path
) -> None:
    options = {"validation": SCANS[:1], "n_steps": 7, "deterministic": True}
    whole, resumed = make_model(network), make_model(network)
    state = torch.get_rng_state()
    expected = fit(whole, SCANS, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)  # what else a program draws must not matter
    with pytest.raises(RuntimeError, match="cut off"):
        fit(make_model(network), SCANS, checkpoint=tmp_path / "run", watch=Cut(5), **options)
    assert fit(resumed, SCANS, checkpoint=tmp_path / "run", **options) == expected
    assert equal(whole, resumed)


def test_a_pass_that_was_cut_off_before_its_validation_is_validated(tmp_path: Path) -> None:
    expected = fit(make_model(), SCANS, validation=SCANS[:1], n_steps=6)
    with pytest.raises(RuntimeError, match="cut off"):
        fit(make_model(), SCANS, validation=SCANS[:1], n_steps=6, checkpoint=tmp_path / "run", watch=Cut(3))
    assert fit(make_model(), SCANS, validation=SCANS[:1], n_steps=6, checkpoint=tmp_path / "run") == expected


def test_the_checkpoint_is_written_by_time_within_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "run.safetensors", []
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", 0.0)

    def watch(progress: Progress) -> None:
        seen.append(path.exists() and path.stat().st_mtime_ns)

    fit(make_model(), SCANS, n_steps=3, checkpoint=path, watch=watch)
    assert seen[0] is seen[1] is False
    assert len(set(seen[2:])) == 3
    path.unlink()
    monkeypatch.setattr(checkpoint, "SAVE_SECONDS", 100.0)
    seen.clear()
    fit(make_model(), SCANS, n_steps=3, checkpoint=path, watch=watch)
    assert [bool(time) for time in seen] == [False] * 4 + [True]


def test_the_best_weights_come_out_of_a_checkpoint_alone_also_while_the_run_goes_on(tmp_path: Path) -> None:
    path, model = tmp_path / "run.safetensors", make_model()
    with pytest.raises(RuntimeError, match="cut off"):
        fit(model, SCANS, validation=SCANS[:1], n_steps=12, learning_rate=0.3, checkpoint=path, watch=Cut(8))
    assert equal(load_model(path), model)  # fit leaves the best in it
    path.unlink()
    with pytest.raises(RuntimeError, match="cut off"):
        fit(model, SCANS, n_steps=12, checkpoint=path, watch=Cut(2))
    assert equal(load_model(path), model)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_an_event_and_the_second_acts_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interruptible() as event:
        assert not event.is_set()
        signal.raise_signal(number)
        assert event.is_set()
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before
    signal.signal(number, signal.SIG_IGN)
    try:
        with interruptible() as event:
            signal.raise_signal(number)
            assert not event.is_set()
    finally:
        signal.signal(number, before)


def test_sigterm_saves_and_leaves(tmp_path: Path) -> None:
    expected = fit(make_model(), SCANS, n_steps=5)

    def watch(progress: Progress) -> None:
        if progress.step == 2 and not progress.ended:
            signal.raise_signal(signal.SIGTERM)

    first = fit(make_model(), SCANS, n_steps=5, checkpoint=tmp_path / "run", watch=watch)
    assert first.interrupted
    assert len(first.losses) == 2
    assert fit(make_model(), SCANS, n_steps=5, checkpoint=tmp_path / "run") == expected


@contextmanager
def full_disk() -> Iterator[None]:
    """No file can grow beyond a few bytes: what a write finds on a full disk, in the midst of a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_old_checkpoint_and_the_run_goes_on(tmp_path: Path) -> None:
    path, whole, model = tmp_path / "run.safetensors", make_model(), make_model()
    expected = fit(whole, SCANS, n_steps=9)
    with pytest.raises(RuntimeError, match="cut off"):
        fit(make_model(), SCANS, n_steps=9, checkpoint=path, watch=Cut(2))
    before = path.read_bytes()
    with pytest.warns(RuntimeWarning, match=r"run\.safetensors' cannot be written .*that of step 2 stays"), full_disk():
        assert fit(model, SCANS, n_steps=9, checkpoint=path, watch=lambda progress: None) == expected
    assert equal(model, whole)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    assert fit(make_model(), SCANS, n_steps=9, checkpoint=path) == expected


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScanFolder:
    """Three scans in files, which are read anew at every step."""
    place = tmp_path / "the scans é"
    place.mkdir()
    for name, scan in zip(("ann", "bob", "cid"), SCANS, strict=True):
        scan.save(place / f"{name}.h5")
    monkeypatch.setattr(prepared, "CACHE_SHARE", 0.0)
    return ScanFolder(place, cache_gib=0)


class Spoil:
    """A watcher that spoils a file after the fourth step."""

    def __init__(self, path: Path, how: str) -> None:
        self.path, self.how = path, how

    def __call__(self, progress: Progress) -> None:
        if progress.step == 4 and self.path.exists():
            if self.how == "deleted":
                self.path.unlink()
            else:
                self.path.write_bytes(self.path.read_bytes()[:2000])


@pytest.mark.parametrize("how", ["deleted", "cut short"])
def test_a_file_that_is_lost_within_a_pass_is_named_and_the_run_stops_or_goes_on_as_told(
    how: str, folder: ScanFolder, tmp_path: Path
) -> None:
    path, model = tmp_path / "run.safetensors", make_model()
    spoil = Spoil(folder.paths[1], how)
    whole = folder.paths[1].read_bytes()
    with pytest.raises(BadScanError, match=r"scans\[1\] \('.*the scans é/bob\.h5'\) cannot be read: "):
        fit(model, folder, n_steps=9, checkpoint=path, watch=spoil)
    assert equal(load_model(path), model)
    with pytest.warns(RuntimeWarning, match=r"Passed over: scans\[1\] \('.*bob\.h5'\) cannot be read"):
        history = fit(make_model(), folder, n_steps=9, checkpoint=path, skip_bad=True)
    assert len(history.losses) == 9
    assert len(history.skipped) > 1
    assert all("bob.h5" in why for _, why in history.skipped)
    folder.paths[1].write_bytes(whole)
    assert fit(make_model(), folder, n_steps=9, checkpoint=path) == history  # which the checkpoint has


def test_if_no_scan_of_a_pass_is_good_the_run_stops(folder: ScanFolder, tmp_path: Path) -> None:
    for path in folder.paths:
        path.unlink()
    with (
        pytest.warns(RuntimeWarning, match="Passed over"),
        pytest.raises(BadScanError, match="cannot be read"),
    ):
        fit(make_model(), folder, n_steps=9, skip_bad=True)


@pytest.mark.parametrize("good", range(3))
def test_one_good_scan_in_each_pass_is_enough(good: int) -> None:
    scans = [SCANS[0] if i == good else with_nan() for i in range(3)]
    with pytest.warns(RuntimeWarning, match="Passed over"):
        history = fit(make_model(), scans, n_steps=5, skip_bad=True)
    assert len(history.losses) == 5
    assert len(history.skipped) >= 8


def test_a_validation_with_a_lost_file_is_left_out_or_stops_the_run(folder: ScanFolder) -> None:
    aside, spoil = folder[1:2], Spoil(folder.paths[1], "deleted")
    with pytest.warns(RuntimeWarning, match=r"validation after step 6 is left out: validation\[0\] \('.*bob\.h5'\)"):
        history = fit(make_model(), SCANS, validation=aside, n_steps=6, watch=spoil, skip_bad=True)
    assert [step for step, _ in history.validation] == [3]
    with pytest.raises(BadScanError, match=r"bob\.h5"):
        fit(make_model(), SCANS, validation=aside, n_steps=3, skip_bad=True)


def with_nan() -> Scan:
    kspace = SCANS[1].kspace.clone()
    kspace[0, 5] = torch.nan
    bad = replace(SCANS[1])
    object.__setattr__(bad, "kspace", kspace)
    return bad


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (with_nan(), r"scans\[1\] cannot be used: .*NaN"),
        (replace(SCANS[1], reference=SCANS[1].reference * 1e30), r"scans\[1\] gives a loss of (nan|inf) at step \d"),
    ],
    ids=["k-space", "loss"],
)
def test_what_is_not_finite_is_named_and_changes_no_weight(bad: Scan, why: str, tmp_path: Path) -> None:
    scans, model, path = [SCANS[0], bad, SCANS[2]], make_model(), tmp_path / "run"
    with pytest.raises(BadScanError, match=why):
        fit(model, scans, n_steps=6, checkpoint=path)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    if path.exists():  # not if the bad one came first
        assert equal(load_model(path), model)
    with pytest.warns(RuntimeWarning, match=why):
        history = fit(make_model(), scans, n_steps=6, skip_bad=True)
    good = [SCANS[0], SCANS[2]]
    assert len(history.losses) == 6
    assert max(history.losses) < 2 * max(fit(make_model(), good, n_steps=6).losses)


@pytest.mark.slow
def test_two_runs_on_two_threads_are_alike_to_the_bit_if_deterministic_and_closely_if_not(tmp_path: Path) -> None:
    torch.set_num_threads(2)

    def run(deterministic: bool, path: Path | None = None) -> tuple[History, UnrolledNetwork]:
        model, options = make_model(), {"target": "self", "n_steps": 4, "deterministic": deterministic}
        if path is not None:
            with pytest.raises(RuntimeError, match="cut off"):
                fit(make_model(), SCANS, checkpoint=path, watch=Cut(2), **options)
        return fit(model, SCANS, checkpoint=path, **options), model

    (first, model), (second, other) = run(True), run(True, tmp_path / "run")
    assert first == second
    assert equal(model, other)
    assert run(False, tmp_path / "other")[0].losses == pytest.approx(first.losses, rel=1e-4)


@pytest.mark.slow
def test_the_adjoint_has_the_same_bits_each_time_on_two_threads_if_repeatable() -> None:
    torch.set_num_threads(2)
    shape = (24, 24, 24)
    F, kspace = NUFFT(radial_3d(200, 48, shape), shape), torch.randn(9600, dtype=torch.complex64)
    with repeatable(True):
        images = [F.adjoint(kspace) for _ in range(8)]
    assert all(torch.equal(image, images[0]) for image in images)
    torch.testing.assert_close(F.adjoint(kspace), images[0], rtol=1e-4, atol=1e-5)


def test_finufft_takes_one_thread_if_repeatable_and_all_of_them_if_not() -> None:
    torch.set_num_threads(2)
    engine = Finufft(radial_3d(4, 16, (8, 8, 8)), (8, 8, 8), 1e-4)
    threads = []
    for wanted in (False, True, False):
        with repeatable(wanted):
            engine._plan(torch.complex64)
        threads += [key[-1] for key in engine._plans]
    assert threads == [2, 1, 2]


def test_deterministic_leaves_the_settings_of_torch_as_they_were() -> None:
    inside = []
    fit(
        make_model(),
        SCANS,
        n_steps=1,
        deterministic=True,
        watch=lambda progress: inside.append(torch.are_deterministic_algorithms_enabled()),
    )
    assert inside
    assert all(inside)
    assert not torch.are_deterministic_algorithms_enabled()
    with torch.device("meta"):
        elsewhere = UnrolledNetwork(ResidualCNN(4, 2), 1)
    with pytest.raises(ValueError, match="promised on the CPU alone, and the model is on meta"):
        fit(elsewhere, SCANS, deterministic=True)
    model = make_model()
    model.block_shape = "auto"
    with pytest.raises(ValueError, match='"auto", which depends on the memory that is free'):
        fit(model, SCANS, deterministic=True)
