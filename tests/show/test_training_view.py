import json
import re
from typing import Any

import numpy as np
import pytest
import torch

from blockkit.data.simulate import simulate_scan
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.progress import History, Progress
from blockkit.mbdl.training import fit
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.show import TrainingView, training_view
from blockkit.show.fingerprint import MIME, differences, fingerprint


@pytest.fixture(scope="module")
def scans() -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    volumes = [torch.randn(18, 15, 18, dtype=torch.complex64, generator=generator) for _ in range(3)]
    return [simulate_scan(volume, (12, 10, 12), n_coils=2, n_spokes=40, seed=i) for i, volume in enumerate(volumes)]


def model() -> UnrolledNetwork:
    torch.manual_seed(0)
    return UnrolledNetwork(ResidualCNN(4, 2), 2)


def test_in_a_terminal_it_prints_lines(scans: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    fit(model(), scans[:2], validation=scans[2:], n_steps=4, watch=TrainingView(every=0))
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("step 0 of 4")
    assert re.search(r"step 2 of 4, loss \d\.\d{4}, PSNR \(dB\) [-\d.]+ at step 2, .* \d+ s left", printed.out)
    assert lines[-1].startswith("step 4 of 4")
    assert lines[-1].endswith("in all")
    assert printed.err == ""  # no bar beside it


def test_between_two_validations_it_keeps_quiet_for_a_while(capsys: pytest.CaptureFixture[str]) -> None:
    view = TrainingView(every=1000)
    for step in range(50):
        view(Progress(step, 50, step, 0.1 * step, History([1.0] * step)))
    assert len(capsys.readouterr().out.splitlines()) == 1


class Handle:
    """Stands for a place in a notebook."""

    def __init__(self) -> None:
        self.shown: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def display(self, view: TrainingView, **_: object) -> "Handle":
        self.update(view)
        return self

    def update(self, view: TrainingView) -> None:
        self.shown.append(view._repr_mimebundle_())


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> Handle:
    handle = Handle()
    monkeypatch.setattr(training_view, "_in_notebook", lambda: True)
    monkeypatch.setattr(training_view, "display", handle.display)
    return handle


def test_in_a_notebook_one_picture_is_drawn_anew(
    scans: list[Any], notebook: Handle, capsys: pytest.CaptureFixture[str]
) -> None:
    view = TrainingView(every=0)
    history = fit(model(), scans[:2], validation=scans[2:], n_steps=4, watch=view)
    assert len(notebook.shown) == 1 + 4 + 2 + 1  # at the start, after each step and each validation, at the end
    last, metadata = notebook.shown[-1]
    assert {"image/png", "text/plain", MIME} == set(last)
    assert metadata["image/png"]["alt"].startswith("step 4 of 4, loss ")
    assert json.dumps(last[MIME])
    drawn = view.figure()
    assert list(drawn.axes[0].lines[0].get_ydata()) == history.losses
    assert list(drawn.axes[1].lines[0].get_ydata()) == [score for _, score in history.validation]
    titles = [ax.get_title() for ax in drawn.axes[2:]]
    assert titles == ["first, step 2", "now, step 4", "reference"]
    assert capsys.readouterr().out == ""


def test_the_slices_are_those_of_the_validation_image(scans: list[Any], notebook: Handle) -> None:
    view, images = TrainingView(axis="z", every=0), []

    def watch(progress: Progress) -> None:
        if progress.image is not None:
            images.append(progress.image.abs()[6].numpy().copy())
        view(progress)

    fit(model(), scans[:2], validation=scans[2:], n_steps=4, watch=watch)
    shown = [ax.images[0].get_array() for ax in view.figure().axes[2:]]
    np.testing.assert_allclose(shown[0], images[0])
    np.testing.assert_allclose(shown[1], images[1])
    np.testing.assert_allclose(shown[2], scans[2].reference.abs()[6])


def test_without_references_the_score_is_the_error_on_held_out_samples(scans: list[Any], notebook: Handle) -> None:
    view = TrainingView(every=0)
    fit(model(), scans[:1], target="self", validation=scans[2:], n_steps=2, watch=view)
    assert "relative L2 error, held out 0." in view.describe()
    assert [ax.get_title() for ax in view.figure().axes[2:]] == ["first, step 1", "now, step 2"]


def test_an_error_in_drawing_does_not_end_the_training(
    scans: list[Any], notebook: Handle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(TrainingView, "_show", broken)
    history = fit(model(), scans[:1], n_steps=2, watch=TrainingView(every=0))
    assert len(history.losses) == 2
    assert "its view failed: OSError('no space')" in capsys.readouterr().out


def test_two_runs_of_one_training_have_one_fingerprint(scans: list[Any], notebook: Handle) -> None:
    views = TrainingView(), TrainingView()
    for view in views:
        fit(model(), scans[:1], validation=scans[2:], n_steps=2, watch=view)
    assert differences(*(fingerprint(view.figure()) for view in views)) == []


def test_a_view_that_has_seen_nothing_says_so() -> None:
    assert repr(TrainingView()) == "TrainingView(no training yet)"
    with pytest.raises(ValueError, match="has seen no training yet"):
        TrainingView().figure()
    with pytest.raises(ValueError, match="axis is 'w'"):
        TrainingView(axis="w")


@pytest.mark.parametrize(("seconds", "said"), [(4.4, "4 s"), (75, "1 min 15 s"), (3 * 3600 + 61, "3 h 01 min")])
def test_times_are_said_in_the_units_of_people(seconds: float, said: str) -> None:
    view = TrainingView()
    view._progress = Progress(10, 20, 10, seconds, History())
    assert view.describe().endswith(f"{said} left")
