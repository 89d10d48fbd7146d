"""Estimated gradient delays, against the delays that a scan was simulated with."""

import math

import pytest
import torch

from blockkit.data.phantom import pulmonary_phantom
from blockkit.data.simulate import simulate_scan
from blockkit.metrics import psnr
from blockkit.physics.delays import estimate_delays
from blockkit.physics.readouts import delay_gradients
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import cones, radial_3d, stack_of_stars

KINDS = {
    "radial 3D": (radial_3d(500, 64, (32, 28, 32)), (32, 28, 32), (0.6, -0.35, 1.1)),
    "radial 2D": (radial_3d(80, 96, (1, 48, 40)), (1, 48, 40), (0.0, 0.8, -0.4)),
    "stack of stars": (stack_of_stars(800, 64, (12, 32, 28)), (12, 32, 28), (0.0, -0.6, 0.5)),
    "cones": (cones(500, 64, (28, 32, 32)), (28, 32, 32), (-0.5, 0.25, 0.7)),
}


def late_scan(kind, delay=None, noise=0.02):
    """Return k-space sampled late, and where it was thought and was in truth sampled."""
    nominal, shape, known = KINDS[kind]
    nominal, n_readout = 0.9 * nominal, 96 if kind == "radial 2D" else 64
    late = delay_gradients(nominal, n_readout, known if delay is None else delay)
    volume = pulmonary_phantom([n if n == 1 else -(-3 * n // 2) for n in shape], seed=2)
    scan = simulate_scan(volume, shape, n_coils=4, noise=noise, trajectory=late)
    return scan, nominal, n_readout


def center_out(n_spokes=500, n_readout=24):
    """Spokes from the center outwards on a spiral from pole to pole, as hyperpolarized gas is often scanned."""
    height = 1 - (2 * torch.arange(n_spokes) + 1) / n_spokes
    angle = (math.pi * n_spokes) ** 0.5 * torch.asin(height)
    across = (1 - height**2).sqrt()
    directions = torch.stack([height, across * angle.sin(), across * angle.cos()], dim=1)
    return (directions[:, None] * torch.arange(n_readout)[:, None] / 2).reshape(-1, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_known_delay_is_found_to_a_hundredth_of_a_sample(kind):
    scan, nominal, n_readout = late_scan(kind)
    found = estimate_delays(scan.kspace, nominal, n_readout)
    assert max(abs(a - b) for a, b in zip(found, KINDS[kind][2], strict=True)) < 0.01


def test_gradients_in_time_are_found_to_be_so():
    scan, nominal, n_readout = late_scan("radial 2D", (0, 0, 0))
    assert max(map(abs, estimate_delays(scan.kspace, nominal, n_readout))) < 0.01


@pytest.mark.parametrize("unit", [1e-12, 1e12, 2j])
def test_the_unit_does_not_matter(unit):
    scan, nominal, n_readout = late_scan("radial 2D")
    found, again = (estimate_delays(u * scan.kspace, nominal, n_readout) for u in (1, unit))
    assert max(abs(a - b) for a, b in zip(found, again, strict=True)) < 1e-4


def test_the_corrected_trajectory_gives_the_image_of_the_true_one():
    scan, nominal, n_readout = late_scan("radial 2D")
    corrected = delay_gradients(nominal, n_readout, estimate_delays(scan.kspace, nominal, n_readout))

    def gridding(k):
        A = Encoding(k, scan.maps)
        return psnr(A.adjoint(A.dcf * scan.kspace), scan.reference)

    wrong, right, true = gridding(nominal), gridding(corrected), gridding(scan.trajectory)
    assert wrong < true - 3
    assert abs(right - true) < 0.1


def test_delays_too_large_to_be_found_are_an_error_and_no_wrong_answer():
    scan, nominal, n_readout = late_scan("radial 2D", (0, -5, -4))
    with pytest.raises(ValueError, match=r"still changed by .* in step 12\. Expected about a cycle/FOV at most"):
        estimate_delays(scan.kspace, nominal, n_readout)


def test_a_signal_that_decays_while_the_direction_changes_is_no_delay():
    nominal, shape = center_out(), (24, 24, 24)
    scan = simulate_scan(pulmonary_phantom((36, 36, 36), seed=2), shape, n_coils=1, noise=0.005, trajectory=nominal)
    n_spokes = len(nominal) // 24
    decay = torch.exp(-2 * torch.arange(n_spokes) / n_spokes)[:, None]
    decayed = scan.kspace.reshape(1, n_spokes, 24) * decay
    with pytest.raises(ValueError, match="divide each by its strength at the center"):
        estimate_delays(decayed.flatten(1), nominal, 24)
    found = estimate_delays((decayed / decayed[..., :1]).flatten(1), nominal, 24)
    assert max(map(abs, found)) < 0.1


def test_a_wrong_argument_is_named():
    scan, nominal, n_readout = late_scan("radial 2D")
    with pytest.raises(ValueError, match="n_readout is 95"):
        estimate_delays(scan.kspace, nominal, 95)
    with pytest.raises(ValueError, match="kspace is zero, or not sampled"):
        estimate_delays(0 * scan.kspace, nominal, n_readout)
    with pytest.raises(ValueError, match="calibration_width is 2"):
        estimate_delays(scan.kspace, nominal, n_readout, calibration_width=2)
    with pytest.raises(TypeError, match="complex"):
        estimate_delays(scan.kspace.real, nominal, n_readout)
