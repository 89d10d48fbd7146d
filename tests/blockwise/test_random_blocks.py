"""Random networks, volumes, blocks and halos: block by block equals the whole volume, or is refused for a reason."""

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from blockkit.blockwise.blocks import apply_blockwise, cut_blocks
from blockkit.blockwise.memory import measure_peak, predict_peak
from blockkit.blockwise.reach import reach

# The same examples every time, so that a failure is one of the code; --hypothesis-seed and a profile draw others.
every_time_the_same = settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
REASONS = "halo is|over space|multiple|stride|whole volume|sees|Dropout|reach"
SMOOTH = [nn.SiLU, nn.Tanh, nn.GELU, nn.Softplus]


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


class Coarser(nn.Module):
    """Run the body on a grid of half the voxels."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        coarse = self.body(nn.functional.avg_pool3d(x, 2))
        return nn.functional.interpolate(coarse, scale_factor=2, mode="nearest")


def convolution(n_in: int, n_out: int):
    sizes = st.tuples(*3 * [st.sampled_from([1, 3, 3, 5])])
    dilations = st.tuples(*3 * [st.sampled_from([1, 1, 2])])
    paddings = st.sampled_from(["zeros", "zeros", "replicate"])
    return st.builds(
        lambda kernel, dilation, mode: nn.Conv3d(
            n_in, n_out, kernel, padding="same", dilation=dilation, padding_mode=mode
        ),
        sizes, dilations, paddings,
    )  # fmt: skip


def body(n_channels: int):
    pointwise = st.sampled_from([*(layer() for layer in SMOOTH), nn.BatchNorm3d(n_channels).eval()])
    layer = st.one_of(convolution(n_channels, n_channels), pointwise)
    layer = layer | st.builds(Residual, layer) | st.builds(Coarser, layer)
    return st.lists(layer, min_size=1, max_size=3).map(lambda layers: nn.Sequential(*layers))


seesall = st.sampled_from([nn.GroupNorm(1, 3), nn.InstanceNorm3d(3), nn.Softmax(dim=3), nn.AdaptiveAvgPool3d(1)])


@st.composite
def networks(draw, exact: bool = True):
    """Return a network of 2 channels in and 1 to 2 out, in double precision; its weights come from a drawn seed."""
    middle = draw(body(3))
    layers = [draw(convolution(2, 3)), draw(st.sampled_from(SMOOTH))(), middle]
    if not exact:
        layers.append(Residual(draw(seesall)))
    layers.append(draw(convolution(3, draw(st.integers(1, 2)))))
    network = nn.Sequential(*layers).double()
    torch.manual_seed(draw(st.integers(0, 99)))
    with torch.no_grad():
        for p in network.parameters():
            p.normal_(std=0.3)
    return network


sizes = st.tuples(*3 * [st.integers(1, 7)]).map(lambda shape: tuple(2 * n for n in shape))
blocks = st.tuples(*3 * [st.integers(1, 12)])


def gradients(run, network, x):
    y = run(x)
    weight = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    leaves = [x, *(p for p in network.parameters() if p.requires_grad)]
    return y.detach(), *torch.autograd.grad((weight * y).sum(), leaves, allow_unused=True)


def assert_equal(mine, theirs):
    for a, b in zip(mine, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).abs().max() <= 1e-10 * (1 + b.abs().max())


def volume(shape):
    return torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()


@pytest.mark.slow
@every_time_the_same
@given(networks(), sizes, blocks, st.sampled_from([None, 1, 2, 3]), st.booleans())
def test_output_and_every_gradient_equal_the_whole_volume(network, shape, block, at_once, recompute):
    x = volume(shape)
    mine = gradients(
        lambda x: apply_blockwise(network, x, block, blocks_at_once=at_once, recompute=recompute), network, x
    )
    assert_equal(mine, gradients(lambda x: network(x[None])[0], network, x))


@pytest.mark.slow
@every_time_the_same
@given(networks(), sizes, blocks, st.tuples(*3 * [st.integers(0, 12)]))
def test_any_halo_is_exact_or_refused_with_the_halo_to_write(network, shape, block, halo):
    x = volume(shape)
    try:
        mine = gradients(lambda x: apply_blockwise(network, x, block, halo=halo), network, x)
    except ValueError as error:
        better = tuple(map(int, re.search(r"Write halo=\((\d+), (\d+), (\d+)\)", str(error)).groups()))
        assert any(a < b for a, b in zip(halo, better, strict=True))
        mine = gradients(lambda x: apply_blockwise(network, x, block, halo=better), network, x)
    assert_equal(mine, gradients(lambda x: network(x[None])[0], network, x))


@pytest.mark.slow
@every_time_the_same
@given(networks(exact=False), sizes, blocks)
def test_a_network_that_sees_everything_is_refused_for_a_stated_reason(network, shape, block):
    with pytest.raises(ValueError, match=REASONS):
        apply_blockwise(network, volume(shape), block)


@pytest.mark.slow
@every_time_the_same
@given(networks(), sizes, blocks, st.booleans())
def test_the_peak_of_a_step_is_predicted_to_the_byte(network, shape, block, recompute):
    def step():
        apply_blockwise(
            network, torch.zeros(2, *shape, dtype=torch.float64), block, recompute=recompute
        ).sum().backward()

    reach(network)
    predicted = predict_peak(step)
    with measure_peak() as peak:
        step()
    network.zero_grad()
    assert predicted == peak.bytes


@every_time_the_same
@given(
    st.tuples(*3 * [st.integers(1, 40)]), st.tuples(*3 * [st.integers(1, 50)]), st.tuples(*3 * [st.integers(0, 9)]),
    st.sampled_from([1, 2, 4]),
)  # fmt: skip
def test_blocks_tile_the_volume_and_windows_hold_their_halo(shape, block, halo, stride):
    shape = tuple(n * stride for n in shape)
    counted = torch.zeros(shape, dtype=torch.int8)
    cut = cut_blocks(shape, block, halo, 3 * (stride,))
    for one in cut:
        counted[one.place] += 1
        for size, h, window, kept, place in zip(shape, halo, one.window, one.kept, one.place, strict=True):
            assert window.start % stride == place.start % stride == window.stop % stride == 0
            assert window.start + kept.start == place.start
            assert window.start + kept.stop == place.stop
            assert window.start <= max(place.start - h, 0)
            assert window.stop >= min(place.stop + h, size)
    assert counted.eq(1).all()
    assert len({tuple(s.stop - s.start for s in one.window) for one in cut}) == 1
