"""No memory option, and no pair of them, changes the loss or a gradient."""

from itertools import combinations

import pytest
import torch
from torch import nn

from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.physics.coils import simulate_maps
from blockkit.physics.maps import InterpolatedMaps
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

SHAPE = (26, 22, 24)
MAPS = InterpolatedMaps(simulate_maps(3, (7, 6, 6), seed=3), SHAPE)
OF_MODEL = {"block_shape": (8, 12, 10), "offload": "disk", "recompute": False}
OF_ENCODING = {"coils_at_once": 2, "maps": MAPS}
OPTIONS = {**OF_MODEL, **OF_ENCODING}
COMBINATIONS = [*combinations(OPTIONS, 1), *combinations(OPTIONS, 2), tuple(OPTIONS)]
ROUNDING = {torch.float64: 1e-10, torch.float32: 1e-4}


def step(names, dtype, normal):
    """Return the loss of a training step and its gradients, with the named options on."""
    of_encoding = {"maps": MAPS.full()} | {name: OF_ENCODING[name] for name in names if name in OF_ENCODING}
    A = Encoding(radial_3d(60, 48, SHAPE), normal=normal, **of_encoding)
    generator = torch.Generator().manual_seed(4)
    target = torch.randn(SHAPE, dtype=torch.complex128, generator=generator).to(dtype.to_complex())
    kspace = torch.randn(A.out_shape, dtype=torch.complex128, generator=generator).to(dtype.to_complex())
    torch.manual_seed(0)
    network = ResidualCNN(4, 3, downsample=2)
    nn.init.normal_(network.layers[-2].weight, std=0.1)
    model = UnrolledNetwork(network.to(dtype), 3, **{name: OF_MODEL[name] for name in names if name in OF_MODEL})
    loss = (model(A, kspace) - target).abs().square().sum()
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


@pytest.fixture(scope="module")
def plain():
    """Return the step without any option: naive backprop, one coil at a time, full maps."""
    done = {}

    def of(*args):
        if args not in done:
            done[args] = step((), *args)
        return done[args]

    return of


@pytest.mark.parametrize("normal", ["toeplitz", "nufft"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_it_changes_nothing(names, dtype, normal, plain):
    loss, gradients = plain(dtype, normal)
    mine, my_gradients = step(names, dtype, normal)
    assert abs(mine - loss) <= ROUNDING[dtype] * loss
    for my_gradient, gradient in zip(my_gradients, gradients, strict=True):
        scale = torch.linalg.vector_norm(gradient)
        assert torch.linalg.vector_norm(my_gradient - gradient) <= ROUNDING[dtype] * scale
        assert scale > 0
