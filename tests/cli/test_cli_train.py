"""``train`` writes weights trained on the good scans of a folder, or says what is wrong and writes nothing."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blockkit.cli import main, train
from blockkit.data.folder import ScanFolder
from blockkit.data.scan import Scan
from blockkit.mbdl import prepared, room
from blockkit.mbdl.training import fit
from blockkit.mbdl.weights import load_model
from tests.cli.small import make_folder, make_scan, make_weights, said, written


@pytest.fixture(scope="module")
def scan() -> Scan:
    return make_scan()


@pytest.fixture
def folder(scan: Scan, tmp_path: Path) -> Path:
    return make_folder(tmp_path / "scans", scan)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return make_weights(tmp_path / "start.safetensors")


@pytest.mark.parametrize("target", ["reference", pytest.param("self", marks=pytest.mark.slow)])
def test_it_writes_what_fit_trains(
    target: str, folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = folder.parent / "new.safetensors"
    options = ["--weights", str(weights), "--target", target, "--n-steps", "4", "--learning-rate", "0.001"]
    options += ["--block-shape", "10", "6", "8", "--device", "cpu"]
    assert main(["train", str(folder), "-o", str(output), *options]) == 0
    shown = capsys.readouterr().out
    assert "2 scans of 2 subjects to train on; 1 scan of 1 subject to validate" in shown
    assert "4 steps, loss" in shown
    assert ("held-out error" if target == "self" else " dB") in shown

    training, validation = ScanFolder(folder).split(0.2)
    expected = load_model(weights)
    expected.block_shape = (10, 6, 8)
    fit(expected, training, target=target, validation=validation, n_steps=4, learning_rate=0.001, augment=True)
    for name, value in load_model(output).state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name])
    assert written(folder.parent) == {"scans", "start.safetensors", "new.safetensors"}


def test_a_new_model_has_the_sizes_that_were_asked_for(folder: Path) -> None:
    output = folder.parent / "new.safetensors"
    assert (
        main(["train", str(folder), "-o", str(output), "--new", "2", "6", "--n-steps", "1", "--validation", "0"]) == 0
    )
    model = load_model(output)
    assert (model.n_unrolls, model.regularizers[0].n_channels, model.shared_weights) == (2, 6, False)


@pytest.mark.slow
def test_a_run_that_is_stopped_writes_whole_weights_and_goes_on_from_its_checkpoint(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, output = folder.parent / "whole.safetensors", folder.parent / "new.safetensors"
    command = ["train", str(folder), "--weights", str(weights), "--n-steps", "4", "--device", "cpu"]
    assert main([*command, "-o", str(whole)]) == 0

    class StopButton(ScanFolder):
        def __getitem__(self, i):  # type: ignore[no-untyped-def]
            if i == 1:
                signal.raise_signal(signal.SIGINT)
            return super().__getitem__(i)

    def stopped(model, scans, **options):  # type: ignore[no-untyped-def]
        scans.__class__ = StopButton
        return fit(model, scans, **options)

    resumable = [*command, "-o", str(output), "--checkpoint", str(folder.parent / "run.safetensors")]
    with monkeypatch.context() as patched:
        patched.setattr(train, "fit", stopped)
        assert main(resumable) == 130
    assert "stopped after" in capsys.readouterr().out
    load_model(output)
    assert main(resumable) == 0
    for name, value in load_model(whole).state_dict().items():
        torch.testing.assert_close(load_model(output).state_dict()[name], value)


def test_bad_files_are_refused_by_name_or_left_out(
    folder: Path, scan: Scan, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replace(scan, reference=None).save(folder / "dot_1.h5")
    (folder / "eve_1.h5").write_text("no scan")
    output = folder.parent / "new.safetensors"
    command = ["train", str(folder), "-o", str(output), "--weights", str(weights), "--n-steps", "1"]
    assert main(command) == 2
    message = said(capsys)
    assert "2 of 5 files" in message
    assert "dot_1.h5: reference is missing" in message
    assert "eve_1.h5: is not an HDF5 file" in message
    assert "--skip-bad" in message
    assert not output.exists()
    assert main([*command, "--skip-bad"]) == 0
    shown = capsys.readouterr()
    assert "Left out 2 bad files" in shown.err
    assert "2 scans of 2 subjects to train on; 1 scan of 1 subject " in shown.out
    assert main([*command, "--skip-bad", "--target", "self", "--pattern", "eve*"]) == 2
    assert "No file is good" in said(capsys)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--weights", "absent.safetensors"], "absent.safetensors"),
        (["--new", "2", "6", "--weights", "start.safetensors"], "leave one of them out"),
        (["--new", "0", "6"], "n_unrolls"),
        (["--validation", "1.5"], "validation is 1.5"),
        (["--n-steps", "0"], "n_steps"),
        (["--learning-rate", "0"], "--learning-rate is 0"),
        (["--subject", "("], "regular expression"),
        (["--pattern", "*.mat"], "No file in"),
        (["--block-shape", "0", "8", "8"], "block_shape"),
        (["-o", "new.txt"], "ends in .safetensors"),
        (["-o", "nowhere/new.safetensors"], "no folder"),
        (["-o", "start.safetensors", "--weights", "start.safetensors"], "is the input"),
        (["--checkpoint", "scans"], "checkpoint"),
    ],
)
def test_what_does_not_fit_is_one_message_and_nothing_is_written(
    options: list[str],
    expected: str,
    folder: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder.parent)
    before = weights.read_bytes()
    assert main(["train", "scans", "-o", "new.safetensors", "--n-steps", "1", *options]) == 2
    assert expected in said(capsys)
    assert written(folder.parent) == {"scans", "start.safetensors"}
    assert weights.read_bytes() == before


@pytest.mark.slow
def test_what_will_not_fit_into_memory_says_what_to_type_here(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(room, "free_bytes", lambda _: 10**4)
    output = folder.parent / "new.safetensors"
    command = ["train", str(folder), "-o", str(output), "--weights", str(weights), "--n-steps", "1"]
    assert main(command) == 2
    assert "To start all the same: --ignore-memory.\n" in capsys.readouterr().err
    assert not output.exists()


def test_a_run_that_fails_writes_what_it_learned_and_says_why(
    folder: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class FailsLater(ScanFolder):
        n_reads = 0

        def __getitem__(self, i):  # type: ignore[no-untyped-def]
            type(self).n_reads += isinstance(i, int)
            if self.n_reads == 3:
                raise OSError("the disk is gone")
            return super().__getitem__(i)

    monkeypatch.setattr(train, "ScanFolder", FailsLater)
    monkeypatch.setattr(prepared, "CACHE_SHARE", 0.0)
    output = folder.parent / "new.safetensors"
    command = ["train", str(folder), "-o", str(output), "--weights", str(weights), "--n-steps", "4"]
    options = ["--validation", "0", "--block-shape", "auto", "--deterministic"]
    assert main([*command, *options]) == 2
    assert "Give the block" in said(capsys)
    assert not output.exists()
    FailsLater.n_reads = 0
    assert main([*command, *options[:-1]]) == 2
    message = capsys.readouterr().err
    assert f"Wrote {output}: the best weights of 2 steps." in message
    assert "cannot be read: the disk is gone" in message
    assert load_model(output).n_unrolls == 2
    FailsLater.n_reads = 0
    with pytest.warns(RuntimeWarning, match="Passed over"):
        assert main([*command, *options[:-1], "--skip-bad"]) == 0
