"""A real step in a process of its own."""

import pytest
from torch import nn

from blockkit.mbdl.closed_form import step_bytes
from blockkit.mbdl.footprint import Case, predict_run
from blockkit.mbdl.network_bytes import residual_cnn_bytes
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.own_process import MOST_BYTES, run_in_own_process, scaled_down
from blockkit.mbdl.unrolled import UnrolledNetwork

CASE = Case((48, 48, 48), 2, 2000)


@pytest.mark.slow
def test_a_process_counts_what_was_predicted_and_takes_about_that():
    model = UnrolledNetwork(ResidualCNN(8, 3), 2, block_shape=(24, 24, 24))
    predicted = predict_run(model, CASE).bytes
    taken = run_in_own_process(model, CASE, limit=predicted + 2**29)
    assert taken.n_bytes == pytest.approx(predicted, rel=1e-4)
    assert taken.resident_bytes is None or abs(taken.resident_bytes - predicted) < 2**27
    assert taken.seconds > 0


@pytest.mark.slow
def test_a_process_that_needs_more_than_its_limit_ends_with_a_message():
    with pytest.raises(MemoryError, match="hit its limit of 40 MiB"):
        run_in_own_process(UnrolledNetwork(ResidualCNN(32, 5), 2), CASE, limit=40 * 2**20)


def test_a_network_that_another_process_cannot_have_is_named():
    class Own(nn.Module):
        def forward(self, x):
            return x[:, :2]

    with pytest.raises(ValueError, match="Define it in a module"):
        run_in_own_process(UnrolledNetwork(Own(), 2), CASE)


def test_a_step_is_scaled_down_until_a_machine_can_run_it_at_once():
    network, case = residual_cnn_bytes(32, 5), Case((300, 200, 300), 8, 9_000_000)
    small, block = scaled_down(network, case, 6, (100, 100, 100))
    z, y, x = small.image_shape
    assert z == x
    assert 1.3 < z / y < 1.7
    assert 2 <= z / block[0] <= 4
    assert small.n_samples / (z * y * x) == pytest.approx(9_000_000 / (300 * 200 * 300), rel=0.01)
    assert step_bytes(network, small, 6).bytes <= MOST_BYTES
    less, _ = scaled_down(network, case, 6, (100, 100, 100), most_bytes=100 * 2**20)
    assert step_bytes(network, less, 6).bytes <= 100 * 2**20


def test_what_is_small_enough_stays_as_it_is():
    case, block = Case((20, 16, 20), 2, 3000), (10, 16, 20)
    assert scaled_down(residual_cnn_bytes(4, 2), case, 1, block) == (case, block)
