"""Block by block equals the whole volume: output, input gradient, every parameter gradient."""

import inspect
import random
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from blockkit.blockwise import blocks
from blockkit.blockwise.blocks import Blockwise, apply_blockwise, cut_blocks
from blockkit.blockwise.guards import precision_named
from blockkit.blockwise.memory import measure_peak, predict_peak
from blockkit.blockwise.reach import reach

Network = Callable[[], nn.Module]


# Networks, each (window, 2, z, y, x) -> (window, channel, z, y, x)


def conv(n_in: int, n_out: int, kernel: int | tuple[int, ...] = 3, **options) -> nn.Conv3d:
    return nn.Conv3d(n_in, n_out, kernel, padding="same", **options)


def plain() -> nn.Module:
    return nn.Sequential(conv(2, 4), nn.SiLU(), conv(4, 4), nn.SiLU(), conv(4, 2))


def dilated() -> nn.Module:
    return nn.Sequential(conv(2, 4, dilation=2), nn.Tanh(), conv(4, 3, dilation=(1, 3, 2)))


def anisotropic() -> nn.Module:
    return nn.Sequential(conv(2, 4, (1, 3, 5)), nn.SiLU(), conv(4, 2, (5, 1, 1)), nn.SiLU(), conv(2, 1, (3, 3, 1)))


def pointwise() -> nn.Module:
    return nn.Sequential(conv(2, 4, 1), nn.SiLU(), conv(4, 2, 1))


def edge_padded() -> nn.Module:
    return nn.Sequential(conv(2, 3, padding_mode="replicate"), nn.SiLU(), conv(3, 2))


def normalized_weights() -> nn.Module:
    return nn.Sequential(weight_norm(conv(2, 4)), nn.SiLU(), conv(4, 2))


def overwriting() -> nn.Module:
    return nn.Sequential(nn.SiLU(inplace=True), conv(2, 4), nn.SiLU(inplace=True), conv(4, 2))


def evaluated_batch_norm() -> nn.Module:
    network = nn.Sequential(conv(2, 4), nn.BatchNorm3d(4), nn.SiLU(), conv(4, 2))
    with torch.no_grad():
        network[1].running_mean.uniform_(-1, 1)
        network[1].running_var.uniform_(0.5, 2)
    return network.eval()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = plain()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class SharedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.once = conv(2, 2)
        self.again = self.once

    def forward(self, x: Tensor) -> Tensor:
        return self.again(torch.tanh(self.once(x)))


