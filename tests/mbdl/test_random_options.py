"""Random memory options, in any combination, leave loss and gradients of an unrolled network unchanged."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.physics.coils import simulate_maps
from blockkit.physics.maps import InterpolatedMaps
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

every_time_the_same = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)


@st.composite
def problems(draw):
    """Return what is computed: shape, coils, unrolls, network and data term, but no memory option."""
    downsample = draw(st.sampled_from([1, 2]))
    shape = tuple(2 * n for n in draw(st.tuples(*3 * [st.integers(3, 6)])))
    network = {"n_channels": draw(st.integers(1, 4)), "n_layers": draw(st.integers(2, 3)), "downsample": downsample}
    network["sees_gradient"] = draw(st.booleans())
    model = {"n_unrolls": draw(st.integers(1, 3)), "shared_weights": draw(st.booleans())}
    model["data_term"] = draw(st.sampled_from(["density", "unweighted", "cg"]))
    network["sees_gradient"] &= model["data_term"] != "cg"  # conjugate gradient has no gradient to show
    return shape, draw(st.integers(1, 3)), network, model


options = st.fixed_dictionaries(
    {
        "block_shape": st.none() | st.tuples(*3 * [st.integers(2, 12)]),
        "recompute": st.booleans(),
        "offload": st.sampled_from([None, "cpu", "disk"]),
        "coils_at_once": st.integers(1, 4),
        "interpolated": st.booleans(),
    }
)
PLAIN = {"block_shape": None, "recompute": True, "offload": None, "coils_at_once": 1, "interpolated": False}


def step(problem, options):
    """Return the loss of a training step and its gradients."""
    shape, n_coils, of_network, of_model = problem
    maps = InterpolatedMaps(simulate_maps(n_coils, (3, 3, 3), seed=3).to(torch.complex128), shape)
    A = Encoding(
        radial_3d(9, 2 * max(shape), shape), maps if options["interpolated"] else maps.full(),
        normal="nufft", coils_at_once=options["coils_at_once"],
    )  # fmt: skip
    generator = torch.Generator().manual_seed(4)
    target, kspace = (
        torch.randn(size, dtype=torch.complex128, generator=generator) for size in (A.in_shape, A.out_shape)
    )
    torch.manual_seed(0)
    network = ResidualCNN(**of_network).double()
    for layer in network.modules():
        if isinstance(layer, nn.Conv3d):
            nn.init.normal_(layer.weight, std=0.1)
    memory = {name: options[name] for name in ("block_shape", "recompute", "offload")}
    model = UnrolledNetwork(network, **of_model, **memory)
    loss = (model(A, kspace) - target).abs().square().sum()
    loss.backward()
    return loss.detach(), [p.grad for p in model.parameters()]


@pytest.mark.slow
@every_time_the_same
@given(problems(), options)
def test_no_memory_option_changes_the_loss_or_a_gradient(problem, chosen):
    loss, gradients = step(problem, PLAIN)
    mine, my_gradients = step(problem, chosen)
    assert abs(mine - loss) <= 1e-10 * loss
    for one, other in zip(my_gradients, gradients, strict=True):
        assert (one - other).abs().max() <= 1e-10 * (1e-6 + other.abs().max())
