"""The stages in which the shipped weights are trained: how a model grows between them, and the scans it then sees."""

from pathlib import Path

import pytest
import torch

from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.unrolled import UnrolledNetwork

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