class Tied(nn.Module):
    """Two layers with one weight, and each its own bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(2, 2), conv(2, 2)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def listed_twice() -> nn.Module:
    layer = conv(2, 2)
    return nn.Sequential(layer, nn.SiLU(), layer)


def nested_twice() -> nn.Module:
    part = nn.Sequential(conv(2, 2), nn.SiLU())
    return nn.Sequential(part, nn.Sequential(part, conv(2, 2)), part)


def normalized_twice() -> nn.Module:
    layer = weight_norm(conv(2, 2))
    return nn.Sequential(layer, nn.SiLU(), layer)


class UNet(nn.Module):
    """Strided convolutions down, transposed convolutions up, skip connections: stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.top = conv(2, 3)
        self.down, self.down2 = nn.Conv3d(3, 4, 3, stride=2, padding=1), nn.Conv3d(4, 4, 2, stride=2)
        self.up2, self.up = nn.ConvTranspose3d(4, 4, 2, stride=2), nn.ConvTranspose3d(8, 3, 4, stride=2, padding=1)
        self.out = conv(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        top = nn.functional.silu(self.top(x))
        middle = nn.functional.silu(self.down(top))
        low = nn.functional.silu(self.down2(middle))
        up = nn.functional.silu(self.up(torch.cat([middle, self.up2(low)], 1)))
        return self.out(torch.cat([top, up], 1))


class Interpolating(nn.Module):
    """Average pooling down, trilinear interpolation up: stride (1, 2, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.AvgPool3d((1, 2, 2))
        self.middle = conv(2, 2)
        self.up = nn.Upsample(scale_factor=(1, 2, 2), mode="trilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        return x - torch.tanh(self.up(self.middle(self.down(x))))


class SpaceToDepth(nn.Module):
    """Eight neighbors become eight channels, and come back: stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(16, 4), nn.SiLU(), conv(4, 16))

    def forward(self, x: Tensor) -> Tensor:
        n, c, z, y, w = x.shape
        deep = x.reshape(n, c, z // 2, 2, y // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 7, 2, 4, 6)
        deep = self.body(deep.reshape(n, c * 8, z // 2, y // 2, w // 2))
        deep = deep.reshape(n, c, 2, 2, 2, z // 2, y // 2, w // 2).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return deep.reshape(n, c, z, y, w)


def random_network(seed: int) -> nn.Module:
    """A stack of convolutions with random kernels, dilations, widths, groups and activations."""
    draw = random.Random(seed)
    layers, n_in = [], 2
    for _ in range(draw.randint(2, 4)):
        groups, n_out = draw.choice([1, 2]), draw.choice([2, 4])
        kernel = tuple(draw.choice([1, 3, 3, 5]) for _ in range(3))
        dilation = tuple(draw.choice([1, 1, 2]) for _ in range(3))
        layers += [conv(n_in, n_out, kernel, dilation=dilation, groups=groups, bias=draw.random() < 0.7)]
        layers += [draw.choice([nn.SiLU(), nn.Tanh(), nn.GELU(), nn.Softplus()])]
        n_in = n_out
    return nn.Sequential(*layers)


STRIDE_1 = {
    f.__name__: f
    for f in (
        *(plain, dilated, anisotropic, pointwise, edge_padded, normalized_weights),
        *(overwriting, evaluated_batch_norm, Residual, SharedTwice),
        *(Tied, listed_twice, nested_twice, normalized_twice),
    )
}
STRIDED = {f.__name__: f for f in (UNet, Interpolating, SpaceToDepth)}
NETWORKS = STRIDE_1 | STRIDED


# What is compared


def gradients(y: Tensor, x: Tensor, parameters: nn.Module | list[Tensor], grad_y: Tensor) -> list[Tensor]:
    parameters = list(parameters.parameters()) if isinstance(parameters, nn.Module) else parameters
    wanted = [t for t in (x, *parameters) if t.requires_grad]
    return list(torch.autograd.grad(y, wanted, grad_y, materialize_grads=True))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm().clamp_min(1e-30))


def worst_error(network: nn.Module, x: Tensor, block_shape: object, **options) -> float:
    """The largest relative difference to the whole volume among the output and all gradients."""
    torch.manual_seed(1)
    parameters = list(network.parameters())
    whole = network((x * 1)[None])[0]
    y = apply_blockwise(network, x * 1 if x.requires_grad else x, block_shape, **options)
    assert y.shape == whole.shape
    assert y.dtype == whole.dtype
    errors = [relative(y, whole)]
    if y.requires_grad:
        grad_y = torch.randn_like(whole)
        expected = gradients(whole, x, parameters, grad_y)
        errors += [relative(*pair) for pair in zip(gradients(y, x, parameters, grad_y), expected, strict=True)]
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))
    return max(errors)


def volume(*shape: int, dtype: torch.dtype = torch.float64, requires_grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(2, *shape, dtype=dtype, generator=generator).requires_grad_(requires_grad)


def build(network: Network, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return network().to(dtype)


# Equality


@pytest.mark.parametrize("name", STRIDE_1)
@pytest.mark.parametrize(("shape", "block"), [((11, 7, 13), (4, 3, 5)), ((1, 17, 9), (1, 4, 4)), ((5, 6, 7), 9)])
def test_blocks_equal_the_whole_volume(name, shape, block):
    assert worst_error(build(NETWORKS[name]), volume(*shape), block) < 1e-10


@pytest.mark.parametrize("name", STRIDED)
@pytest.mark.parametrize(("shape", "block"), [((4, 8, 40), (8, 4, 8)), ((36, 4, 4), 8), ((8, 16, 12), (3, 5, 7))])
def test_blocks_of_a_strided_network_equal_the_whole_volume(name, shape, block):
    assert worst_error(build(NETWORKS[name]), volume(*shape), block) < 1e-10


@pytest.mark.parametrize("seed", range(8))
def test_blocks_equal_the_whole_volume_for_random_networks_and_shapes(seed):
    draw = random.Random(100 + seed)
    shape, block = (tuple(draw.randint(1, n) for _ in range(3)) for n in (16, 8))
    network = build(lambda: random_network(seed))
    options = {"blocks_at_once": draw.choice([None, 1, 2, 3, 100]), "recompute": draw.random() < 0.5}
    assert worst_error(network, volume(*shape), block, **options) < 1e-10


@pytest.mark.parametrize("name", NETWORKS)
def test_single_precision_is_equal_to_rounding(name):
    x = volume(8, 12, 36, dtype=torch.float32)
    assert worst_error(build(NETWORKS[name], torch.float32), x, (4, 8, 8)) < 1e-4


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("blocks_at_once", [None, 1, 2, 3, 100])
@pytest.mark.parametrize("name", ["plain", "UNet"])
def test_memory_options_never_change_the_answer(name, blocks_at_once, recompute):
    options = {"blocks_at_once": blocks_at_once, "recompute": recompute}
    assert worst_error(build(NETWORKS[name]), volume(4, 4, 32), (4, 4, 8), **options) < 1e-10


@pytest.mark.parametrize("halo", [3, 4, (3, 5, 9), 50])
def test_a_halo_beyond_the_reach_changes_nothing(halo):
    assert worst_error(build(plain), volume(13, 9, 10), 4, halo=halo) < 1e-10


@pytest.mark.parametrize("axis", range(3))
def test_a_halo_one_voxel_too_small_is_not_equal(axis):
    network, x = build(plain), volume(12, 13, 14)
    halo = [3, 3, 3]
    halo[axis] -= 1
    with pytest.warns(UserWarning, match="reaches"):
        assert worst_error(network, x, 4, halo=halo, exact=False) > 1e-3


def test_the_error_grows_as_the_halo_shrinks():
    network, x = build(plain), volume(12, 13, 14)
    with pytest.warns(UserWarning, match="reaches"):
        errors = [worst_error(network, x, 4, halo=halo, exact=False) for halo in (2, 1, 0)]
    assert errors[0] < errors[1] < errors[2]


def test_a_strided_network_in_blocks_off_its_grid_is_not_equal():
    network, x = build(SpaceToDepth), volume(16, 8, 8)
    whole = network(x[None])[0]
    on, off = (network(x[None, :, start : start + 12])[0, :, 4:8] for start in (2, 3))
    assert relative(on, whole[:, 6:10]) < 1e-12
    assert relative(off, whole[:, 7:11]) > 1e-2


# What is trained, what is not


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("name", ["SharedTwice", "Tied", "listed_twice", "nested_twice", "normalized_twice"])
def test_what_is_used_twice_keeps_its_parameters_and_gets_the_sum_of_their_gradients(name, recompute):
    network, x = build(NETWORKS[name]), volume(9, 8, 7)
    parameters = dict(network.named_parameters())
    apply_blockwise(network, x, 4, recompute=recompute).square().sum().backward()
    assert all(value is parameters[name] for name, value in network.named_parameters())
    expected = torch.autograd.grad(network(x[None]).square().sum(), list(parameters.values()))
    for parameter, grad in zip(parameters.values(), expected, strict=True):
        assert type(parameter) is nn.Parameter
        assert relative(parameter.grad, grad) < 1e-10


def test_frozen_parameters_get_no_gradient_and_the_others_theirs():
    network, x = build(plain), volume(9, 8, 7)
    network[0].requires_grad_(False)
    apply_blockwise(network, x, 4).square().sum().backward()
    assert network[0].weight.grad is None
    assert network[0].bias.grad is None
    assert worst_error(network, x, 4) < 1e-10


def test_frozen_parameters_are_no_inputs_of_the_node():
    network, x = build(plain), volume(6, 6, 6)
    network[0].requires_grad_(False)
    y = apply_blockwise(network, x, 4)
    variables = [getattr(node, "variable", None) for node, _ in y.grad_fn.next_functions]
    assert [v is x for v in variables] == [True, False, False, False, False]


def test_an_input_without_gradient_gets_none():
    network, x = build(plain), volume(9, 8, 7, requires_grad=False)
    assert worst_error(network, x, 4) < 1e-10
    assert x.grad is None


@pytest.mark.parametrize("recompute", [True, False])
def test_a_network_without_trainable_parameters_passes_the_input_gradient(recompute):
    network = build(plain).requires_grad_(False)
    assert worst_error(network, volume(9, 8, 7), 4, recompute=recompute) < 1e-10
    assert worst_error(nn.Tanh(), volume(9, 8, 7), 4, recompute=recompute) < 1e-10


def test_nothing_to_differentiate_gives_an_output_without_graph():
    network = build(plain).requires_grad_(False)
    assert not apply_blockwise(network, volume(9, 8, 7, requires_grad=False), 4).requires_grad


def test_two_calls_in_one_graph_accumulate():
    network, x = build(plain), volume(9, 8, 7)
    y = apply_blockwise(network, apply_blockwise(network, x, 4), 3)
    whole = network(network(x[None]))[0]
    grad_y = torch.randn_like(whole)
    for a, b in zip(gradients(y, x, network, grad_y), gradients(whole, x, network, grad_y), strict=True):
        assert relative(a, b) < 1e-10


def test_gradients_accumulate_over_backward_calls():
    network, x = build(plain), volume(9, 8, 7)
    for _ in range(2):
        apply_blockwise(network, x, 4).sum().backward()
    accumulated = network[0].weight.grad
    (once,) = torch.autograd.grad(network(x[None]).sum(), network[0].weight)
    assert relative(accumulated, 2 * once) < 1e-10


def test_a_parameter_that_is_not_used_gets_no_gradient():
    network = build(plain)
    network.register_parameter("spare", nn.Parameter(torch.zeros(3)))
    apply_blockwise(network, volume(6, 6, 6), 4).sum().backward()
    assert network.spare.grad is None
    assert network[0].weight.grad is not None


def test_a_hook_on_a_parameter_runs_once_with_the_whole_gradient():
    network, x, seen = build(plain), volume(9, 8, 7), []
    network[0].weight.register_hook(lambda grad: seen.append(grad) or 3 * grad)
    apply_blockwise(network, x, 4).sum().backward()
    tripled = network[0].weight.grad
    assert len(seen) == 1
    assert relative(tripled, 3 * seen[0]) < 1e-12


def test_a_hook_after_accumulation_runs_once_for_each_parameter():
    network, x, seen = build(plain), volume(9, 8, 7), []
    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(seen.append)
    apply_blockwise(network, x, 4).sum().backward()
    assert {id(p) for p in seen} == {id(p) for p in network.parameters()}
    assert len(seen) == len(list(network.parameters()))


@pytest.mark.parametrize("recompute", [True, False])
def test_offloading_and_checkpointing_around_the_blocks_change_nothing(recompute):
    network, x = build(plain), volume(9, 8, 7)

    def run(x: Tensor) -> Tensor:
        return apply_blockwise(network, x, 4, recompute=recompute)

    expected = gradients(run(x), x, network, torch.ones_like(x))
    with torch.autograd.graph.save_on_cpu():
        offloaded = run(x)
    checkpointed = torch.utils.checkpoint.checkpoint(run, x, use_reentrant=False)
    for y in (offloaded, checkpointed):
        found = gradients(y, x, network, torch.ones_like(x))
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gradcheck_passes():
    network = build(lambda: nn.Sequential(conv(2, 2), nn.Tanh()))
    weight = network[0].weight

    def function(x: Tensor, w: Tensor) -> Tensor:
        module = nn.utils.stateless._reparametrize_module(network, {"0.weight": w})
        with module:
            return apply_blockwise(network, x, (2, 3, 2), halo=1)

    assert torch.autograd.gradcheck(function, (volume(3, 4, 2), weight.detach().requires_grad_()))


@pytest.mark.parametrize("recompute", [True, False])
def test_backward_twice_with_retain_graph_gives_the_same_twice(recompute):
    network, x = build(plain), volume(9, 8, 7)
    loss = apply_blockwise(network, x, 4, recompute=recompute).square().sum()
    first = torch.autograd.grad(loss, (x, *network.parameters()), retain_graph=True)
    second = torch.autograd.grad(loss, (x, *network.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_double_backward_is_refused():
    network, x = build(plain), volume(6, 5, 4)
    (grad_x,) = torch.autograd.grad(apply_blockwise(network, x, 3).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad_x.sum().backward()


def test_a_parameter_changed_before_backward_is_noticed():
    network, x = build(plain), volume(6, 5, 4)
    y = apply_blockwise(network, x, 3)
    with torch.no_grad():
        network[4].bias += 1
    with pytest.raises(RuntimeError, match="Call backward first"):
        y.sum().backward()


def double_in_place(value: Tensor) -> None:
    with torch.no_grad():
        value.mul_(2)


CHANGES = {
    "a buffer": lambda network: double_in_place(network[1].running_var),
    "a frozen parameter": lambda network: double_in_place(network[0].weight),
    "another buffer": lambda network: setattr(network[1], "running_var", torch.ones(4, dtype=torch.float64)),
    "a training flag": lambda network: network.train(),
    "a setting": lambda network: vars(network[3]).update(dilation=(2, 2, 2)),
}


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("name", CHANGES)
def test_a_network_changed_before_backward_is_noticed(name, recompute):
    network, x = build(evaluated_batch_norm), volume(6, 5, 4)
    network[0].requires_grad_(False)
    y = apply_blockwise(network, x, 3, recompute=recompute)
    CHANGES[name](network)
    changed = [value.clone() for value in network.buffers()]
    with pytest.raises(RuntimeError, match="Call backward first"):
        y.sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(changed, network.buffers(), strict=True))


def test_freezing_the_network_before_backward_changes_nothing():
    network, x = build(plain), volume(6, 5, 4)
    (expected,) = torch.autograd.grad(network(x[None]).sum(), x)
    y = apply_blockwise(network, x, 3)
    network.requires_grad_(False)
    assert relative(torch.autograd.grad(y.sum(), x)[0], expected) < 1e-10


@pytest.mark.parametrize("recompute", [True, False])
def test_a_cache_of_parametrizations_around_the_blocks_hides_no_gradient(recompute):
    with torch.nn.utils.parametrize.cached():
        assert worst_error(build(normalized_weights), volume(9, 8, 7), 4, recompute=recompute) < 1e-10


@pytest.mark.parametrize(
    "layer", [nn.PReLU(6), nn.BatchNorm3d(6).eval(), nn.Sequential(nn.BatchNorm3d(6), nn.SiLU()).eval()]
)
def test_a_network_without_convolutions_takes_any_number_of_channels(layer):
    x = torch.randn(6, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    assert worst_error(layer.double(), x, 3) < 1e-10


def test_an_input_changed_before_backward_is_noticed():
    network, x = build(plain), volume(6, 5, 4, requires_grad=False)
    y = apply_blockwise(network, x, 3)
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


# Modes


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("recompute", [True, False])
def test_no_graph_is_built_where_none_is_wanted(mode, recompute):
    network, x = build(plain), volume(9, 8, 7)
    with mode():
        y = apply_blockwise(network, x, 4, recompute=recompute)
        whole = network(x[None])[0]
        assert relative(y, whole) < 1e-10
        assert y.grad_fn is None


@pytest.mark.parametrize(("of_weights", "of_x"), [(torch.float32, torch.float64), (torch.float16, torch.float32)])
def test_another_precision_than_that_of_the_weights_is_named(of_weights, of_x):
    x = volume(9, 8, 7, dtype=of_x, requires_grad=False)
    with pytest.raises(
        TypeError, match=rf"dtype {of_x}, and the network's weights {of_weights}: .*x.to\({of_weights}\)"
    ):
        apply_blockwise(build(plain, of_weights), x, 6)


def test_a_network_that_casts_takes_any_precision():
    class Casting(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.float())

    network, x = Casting(*build(plain, torch.float32)), volume(9, 8, 7)
    y = apply_blockwise(network, x, 6)
    torch.testing.assert_close(y, network(x[None])[0])


@pytest.mark.parametrize("of_weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("words", ["out of luck", "CUDA out of memory. Tried to allocate 2.00 GiB"])
def test_another_failure_of_the_network_keeps_its_own_words(of_weights, words):
    class Failing(nn.Conv3d):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError(words)

    network, x = Failing(2, 2, 3, padding=1, dtype=of_weights), volume(9, 8, 7, dtype=torch.float32)
    with pytest.warns(UserWarning, match="does not run"), pytest.raises(RuntimeError, match=f"^{words}"):
        apply_blockwise(network, x, 6, halo=1, exact=False)


@pytest.mark.parametrize("layer", [nn.Conv3d(2, 2, 1), nn.ConvTranspose3d(2, 2, 1), nn.PReLU(2), nn.Linear(8, 8)])
@pytest.mark.parametrize("of_x", [torch.float64, torch.float16])
def test_torch_s_words_for_another_precision_are_known(layer, of_x):
    x = torch.ones(2, 8, 8, 8, dtype=of_x)
    with pytest.raises(TypeError, match="expected one precision"), precision_named(layer, x):
        layer(x[None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recompute", [True, False])
def test_backward_runs_in_the_autocast_state_of_forward(recompute, dtype):
    network, x = build(plain, torch.float32), volume(9, 8, 7, dtype=torch.float32)
    dtypes = []
    network[0].register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    reach(network)
    dtypes.clear()
    with torch.autocast("cpu", dtype=dtype):
        y = apply_blockwise(network, x, 4, recompute=recompute)
        whole = network(x[None])[0]
    assert y.dtype == whole.dtype == dtype
    grad_y = torch.randn_like(whole)
    found, expected = gradients(y, x, network, grad_y), gradients(whole, x, network, grad_y)
    assert set(dtypes) == {dtype}
    assert [g.dtype for g in found] == [torch.float32] * len(found)
    assert max(relative(*pair) for pair in zip(found, expected, strict=True)) < 0.03


def test_autocast_around_backward_alone_changes_nothing():
    network, x = build(plain, torch.float32), volume(9, 8, 7, dtype=torch.float32)
    y = apply_blockwise(network, x, 4)
    expected = gradients(apply_blockwise(network, x, 4), x, network, torch.ones_like(y))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(y, x, network, torch.ones_like(y))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(2, 2)
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.bernoulli(torch.full_like(x, 0.5))
        self.masks.append(mask.detach())
        return self.conv(x * mask)


def test_recomputation_draws_the_masks_of_forward_and_leaves_the_generator_alone():
    network, x = build(Dropping), volume(9, 8, 7)
    y = quiet(network, x, blocks_at_once=2)
    forward_masks, network.masks = network.masks, []
    before = torch.get_rng_state()
    y.sum().backward()
    assert torch.equal(torch.get_rng_state(), before)
    assert len(network.masks) == len(forward_masks) > 1
    assert all(torch.equal(a, b) for a, b in zip(network.masks, forward_masks, strict=True))
    assert not torch.equal(forward_masks[0], forward_masks[1])


def test_dropout_with_and_without_recompute_gives_the_same_gradients():
    network, x = build(lambda: nn.Sequential(conv(2, 4), nn.Dropout3d(0.5), conv(4, 2))), volume(9, 8, 7)
    results = []
    for recompute in (True, False):
        torch.manual_seed(3)
        y = quiet(network, x, recompute=recompute, blocks_at_once=2)
        results.append([y, *gradients(y, x, network, torch.ones_like(y))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def quiet(network: nn.Module, x: Tensor, **options) -> Tensor:
    """Apply a network that is not exact, without the warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exact=False, which is meant here
        return apply_blockwise(network, x, 4, halo=2, exact=False, **options)


# One node, few allocations


@pytest.mark.parametrize("block", [3, 5, 12])
def test_the_graph_is_one_node_whatever_the_number_of_blocks(block):
    network, x = build(plain), volume(12, 11, 10)
    y = apply_blockwise(network, x, block)
    assert isinstance(y.grad_fn, torch.autograd.Function) or "Blockwise" in type(y.grad_fn).__name__
    inputs = [node for node, _ in y.grad_fn.next_functions if node is not None]
    assert all("AccumulateGrad" in type(node).__name__ for node in inputs)
    assert len(inputs) == 1 + len(list(network.parameters()))


class LargeResults(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the new storages of at least the size of a volume."""

    def __init__(self, n_bytes: int) -> None:
        super().__init__()
        self.n_bytes, self.seen = n_bytes, {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or else PyTorch's compiler is imported: seconds

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {t.untyped_storage()._cdata for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(result):
            if isinstance(t, Tensor) and t.untyped_storage().nbytes() >= self.n_bytes:
                storage = t.untyped_storage()
                if storage._cdata not in known:
                    self.seen[storage._cdata] = storage  # held, so that no address comes twice
        return result


@pytest.mark.parametrize("block", [4, 6, 12])
def test_the_number_of_volumes_allocated_does_not_depend_on_the_number_of_blocks(block):
    network, x = build(lambda: nn.Sequential(conv(2, 2), nn.Tanh())), volume(24, 24, 24)
    with LargeResults(x.nbytes) as large:
        y = apply_blockwise(network, x, block, blocks_at_once=2)
        torch.autograd.grad(y, [x, *network.parameters()], torch.ones_like(y))
    assert len(large.seen) == 3  # the output, the ones, the gradient


# Memory, in counted bytes


def training_step(network: nn.Module, x: Tensor, grad_y: Tensor, block: int | None, **options) -> int:
    """Return the peak of a forward and a backward run, beyond ``x`` and ``grad_y``."""
    reach(network)
    with measure_peak() as peak:
        y = network(x[None])[0] if block is None else apply_blockwise(network, x, block, **options)
        torch.autograd.grad(y, [x, *network.parameters()], grad_y)
    return peak.bytes


def narrow() -> nn.Module:
    return nn.Sequential(conv(2, 8), nn.SiLU(), conv(8, 8), nn.SiLU(), conv(8, 2))


def test_peak_memory_beyond_output_and_gradient_is_that_of_one_batch_at_any_size():
    network, beyond = build(narrow, torch.float32), []
    for shape in ((24, 24, 8), (24, 40, 8), (40, 40, 8)):
        x = volume(*shape, dtype=torch.float32)
        beyond.append(training_step(network, x, torch.ones_like(x), 8, blocks_at_once=2) - 2 * x.nbytes)
    with measure_peak() as one_batch:
        windows = torch.zeros(2, 2, 14, 14, 8, requires_grad=True)
        y = network(windows)
        torch.autograd.grad(y, [windows, *network.parameters()], torch.zeros_like(y))
    assert max(beyond) - min(beyond) < 1024
    assert max(beyond) < 1.1 * one_batch.bytes


def test_peak_memory_of_keeping_every_graph_grows_with_the_volume_and_recomputing_saves_it():
    network = build(narrow, torch.float32)
    for shape in ((40, 40, 8), (64, 40, 8)):
        x = volume(*shape, dtype=torch.float32)
        whole, kept, recomputed = (
            training_step(network, x, torch.ones_like(x), block, **options)
            for block, options in ((None, {}), (8, {"recompute": False}), (8, {}))
        )
        assert recomputed < whole / 2
        assert kept > whole


def test_without_gradients_nothing_is_kept():
    network, x = build(narrow, torch.float32), volume(24, 24, 24, dtype=torch.float32)
    reach(network)
    for recompute in (True, False):
        with torch.no_grad(), measure_peak() as peak:
            y = apply_blockwise(network, x, 8, recompute=recompute, blocks_at_once=1)
        assert peak.bytes - y.nbytes < 5 * 8 * 14**3 * 4


@pytest.mark.parametrize("recompute", [True, False])
def test_memory_is_predicted_to_the_byte(recompute):
    network, x = build(narrow, torch.float32), volume(20, 16, 12, dtype=torch.float32)

    def step() -> None:
        y = apply_blockwise(network, x, 8, recompute=recompute)
        torch.autograd.grad(y, [x, *network.parameters()], torch.ones_like(y))

    predicted = predict_peak(step)
    with measure_peak() as peak:
        step()
    assert predicted == peak.bytes


def counted(network: nn.Module) -> list[int]:
    """The number of windows in each run of the network from now on."""
    seen: list[int] = []
    network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    reach(network)
    seen.clear()
    return seen


@pytest.mark.parametrize(("recompute", "again"), [(True, [2, 2, 2]), (False, [])])
def test_backward_runs_the_network_again_only_to_recompute(recompute, again):
    network, x = build(pointwise), volume(20, 4, 5)
    seen = counted(network)
    y = apply_blockwise(network, x, (4, 4, 5), recompute=recompute)
    assert seen == [2, 2, 2]
    y.sum().backward()
    assert seen == [2, 2, 2, *again]


@pytest.mark.parametrize(("recompute", "n_runs"), [(True, 6), (False, 9)])
def test_a_prediction_runs_three_batches_of_many_unless_their_graphs_are_kept(recompute, n_runs):
    network, x = build(pointwise), volume(36, 4, 5)
    seen = counted(network)
    predict_peak(lambda x: apply_blockwise(network, x, (2, 4, 5), recompute=recompute).sum().backward(), x)
    assert seen == [2] * n_runs


@pytest.mark.parametrize("recompute", [True, False])
def test_what_the_windows_and_the_weights_take_is_booked_as_such(recompute):
    network, x = build(narrow), volume(24, 9, 8)  # three batches
    y = apply_blockwise(network, x, 8, recompute=recompute)
    with measure_peak() as forward:
        apply_blockwise(network, x, 8, recompute=recompute)
    with measure_peak() as backward:
        y.backward(torch.ones_like(y))
    assert set(forward.parts) == {"windows", "other"}
    assert set(backward.parts) == {"windows", "weights", "other"}
    assert forward.parts["other"] < 2 * y.nbytes < forward.parts["windows"]
    assert sum(backward.parts.values()) == backward.bytes
    assert backward.parts["other"] == 2 * x.nbytes  # the gradient of the output, and that of the input


# Where the blocks lie


@pytest.mark.parametrize("seed", range(20))
def test_every_voxel_comes_from_one_block_with_its_halo_around_it(seed):
    draw = random.Random(seed)
    stride = tuple(draw.choice([1, 1, 2, 3, 4]) for _ in range(3))
    shape = tuple(s * draw.randint(1, 9) for s in stride)
    block, halo = (tuple(draw.randint(least, 14) for _ in range(3)) for least in (1, 0))
    count = torch.zeros(shape)
    cut = cut_blocks(shape, block, halo, stride)
    for one in cut:
        count[one.place] += 1
        for n, h, s, window, kept, place in zip(shape, halo, stride, one.window, one.kept, one.place, strict=True):
            assert 0 <= window.start < window.stop <= n
            assert window.start % s == place.start % s == (window.stop - window.start) % s == 0
            assert (window.start + kept.start, window.start + kept.stop) == (place.start, place.stop)
            assert window.start == 0 or place.start - window.start >= h
            assert window.stop == n or window.stop - place.stop >= h
    assert (count == 1).all()
    assert len({tuple(side.stop - side.start for side in one.window) for one in cut}) == 1


def test_an_axis_is_cut_evenly_into_as_few_blocks_as_allowed():
    cut = cut_blocks((1, 1, 100), (1, 1, 64), (0, 0, 5))
    assert [one.place[2] for one in cut] == [slice(0, 50), slice(50, 100)]
    assert [one.window[2] for one in cut] == [slice(0, 55), slice(45, 100)]


def test_windows_are_never_larger_than_asked():
    for size in range(1, 40):
        (length,) = {one.window[0].stop - one.window[0].start for one in cut_blocks((size, 1, 1), (6, 1, 1), (2, 0, 0))}
        assert length <= min(size, 6 + 2 * 2)


@pytest.mark.parametrize(
    ("n_blocks", "at_once", "sizes"),
    [(1, None, [1]), (3, None, [2, 2]), (4, None, [2, 2]), (5, 2, [2, 2, 2]), (5, 3, [3, 2]), (5, 1, [1] * 5)],
)
def test_on_a_cpu_no_window_of_several_is_alone_unless_asked(n_blocks, at_once, sizes):
    network, x, seen = build(pointwise), volume(64 * n_blocks, 16, 16), []
    network[0].register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    reach(network)
    seen.clear()
    y = apply_blockwise(network, x, (64, 16, 16), blocks_at_once=at_once)
    assert seen == sizes
    assert relative(y, network(x[None])[0]) < 1e-10


# What is refused, and what is said


def message(error: type[Exception], network: nn.Module, x: Tensor, block_shape: object = 4, **options) -> str:
    with pytest.raises(error) as caught:
        apply_blockwise(network, x, block_shape, **options)
    return str(caught.value)


def test_a_halo_below_the_reach_is_refused_with_the_halo_to_write():
    assert "halo=(3, 3, 3)" in message(ValueError, build(plain), volume(9, 9, 9), halo=2)
    assert "halo=(3, 3, 3)" in message(ValueError, build(plain), volume(9, 9, 9), halo=(3, 3, 2))


def test_no_halo_is_needed_along_an_axis_that_is_not_cut():
    assert worst_error(build(plain), volume(1, 12, 5), (1, 4, 5), halo=(0, 3, 0)) < 1e-10
    assert worst_error(build(UNet), volume(4, 4, 32), (3, 1, 8), halo=(0, 0, 8)) < 1e-10


@pytest.mark.parametrize("layer", [nn.BatchNorm3d(4), nn.InstanceNorm3d(4), nn.GroupNorm(2, 4)])
def test_a_norm_over_space_is_refused_and_goes_on_with_a_warning_if_not_exact(layer):
    network = build(lambda: nn.Sequential(conv(2, 4), layer, conv(4, 2)))
    assert type(layer).__name__ in message(ValueError, network, volume(9, 9, 9))
    with pytest.warns(UserWarning, match=type(layer).__name__):
        y = apply_blockwise(network, volume(9, 9, 9), 4, halo=2, exact=False)
    assert y.shape == (2, 9, 9, 9)


def test_an_unknown_reach_needs_a_halo():
    network = build(lambda: nn.Sequential(conv(2, 4), nn.GroupNorm(2, 4)))
    with pytest.warns(UserWarning, match="GroupNorm"):
        assert "halo=8" in message(ValueError, network, volume(9, 9, 9), exact=False)


@pytest.mark.parametrize("layer", [nn.Dropout(0.3), nn.Dropout3d(0.5), nn.AlphaDropout(0.1)])
def test_active_dropout_is_refused_unless_not_exact(layer):
    network = build(lambda: nn.Sequential(conv(2, 2), layer))
    assert "network.eval()" in message(ValueError, network, volume(9, 9, 9))
    with pytest.warns(UserWarning, match="dropout"):
        apply_blockwise(network, volume(9, 9, 9), 4, exact=False)
    assert worst_error(network.eval(), volume(9, 9, 9), 4) < 1e-10


def test_dropout_that_never_drops_is_accepted():
    network = build(lambda: nn.Sequential(conv(2, 2), nn.Dropout(0.0)))
    assert worst_error(network, volume(9, 9, 9), 4) < 1e-10


class HiddenDropout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


def test_random_numbers_in_a_function_are_noticed():
    assert "random" in message(ValueError, HiddenDropout(), volume(9, 9, 9))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("n_calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.n_calls += 1
        return 2 * x


def test_a_buffer_that_changes_is_noticed():
    assert "n_calls" in message(ValueError, Counting(), volume(9, 9, 9))


class Hiding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = [torch.ones(1, dtype=torch.float64, requires_grad=True)]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.hidden[0]


def test_a_gradient_that_would_be_lost_is_noticed():
    with pytest.raises(ValueError, match=r"nn\.Parameter"):
        apply_blockwise(Hiding(), volume(9, 9, 9), 4).sum().backward()


def test_a_volume_off_the_stride_is_refused_with_the_padding_to_write():
    x = volume(12, 13, 15)
    text = message(ValueError, build(UNet), x, 8)
    assert "(12, 16, 16)" in text
    padded = nn.functional.pad(x, (0, 1, 0, 3, 0, 0))
    assert "pad(x, (0, 1, 0, 3, 0, 0))" in text
    assert apply_blockwise(build(UNet), padded, 8).shape == (3, 12, 16, 16)


def test_complex_and_integer_volumes_are_refused_with_the_conversion():
    z = torch.randn(1, 5, 5, 5, dtype=torch.complex64)
    assert "torch.cat([x.real, x.imag])" in message(TypeError, build(plain), z)
    assert "x.to(torch.float32)" in message(TypeError, build(plain), torch.ones(2, 5, 5, 5, dtype=torch.int32))


def test_the_conversion_of_complex_volumes_named_in_the_message_goes_there_and_back():
    x = torch.randn(1, 5, 5, 5, dtype=torch.complex64)
    y = apply_blockwise(nn.Identity(), torch.cat([x.real, x.imag]), 3)
    assert torch.equal(torch.complex(*y.chunk(2)), x)


@pytest.mark.parametrize(("shape", "hint"), [((5, 5, 5), "x[None]"), ((1, 2, 5, 5, 5), "x[0]"), ((2, 0, 5, 5), "0")])
def test_a_volume_of_the_wrong_shape_is_refused(shape, hint):
    assert hint in message(ValueError, build(plain), torch.zeros(shape))


def test_a_network_that_changes_the_spatial_shape_is_refused():
    class Cropping(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., 1:-1]

    class Tuples(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor]:
            return (x,)

    with pytest.raises(ValueError, match=r"shape"):
        apply_blockwise(Cropping(), volume(9, 9, 9), 4)
    with pytest.raises((ValueError, TypeError), match="tuple"):
        apply_blockwise(Tuples(), volume(9, 9, 9), 4)


def test_an_output_that_is_larger_than_the_window_is_refused_also_if_not_exact():
    network = build(lambda: nn.Conv3d(2, 2, 3, padding=2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exact=False, which is meant here
        assert "the spatial shape must stay" in message(ValueError, network, volume(9, 9, 9), halo=1, exact=False)


def test_a_function_that_is_no_module_is_refused():
    assert "nn.Module" in message(TypeError, torch.tanh, volume(5, 5, 5))


@pytest.mark.parametrize("block", [0, -3, (4, 4), (4, 4, 0), (4.5, 4, 4), "444", 4.0, None, True, (4, 4, True)])
def test_a_block_shape_that_makes_no_sense_is_refused(block):
    assert f"block_shape is {block!r}, expected three whole numbers" in message(
        ValueError, build(plain), volume(5, 5, 5), block
    )


@pytest.mark.parametrize("halo", [-1, (1, 1), (3, 3, -3), 3.0, True, "a"])
def test_a_halo_that_makes_no_sense_is_refused(halo):
    assert f"halo is {halo!r}, expected three whole numbers" in message(
        ValueError, build(plain), volume(5, 5, 5), halo=halo
    )


def test_sizes_of_numpy_are_whole_numbers():
    block = torch.ones(3).numpy().astype("int64") * 4
    assert apply_blockwise(build(plain), volume(9, 8, 7), block[0], halo=block).shape == (2, 9, 8, 7)


def test_a_volume_with_other_channels_than_the_network_takes_is_refused():
    assert "expects 2 channels, but got 5" in message(ValueError, build(plain), torch.zeros(5, 6, 6, 6))


def test_a_network_that_gives_no_channel_is_refused():
    class Nothing(nn.Module):
        def forward(self, x):
            return x[:, :0]

    assert "expected at least one channel" in message(ValueError, Nothing(), volume(5, 5, 5))


def test_a_batch_of_no_blocks_is_refused():
    assert "at least 1" in message(ValueError, build(plain), volume(5, 5, 5), blocks_at_once=0)


# For readers


def test_the_loops_that_the_lessons_show_are_short():
    for function in (Blockwise.forward, Blockwise.backward, cut_blocks, blocks.cut_axis):
        code = inspect.getsource(function)
        if function.__doc__:
            code = code.replace(function.__doc__, "")
        assert len(code.splitlines()) <= 25
