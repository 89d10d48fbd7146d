import copy
import json
import re

import numpy as np
import pytest
import torch
from torch import nn

from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import load_model, read_tensors, save_weights, write_tensors


def make(*, sees_gradient=False, **options):
    return UnrolledNetwork(ResidualCNN(4, 3, downsample=2, sees_gradient=sees_gradient), 3, **options)


class Custom(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv3d(2, 2, 3, padding=1, groups=1, bias=width > 3)

    def forward(self, x):
        return x + self.conv(x)


@pytest.mark.parametrize("options", [{}, {"shared_weights": False}, {"data_term": "cg"}, {"sees_gradient": True}])
def test_a_model_comes_back_from_its_file_with_the_same_weights_and_description(tmp_path, options):
    model = make(**options)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    path = tmp_path / "a model é.safetensors"
    save_weights(model, path)
    loaded = load_model(path)
    assert loaded.n_unrolls == 3
    assert loaded.data_term == model.data_term
    assert loaded.shared_weights == model.shared_weights
    assert not loaded.training
    for (name, a), (other, b) in zip(model.state_dict().items(), loaded.state_dict().items(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("compact", [False, True])
def test_the_same_weights_give_the_same_bytes(tmp_path, compact):
    model = make()
    path = tmp_path / "w.safetensors"
    files = set()
    for _ in range(16):  # safetensors draws the order of the metadata
        save_weights(model, path, compact=compact)
        files.add(path.read_bytes())
    assert len(files) == 1
    assert int.from_bytes(files.pop()[:8], "little") % 8 == 0  # the values begin where they can be mapped


class WithMatrices(ResidualCNN):
    def __init__(self):
        super().__init__(24, 4)
        self.matrix, self.point, self.empty = nn.Linear(60, 50), nn.Conv3d(60, 50, 1), nn.Parameter(torch.zeros(3, 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_compact_file_is_small_and_gives_each_weight_to_half_a_step(tmp_path, dtype):
    model = UnrolledNetwork(WithMatrices(), 3, shared_weights=False).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
        model.regularizers[1].layers[2].weight[3, 5] = 0  # a pair without weights
    save_weights(model, tmp_path / "whole")
    save_weights(model, tmp_path / "compact", compact=True)
    bits = torch.finfo(dtype).bits
    assert (tmp_path / "compact").stat().st_size < (tmp_path / "whole").stat().st_size * (8 + 32 / 27) / bits + 9000
    kept = model.state_dict()
    loaded = load_model(tmp_path / "compact", regularizer=WithMatrices()).state_dict()
    assert kept.keys() == loaded.keys()
    for name, value in kept.items():
        assert loaded[name].dtype == torch.float32
        if value.ndim > 1:
            shared = tuple(range(2 if value[0, :1].numel() > 1 else 1, value.ndim))  # the axes of a step
            largest = value.float().abs().amax(dim=shared, keepdim=True) if value.numel() else value
            assert ((loaded[name] - value.float()).abs() <= largest / 127 / 2 * 1.0001).all()
        else:
            assert torch.equal(loaded[name], value.float())


def test_a_compact_file_of_a_bad_model_or_a_damaged_one_is_refused(tmp_path):
    model = make()
    with torch.no_grad():
        model.regularizers[0].layers[1].weight[0, 0, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"regularizers\.0\.layers\.1\.weight has 1 values"):
        save_weights(model, tmp_path / "w", compact=True)
    assert not (tmp_path / "w").exists()
    save_weights(make(), tmp_path / "w", compact=True)
    tensors, metadata = read_tensors(tmp_path / "w")
    for step, said in (
        (torch.ones(3), "is damaged"),
        (torch.full((4, 16), torch.inf), "NaN or infinite"),
        (None, "does not fit"),
    ):
        changed = {name: value for name, value in tensors.items() if name != "regularizers.0.layers.1.weight.step"}
        changed |= {} if step is None else {"regularizers.0.layers.1.weight.step": step}
        write_tensors(tmp_path / "bad", changed, metadata)
        with pytest.raises(ValueError, match=said):
            load_model(tmp_path / "bad")


def test_a_regularizer_of_ones_own_is_asked_for_by_name_and_then_filled(tmp_path):
    model = UnrolledNetwork(Custom(), 2)
    save_weights(model, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"class Custom\. Pass an instance of it"):
        load_model(tmp_path / "w.safetensors")
    loaded = load_model(tmp_path / "w.safetensors", regularizer=Custom())
    assert torch.equal(loaded.regularizers[0].conv.weight, model.regularizers[0].conv.weight)
    with pytest.raises(ValueError, match="does not fit the model"):
        load_model(tmp_path / "w.safetensors", regularizer=Custom(width=2))


def test_a_truncated_foreign_or_missing_file_is_refused_in_words(tmp_path):
    save_weights(make(), tmp_path / "w.safetensors")
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    torch.save({"weight": torch.ones(2)}, tmp_path / "pickle.pt")
    for name in ("cut", "pickle.pt"):
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            load_model(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="No weights file"):
        load_model(tmp_path / "none")


GOOD = {
    "n_unrolls": 2,
    "shared_weights": True,
    "data_term": "density",
    "regularizer": {"name": "ResidualCNN", "n_channels": 4, "n_layers": 2, "downsample": 1},
}


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


def with_network(**change):
    return {**GOOD, "regularizer": {**GOOD["regularizer"], **change}}


@pytest.mark.parametrize(
    "description",
    [
        "{", "{}", "[]", "null", "3", *map(without, GOOD), with_network(n_channels="many"),
        {**GOOD, "regularizer": {"name": "ResidualCNN"}}, {**GOOD, "n_unrolls": 0}, {**GOOD, "data_term": "other"},
        {**GOOD, "n_unrolls": 10**9, "shared_weights": False}, with_network(n_channels=0), with_network(n_layers=1),
        with_network(n_channels=400), with_network(n_channels=10**7), with_network(n_layers=10**9),
        with_network(downsample=10**30),
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_description_is_one_error_that_names_the_file(tmp_path, description):
    model = UnrolledNetwork(ResidualCNN(4, 2), 2)
    text = description if isinstance(description, str) else json.dumps(description)
    write_tensors(tmp_path / "w", model.state_dict(), {"format": "blockkit-model-1", "model": text})
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'w'} ")):
        load_model(tmp_path / "w")


def test_weights_that_are_not_finite_are_refused_by_name(tmp_path):
    model = UnrolledNetwork(ResidualCNN(4, 2), 2)
    with torch.no_grad():
        model.step_size[1] = torch.nan
    save_weights(model, tmp_path / "w")
    with pytest.raises(ValueError, match=r"w: step_size has 1 values that are NaN"):
        load_model(tmp_path / "w")


def test_weights_that_two_layers_share_are_saved_for_both(tmp_path):
    network = nn.Sequential(nn.Conv3d(2, 2, 3, padding=1), nn.SiLU(), nn.Conv3d(2, 2, 3, padding=1))
    network[2].weight = network[0].weight
    save_weights(UnrolledNetwork(network, 2), tmp_path / "w")
    loaded = load_model(tmp_path / "w", regularizer=copy.deepcopy(network))
    assert torch.equal(loaded.regularizers[0][2].weight, network[0].weight)


def test_sizes_that_are_numpy_integers_are_saved(tmp_path):
    save_weights(UnrolledNetwork(ResidualCNN(np.int64(4), np.int64(2)), np.int64(2)), tmp_path / "w")
    assert load_model(tmp_path / "w").n_unrolls == 2


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(make(), path)
    before = path.read_bytes()
    monkeypatch.setattr("blockkit.mbdl.weights.save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_weights(make(), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
