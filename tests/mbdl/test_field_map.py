"""A scan with a field map is off resonance wherever it is reconstructed or trained on, and in its file."""

from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch

from blockkit.cli import main
from blockkit.data.info import describe_file
from blockkit.data.phantom import pulmonary_phantom
from blockkit.data.scan import load_scan
from blockkit.data.simulate import simulate_scan
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.prepared import PreparedScans
from blockkit.mbdl.splitting import SplitScans
from blockkit.mbdl.training import fit
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.metrics import nrmse
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import cones

SHAPE = (1, 24, 20)


@pytest.fixture(scope="module")
def scan():
    """A slice whose k-space was read out in a field of up to 200 Hz, by the operator itself."""
    k = cones(16, 96, SHAPE, n_turns=2)
    clean = simulate_scan(pulmonary_phantom((1, 36, 30), seed=3), SHAPE, n_coils=2, noise=0, trajectory=k)
    field_map = 200 * torch.linspace(-1, 1, 20).expand(SHAPE).contiguous()
    blurred = replace(clean, field_map=field_map, times=(1e-3 + 1e-4 * torch.arange(96)).repeat(16))
    return replace(blurred, kspace=blurred.encoding()(clean.reference))


def make_model():
    torch.manual_seed(0)
    return UnrolledNetwork(ResidualCNN(4, 2), 2)


def test_its_operator_is_off_resonance(scan):
    A = Encoding(scan.trajectory, scan.maps).off_resonant(scan.field_map, scan.times)
    assert torch.equal(scan.encoding()(scan.reference), A(scan.reference))
    assert "off resonance" not in repr(replace(scan, field_map=None, times=None).encoding())


def test_data_terms_and_held_out_samples_know_the_field(scan):
    for prepared in (PreparedScans("scans", [scan], make_model()), SplitScans("scans", [scan], make_model())):
        data, target = prepared[0]
        x = scan.reference / data.scale
        assert float((data.normal(x) - data.b).norm() / data.b.norm()) < 1e-4
    assert float(target.relative_error(x)) < 1e-4
    ignored, _ = PreparedScans("scans", [replace(scan, field_map=None, times=None)], make_model())[0]
    x = scan.reference / ignored.scale
    assert float((ignored.normal(x) - ignored.b).norm() / ignored.b.norm()) > 0.1


@pytest.mark.parametrize("target", ["reference", "self"])
def test_training_goes_on_it(scan, target):
    history = fit(make_model(), [scan], n_steps=2, target=target)
    assert len(history.losses) == 2
    assert history.losses[0] < 0.4


def test_a_file_keeps_the_field_and_the_command_uses_it(scan, tmp_path):
    scan.save(tmp_path / "scan.h5")
    back = load_scan(tmp_path / "scan.h5")
    assert torch.equal(back.field_map, scan.field_map)
    assert torch.equal(back.times, scan.times)
    described = describe_file(tmp_path / "scan.h5")
    assert "off-resonance in Hz" in described
    assert "missing" not in described
    command = ["recon", str(tmp_path / "scan.h5"), "--method", "cs", "--n-iterations", "10", "--device", "cpu"]
    assert main([*command, "-o", str(tmp_path / "image.nii")]) == 0
    image = np.asanyarray(nibabel.load(tmp_path / "image.nii").dataobj).transpose(2, 1, 0)
    assert nrmse(image, scan.reference) < 0.1


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"times": None}, ValueError, r"field_map is given and times is None, expected both .* Pass times too"),
        ({"field_map": None}, ValueError, "times is given and field_map is None"),
        ({"field_map": torch.zeros(24, 20)}, ValueError, r"field_map has shape \(24, 20\), expected \(1, 24, 20\)"),
        ({"times": torch.zeros(96)}, ValueError, r"expected \(sample,\) = \(1536,\)\. .* write times\.repeat"),
        ({"times": torch.zeros(1536).double()}, TypeError, r"times has dtype torch\.float64.* Write times\.float\(\)"),
        ({"field_map": torch.full(SHAPE, torch.nan)}, ValueError, "field_map has 480 values that are NaN"),
    ],
)
def test_a_field_without_times_or_of_another_shape_is_refused(scan, changed, error, message):
    with pytest.raises(error, match=message):
        replace(scan, **changed)
