import pytest
import torch
from torch import nn

from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import load_model, save_weights


def make(**options):
    return UnrolledNetwork(ResidualCNN(4, 3, downsample=2), 3, **options)


class Custom(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv3d(2, 2, 3, padding=1, groups=1, bias=width > 3)

    def forward(self, x):
        return x + self.conv(x)


@pytest.mark.parametrize("options", [{}, {"shared_weights": False}, {"data_term": "cg"}])
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


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "w.safetensors"
    save_weights(make(), path)
    before = path.read_bytes()
    monkeypatch.setattr("blockkit.mbdl.weights.save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_weights(make(), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
