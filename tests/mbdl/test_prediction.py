import pytest
import torch

from blockkit.blockwise.memory import measure_peak, predict_peak
from blockkit.mbdl.loss import relative_error
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.physics.coils import simulate_maps
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

SHAPE = (18, 14, 16)


def make(normal, **options):
    A = Encoding(radial_3d(60, 36, SHAPE), simulate_maps(3, SHAPE), normal=normal)
    model = UnrolledNetwork(ResidualCNN(6, 3), 3, **options)
    kspace = A(torch.randn(SHAPE, dtype=torch.complex64))
    return A, kspace, model


@pytest.mark.parametrize("normal", ["toeplitz", "nufft"])
@pytest.mark.parametrize("block_shape", [None, (8, 8, 8)])
@pytest.mark.parametrize("data_term", ["density", "unweighted"])
def test_the_whole_training_step_is_predicted_to_the_byte(normal, block_shape, data_term):
    A, kspace, model = make(normal, block_shape=block_shape, data_term=data_term)
    optimizer = torch.optim.Adam(model.parameters())

    def step():
        optimizer.zero_grad(set_to_none=True)
        relative_error(model(A, kspace), torch.ones(SHAPE, dtype=torch.complex64)).backward()
        optimizer.step()

    for _ in range(2):
        step()
    predicted = predict_peak(step)
    with measure_peak() as peak:
        step()
    assert predicted == peak.bytes
    assert all(not type(p.grad).__name__.startswith("Fake") for p in model.parameters())


def test_blocks_take_less_memory_than_naive_backprop_and_the_prediction_says_so():
    peaks = []
    for block_shape in (None, (6, 6, 6)):
        A, kspace, model = make("toeplitz", block_shape=block_shape)
        peaks.append(predict_peak(lambda model=model, A=A, kspace=kspace: model(A, kspace).abs().sum().backward()))
    assert peaks[1] < 0.6 * peaks[0]
