"""The stages in which the shipped weights are trained: how a model grows between them, and the scans it then sees."""

import itertools
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.run import Run
from blockkit.mbdl.unrolled import UnrolledNetwork
from tests.mbdl.small_scans import make_scan

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture
def train_shipped(monkeypatch):
    monkeypatch.syspath_prepend(str(TOOLS))  # they import each other by name
    from tools import train_shipped

    return train_shipped


def trained_model(**options):
    torch.manual_seed(3)
    model = UnrolledNetwork(ResidualCNN(6, 4, downsample=2, **options), 2, shared_weights=False)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("sees_gradient", [False, True])
def test_a_grown_model_gives_the_same_images_and_its_new_channels_learn(train_shipped, sees_gradient):
    model = trained_model(sees_gradient=sees_gradient)
    larger = train_shipped.grown(model, train_shipped.Stage(range(0), 1, sees_gradient=True, n_channels=9))
    assert larger.regularizers[0].n_channels == 9
    assert torch.equal(larger.step_size, model.step_size)
    x = torch.randn(1, 4, 8, 6, 8)
    for old, new in zip(model.regularizers, larger.regularizers, strict=True):
        before, after = old(x if sees_gradient else x[:, :2]), new(x)
        assert torch.linalg.vector_norm(after - before) < 1e-6 * torch.linalg.vector_norm(before)
        after.square().sum().backward()
        last = [layer for layer in new.layers if isinstance(layer, torch.nn.Conv3d)][-1]
        assert not last.weight[:, 6:].any()
        assert last.weight.grad[:, 6:].any()


def test_a_model_that_is_large_enough_stays_as_it_is(train_shipped):
    model = trained_model()
    assert train_shipped.grown(model, train_shipped.Stage(range(0), 1, n_channels=6)) is model


def timer_of_steps(every, monkeypatch):
    """Return what stands in for threading.Timer: the time is up when ``every`` steps were taken."""
    time_is_up, n_steps, take_step = [], itertools.count(1), Run.take_step

    def counted_step(run, scans):
        take_step(run, scans)
        if time_is_up and not next(n_steps) % every:
            time_is_up[0]()

    def timer(seconds, function):
        def start():
            assert seconds == 6000
            time_is_up.append(function)

        return SimpleNamespace(start=start, cancel=time_is_up.clear)

    monkeypatch.setattr(Run, "take_step", counted_step)
    return timer


@pytest.mark.parametrize("every", [3, 4])
def test_stages_in_short_sittings_end_in_the_same_weights(train_shipped, monkeypatch, tmp_path, capsys, every):
    stages = (train_shipped.Stage(range(0), 5, n_channels=6), train_shipped.Stage(range(0), 6, n_channels=9))
    monkeypatch.setattr(train_shipped, "STAGES", stages)
    monkeypatch.setattr(train_shipped, "make_model", trained_model)
    monkeypatch.setattr(train_shipped, "scans_of", lambda *_: [make_scan(seed) for seed in range(3)])
    monkeypatch.setattr(train_shipped, "validation_of", lambda *_: [make_scan(3)])
    monkeypatch.setattr(train_shipped, "Timer", timer_of_steps(every, monkeypatch))
    made = []
    for options in [], ["--minutes", "100"]:
        monkeypatch.setattr(train_shipped, "ROOT", tmp_path / str(len(options)))
        weights = train_shipped.ROOT / "data_samples" / train_shipped.SHIPPED
        weights.parent.mkdir(parents=True)
        n_sittings = 0
        while not weights.exists():
            train_shipped.main(options)
            n_sittings += 1
        made.append([file.read_bytes() for file in sorted(weights.parent.iterdir())])
    assert made[0] == made[1]
    assert n_sittings == 1 + 11 // every
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"Stopped in stage 1 after {every} of 5 steps. The same command goes on."
    assert said[-1].startswith("Stopped in stage 2 after ")


def test_the_time_of_a_sitting_ends_as_ctrl_c_does(train_shipped):
    def steps(seconds):
        for _ in range(round(100 * seconds)):
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt), train_shipped.at_most(0.001):
        steps(20)
    with train_shipped.at_most(0.001):
        pass
    steps(0.2)  # nothing ends what comes after the sitting


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "seed"), [("clean", 7003), ("textured", 15003), ("textured", 15004)])
def test_a_scan_is_drawn_from_its_seed_alone(train_shipped, kind, seed):
    make = getattr(train_shipped, f"make_{kind}_scan")
    first, again, other = (make(seed) for seed in (seed, seed, seed + 1))
    assert torch.equal(first.kspace, again.kspace)
    assert first.kspace.shape != other.kspace.shape or not torch.equal(first.kspace, other.kspace)
    assert 1 <= len(first.maps) <= 8
    assert first.reference is not None
    assert first.reference.shape == first.maps.shape[1:]
