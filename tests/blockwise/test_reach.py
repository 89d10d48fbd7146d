import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from blockkit.blockwise.blocks import apply_blockwise
from blockkit.blockwise.reach import reach


class Calls(nn.Module):
    """A network whose forward is a function of the input and of layers."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


class UNet(nn.Module):
    def __init__(self, n_levels=2, factor=2, pool=nn.MaxPool3d, mode="nearest", width=3):
        super().__init__()
        self.first, self.last = conv(2, width), conv(width, 2)
        self.encoder = nn.ModuleList(conv(width, width) for _ in range(n_levels))
        self.decoder = nn.ModuleList(conv(2 * width, width) for _ in range(n_levels))
        self.pool, self.up = pool(factor), nn.Upsample(scale_factor=factor, mode=mode)

    def forward(self, x):
        h, skips = F.relu(self.first(x)), []
        for layer in self.encoder:
            skips.append(h)
            h = F.relu(layer(self.pool(h)))
        for layer in self.decoder:
            h = F.relu(layer(torch.cat([self.up(h), skips.pop()], dim=1)))
        return x + self.last(h)


class Residual(nn.Module):
    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return x + self.layers(x)


def conv(n_in=2, n_out=2, kernel=3, **options):
    sizes = (kernel,) * 3 if isinstance(kernel, int) else kernel
    options.setdefault("padding", tuple(k // 2 for k in sizes))
    return nn.Conv3d(n_in, n_out, sizes, **options)


def fold(x, f=2):
    w, c, z, y, x_ = x.shape
    cubes = x.reshape(w, c, z // f, f, y // f, f, x_ // f, f)
    return cubes.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(w, c * f**3, z // f, y // f, x_ // f)


def unfold(x, f=2):
    w, c, z, y, x_ = x.shape
    cubes = x.reshape(w, c // f**3, f, f, f, z, y, x_)
    return cubes.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(w, c // f**3, z * f, y * f, x_ * f)


def slices(x, layer):
    """Run a 2D layer on each z slice."""
    w, c, z, *plane = x.shape
    return layer(x.transpose(1, 2).reshape(w * z, c, *plane)).reshape(w, z, c, *plane).transpose(1, 2)


def attention_gate(x, layer, gate):
    low = gate(F.avg_pool3d(layer(x), 2))
    return x * torch.sigmoid(F.interpolate(low, size=x.shape[2:], mode="trilinear"))


def channel_norm(x, layer, norm):
    return norm(layer(x).movedim(1, -1)).movedim(-1, 1)


def separable(x, layer):
    """Share one layer along x between all three axes."""
    return sum(layer(x.transpose(axis, 4)).transpose(axis, 4) for axis in (2, 3, 4))


def window_attention(x):
    """Attend inside 2x2x2 windows."""
    cubes = fold(x).unflatten(1, (x.shape[1], 8)).movedim((1, 2), (-1, -2))
    mixed = F.scaled_dot_product_attention(cubes, cubes, cubes)
    return unfold(mixed.movedim((-1, -2), (1, 2)).flatten(1, 2))


EXACT = {
    "identity": lambda: nn.Identity(),
    "kernel 1": lambda: conv(kernel=1),
    "kernel 3": lambda: conv(kernel=3),
    "kernel 5, one channel": lambda: conv(1, 1, 5),
    "kernel (1, 3, 5)": lambda: conv(kernel=(1, 3, 5)),
    "dilation": lambda: conv(dilation=(1, 2, 3), padding=(1, 2, 3)),
    "groups": lambda: nn.Sequential(conv(4, 8, groups=2), nn.ReLU(), conv(8, 4, groups=4)),
    "three layers": lambda: nn.Sequential(conv(2, 6), nn.LeakyReLU(), conv(6, 6), nn.GELU(), conv(6, 2)),
    "nested residuals": lambda: Residual(conv(), nn.ReLU(), Residual(conv(), nn.SiLU(), conv()), conv(kernel=1)),
    "no bias": lambda: Residual(conv(bias=False), nn.ReLU(inplace=True), conv(bias=False)),
    "even kernels": lambda: nn.Sequential(conv(2, 3, 2, padding=1), conv(3, 2, 2, padding=0)),
    "even kernel, same": lambda: conv(kernel=4, padding="same"),
    "padding on one side": lambda: nn.Sequential(nn.ConstantPad3d((0, 2, 1, 1, 2, 0), 0.0), conv(padding=0)),
    "stride 2": lambda: nn.Sequential(conv(stride=2), nn.ConvTranspose3d(2, 2, 4, stride=2, padding=1)),
    "stride 2, output padding": lambda: nn.Sequential(
        conv(stride=2), nn.ConvTranspose3d(2, 2, 3, stride=2, padding=1, output_padding=1)
    ),
    "stride 3": lambda: nn.Sequential(conv(kernel=5, stride=3), nn.ReLU(), nn.ConvTranspose3d(2, 2, 3, stride=3)),
    "stride (1, 2, 4)": lambda: nn.Sequential(conv(stride=(1, 2, 4)), nn.Upsample(scale_factor=(1, 2, 4))),
    "patches": lambda: nn.Sequential(conv(2, 8, 2, stride=2, padding=0), nn.ConvTranspose3d(8, 2, 2, stride=2)),
    "up, then down": lambda: nn.Sequential(nn.Upsample(scale_factor=2, mode="trilinear"), conv(), nn.AvgPool3d(2)),
    "smoothing pool": lambda: nn.Sequential(nn.AvgPool3d(3, 1, 1), nn.MaxPool3d(3, 1, 1)),
    "U-Net, 1 level": lambda: UNet(1),
    "U-Net, 2 levels": lambda: UNet(2),
    "U-Net, 3 levels": lambda: UNet(3, width=2),
    "U-Net, trilinear, average": lambda: UNet(2, pool=nn.AvgPool3d, mode="trilinear"),
    "U-Net, factor 3": lambda: UNet(2, factor=3, width=2),
    "U-Net, factor 3, trilinear": lambda: UNet(1, factor=3, mode="trilinear"),
    "U-Net, factor 5": lambda: UNet(1, factor=5),
    "space to depth": lambda: Calls(
        lambda x, *layers: x + unfold(layers[3](layers[2](layers[1](layers[0](fold(x)))))),
        conv(16, 6), conv(6, 6), conv(6, 6), conv(6, 16),
    ),
    "slices": lambda: Calls(slices, nn.Conv2d(2, 2, (3, 5), padding=(1, 2))),
    "pixel shuffle": lambda: Calls(
        lambda x, a: slices(x, lambda s: F.pixel_shuffle(a(F.pixel_unshuffle(s, 2)), 2)), nn.Conv2d(8, 8, 3, padding=1)
    ),
    "one layer for three axes": lambda: Calls(separable, conv(kernel=(1, 1, 5))),
    "attention gate": lambda: Calls(attention_gate, conv(2, 3), conv(3, 1)),
    "attention in windows": lambda: Calls(window_attention),
    "batch norm, eval": lambda: nn.Sequential(conv(2, 4), nn.BatchNorm3d(4), nn.ReLU(), conv(4, 2)).eval(),
    "norm over channels": lambda: Calls(channel_norm, conv(2, 4), nn.LayerNorm(4)),
    "softmax over channels": lambda: nn.Sequential(conv(2, 4), nn.Softmax(dim=1), conv(4, 2)),
    "dropout": lambda: nn.Sequential(conv(2, 4), nn.Dropout3d(0.4), nn.Dropout(), conv(4, 2)).eval(),
    "reflect": lambda: Residual(conv(padding_mode="reflect"), conv(kernel=5, padding_mode="reflect")),
    "replicate": lambda: Residual(conv(padding_mode="replicate"), conv(padding_mode="replicate")),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(conv()),
}  # fmt: skip


SLOW = {
    "U-Net, 2 levels",
    "U-Net, 3 levels",
    "U-Net, factor 3",
    "U-Net, factor 3, trilinear",
    "U-Net, factor 5",
    "U-Net, trilinear, average",
}
every_network = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in EXACT]
)


def positive(network):
    """Copy a network in double precision, with random positive weights, so that no dependence is hidden."""
    network = copy.deepcopy(network).double()
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data.uniform_(0.5, 1.5, generator=generator)
        parameter.data /= max(1, parameter[0].numel()) if parameter.ndim > 1 else 1
    return network


def channels(network):
    return {"kernel 5, one channel": 1, "groups": 4}.get(network, 2)


def line(n_channels, axis, size, stride):
    """Return a volume of ``size`` along ``axis`` and about three voxels along the others."""
    shape = [1, n_channels, *(-(-3 // s) * s for s in stride)]
    shape[2 + axis] = size
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) + 0.5


def farthest(network, x, axis, n_phases):
    """Change one plane at a time, for each phase of the stride, and see how far away the output changes."""
    size, distance = x.shape[2 + axis], 0
    with torch.no_grad():
        before = network(x)
        for plane in range(size // 2, size // 2 + n_phases):
            for change in (3.0, 1e3, -0.3):
                other = x.clone()
                other.select(2 + axis, plane).add_(change)
                moved = (network(other) != before).movedim(2 + axis, 0).flatten(1).any(1).nonzero().flatten()
                assert not len(moved) or 0 < moved[0] <= moved[-1] < size - 1, "the volume of the test is too short"
                distance = max([distance, *(abs(plane - int(i)) for i in moved)])
    return distance


@every_network
def test_radius_is_the_farthest_voxel_that_a_change_reaches(name):
    network = EXACT[name]()
    found = reach(network)
    for axis in range(3):
        size = -(-(4 * found.radius[axis] + 24) // found.stride[axis]) * found.stride[axis]
        x = line(channels(name), axis, size, found.stride)
        assert found.radius[axis] == farthest(positive(network), x, axis, found.stride[axis])


@every_network
def test_windows_with_the_halo_equal_the_whole_volume(name):
    network = EXACT[name]()
    found, plain = reach(network), positive(network)
    for axis in range(3):
        assert worst_window(plain, channels(name), axis, found.halo[axis], found.stride) < 1e-11


@every_network
def test_a_halo_one_stride_shorter_is_not_exact(name):
    network = EXACT[name]()
    found, plain = reach(network), positive(network)
    for axis in range(3):
        shorter = found.halo[axis] - found.stride[axis]
        if shorter >= 0:
            assert worst_window(plain, channels(name), axis, shorter, found.stride) > 1e-11


def worst_window(network, n_channels, axis, halo, stride):
    """Return the largest relative error of windows at the start, in the middle and at the end of a volume."""
    step = stride[axis]
    length = 2 * halo + 4 * step
    x = line(n_channels, axis, length + 5 * step, stride)
    worst = 0.0
    with torch.no_grad():
        whole = network(x)
        for first in (0, step, 4 * step, 5 * step):
            start, stop = halo if first else 0, length if first == 5 * step else length - halo
            got = network(x.narrow(2 + axis, first, length)).narrow(2 + axis, start, stop - start)
            expected = whole.narrow(2 + axis, first + start, stop - start)
            worst = max(worst, float((got - expected).abs().max() / expected.abs().max()))
    return worst


def squeeze_excite(x, layer):
    h = layer(x)
    return h * torch.sigmoid(h.mean((2, 3, 4), keepdim=True))


def with_coordinates(x, layer):
    ramp = torch.linspace(-1, 1, x.shape[3], dtype=x.dtype)[:, None].expand_as(x[:, :1])
    return layer(torch.cat([x, ramp], dim=1))


class StretchedMap(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Parameter(torch.zeros(1, 2, 4, 4, 4))

    def forward(self, x):
        return x + F.interpolate(self.map, size=x.shape[2:])


def self_attention(x, layer):
    tokens = x.flatten(2).transpose(1, 2)
    return layer(tokens, tokens, tokens)[0].transpose(1, 2).unflatten(2, x.shape[2:])


def by_fft(x):
    return torch.fft.ifftn(torch.fft.fftn(x, dim=(2, 3, 4)) * 2, dim=(2, 3, 4)).real


REFUSED = {
    "batch norm": (lambda: nn.Sequential(conv(2, 4), nn.BatchNorm3d(4), conv(4, 2)), r"1 \(BatchNorm3d\).*eval\(\)"),
    "instance norm": (lambda: Residual(conv(), nn.InstanceNorm3d(2)), r"layers\.1 \(InstanceNorm3d\).*statistics"),
    "instance norm, eval": (lambda: Residual(nn.InstanceNorm3d(2)).eval(), r"InstanceNorm3d.*statistics"),
    "group norm": (lambda: nn.Sequential(conv(2, 4), nn.GroupNorm(2, 4), conv(4, 2)), r"GroupNorm.*statistics"),
    "layer norm over space": (lambda: Calls(lambda x: F.layer_norm(x, x.shape[2:])), "layer_norm.*statistics"),
    "normalize": (lambda: Calls(lambda x: F.normalize(x, dim=2)), "normalize.*statistics"),
    "standard deviation": (lambda: Calls(lambda x: x / x.std((2, 3, 4), keepdim=True)), "std.*statistics"),
    "squeeze and excite": (lambda: Calls(squeeze_excite, conv()), r"forward \(Calls\).*mean.*whole volume"),
    "mean": (lambda: Calls(lambda x: x - x.mean()), "mean.*whole volume"),
    "maximum": (lambda: Calls(lambda x: x / x.amax((2, 3, 4), keepdim=True)), "amax.*whole volume"),
    "global pooling": (lambda: Calls(lambda x, p: x * p(x), nn.AdaptiveAvgPool3d(1)), r"\(AdaptiveAvgPool3d\).*pools"),
    "adaptive pooling": (lambda: Calls(lambda x: x - F.adaptive_max_pool3d(x, 1)), "adaptive_max_pool3d.*pools"),
    "pooling to 4": (
        lambda: Calls(lambda x, p: x + F.interpolate(p(x), size=x.shape[2:]), nn.AdaptiveAvgPool3d(4)),
        r"layers\.0 \(AdaptiveAvgPool3d\).*pools",
    ),
    "softmax over space": (lambda: Calls(lambda x: x.flatten(2).softmax(2).view_as(x)), "softmax.*attends"),
    "attention": (
        lambda: Calls(self_attention, nn.MultiheadAttention(2, 1, batch_first=True)),
        r"layers\.0 \(MultiheadAttention\).*attends",
    ),
    "align_corners": (
        lambda: nn.Sequential(nn.AvgPool3d(2), nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True)),
        r"1 \(Upsample\).*align_corners=False",
    ),
    "circular": (lambda: Residual(conv(padding_mode="circular")), r"layers\.0 \(Conv3d\).*far side.*replicate"),
    "circular, functional": (
        lambda: Calls(lambda x, a: a(F.pad(x, (1,) * 6, "circular")), conv(padding=0)),
        "far side",
    ),
    "flip": (lambda: Calls(lambda x: x + x.flip(3)), "flip.*moves"),
    "roll": (lambda: Calls(lambda x: x + x.roll(1, 4)), "roll.*moves"),
    "cumulative sum": (lambda: Calls(lambda x: x.cumsum(2)), "cumsum.*runs along"),
    "fft": (lambda: Calls(by_fft), "fft.*transforms"),
    "coordinates": (lambda: Calls(with_coordinates, conv(3, 2)), "linspace.*place.*input channels"),
    "stretched map": (StretchedMap, "interpolate.*place"),
    "map of fixed size": (lambda: Calls(lambda x, a: x + a.weight[:1], conv(2, 2, 8)), r"Calls\).*map of fixed size"),
    "size": (lambda: Calls(lambda x: x * x.shape[2]), "depends on the place"),
    "noise": (lambda: Calls(lambda x: x + torch.randn_like(x)), "randn_like.*random"),
    "hidden maximum": (lambda: Calls(lambda x: torch.where(x < x.amax(), x, 0 * x)), "whole volume"),
    "gate by a mean": (lambda: Calls(lambda x: torch.where(x.mean() > 0, x, 2 * x)), "mean.*whole volume"),
    "sign of a mean": (lambda: Calls(lambda x: x * torch.sign(x.mean())), "mean.*whole volume"),
    "copied sign": (lambda: Calls(lambda x: torch.copysign(x, x.mean())), "mean.*whole volume"),
    "sign bit": (lambda: Calls(lambda x: x * torch.signbit(x.mean()).to(x)), "mean.*whole volume"),
    "lesser of two": (lambda: Calls(lambda x: torch.fmin(x, 9 * x.mean())), "mean.*whole volume"),
    "step": (lambda: Calls(lambda x: x * torch.heaviside(x.mean(), x.new_zeros(()))), "mean.*whole volume"),
    "mean as an integer": (lambda: Calls(lambda x: x * (1 + (5 * x.mean()).int())), "mean.*whole volume"),
    "mean as a truth": (lambda: Calls(lambda x: x * F.relu(x.mean()).bool()), "mean.*whole volume"),
    "hidden NaN": (lambda: Calls(lambda x: x - x.mean().nan_to_num(0.0)), "mean.*whole volume"),
    "any": (lambda: Calls(lambda x: x * (1 + (x < 0).any())), "any.*whole volume"),
    "count": (lambda: Calls(lambda x: x * (x < 0).sum()), "sum.*whole volume"),
    "place of the maximum": (lambda: Calls(lambda x: x * x.flatten(2).argmax(2)[:, :, None, None, None]), "argmax"),
    "if": (lambda: Calls(lambda x: x if x.mean() > 0 else 2 * x), r"Calls\).*__bool__.*decision on the data"),
    "float": (lambda: Calls(lambda x: x * (float(x.sum()) > 0)), "__float__.*decision on the data"),
    "if equal": (lambda: Calls(lambda x: x if torch.equal(x.relu(), x) else 2 * x), "equal.*decision on the data"),
    "number of negatives": (lambda: Calls(lambda x: x * len((x < 0).nonzero())), "nonzero.*decision on the data"),
    "if not still": (lambda: Calls(lambda x: x if x.std() < 0.5 else x / 2), "__bool__.*decision on the data"),
    "row after row": (
        lambda: Calls(lambda x, a: a(x.flatten(2)).view_as(x), nn.Conv1d(2, 2, 3, padding=1)),
        "depends on the place",
    ),
    "swapped sizes": (
        lambda: Calls(lambda x: x + x.reshape(*x.shape[:2], *x.shape[:1:-1]).transpose(2, 4)),
        "farther than|depends on the place",
    ),
    "a turn if square": (
        lambda: Calls(lambda x: x.transpose(2, 3) if x.shape[2] == x.shape[3] else x),
        "all axes at once.*two sizes are equal",
    ),
    "number of windows": (lambda: Calls(lambda x: x * x.shape[0]), "all axes at once.*number of windows"),
    "no padding": (lambda: conv(padding=0), "same spatial shape"),
    "stride not undone": (lambda: conv(stride=2), "same spatial shape"),
    "two outputs": (lambda: Calls(lambda x: (x, x)), "tuple"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_never_be_exact_is_refused_by_name(name):
    build, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        reach(build())


def shift(x, z=0, y=0, x_=0):
    return F.pad(x, (x_, -x_, y, -y, z, -z))


def nearest(x, layer, book):
    """Replace each voxel's channels by the nearest entry of a book."""
    distance = (layer(x).movedim(1, -1).unsqueeze(-2) - book.weight).square().sum(-1)
    return book(distance.argmin(-1)).movedim(-1, 1)


def overwrite(x, layer):
    y = 1 * x
    y[layer(x) < 0] = 0
    return y


BY_WAY_OF_ANOTHER_AXIS = {
    "dilated even kernel": (lambda: conv(kernel=(3, 3, 2), dilation=(1, 1, 2), padding=1), (1, 1, 1)),
    "dilated even kernels": (lambda: conv(kernel=(3, 3, 4), dilation=2, padding="same"), (2, 2, 3)),
    "blind spot": (lambda: Calls(lambda x, a, b: b(shift(a(x), y=1)), conv(), conv()), (2, 3, 2)),
    "diagonal": (lambda: Calls(lambda x: x + shift(x, 1, 1)), (1, 1, 0)),
    "far away": (lambda: conv(kernel=(3, 3, 2), dilation=(1, 1, 14), padding=(1, 1, 7)), (1, 1, 7)),
}
THROUGH_GATES = {
    "comparison": (lambda: Calls(lambda x: torch.where(shift(x, 3) > 2, x, torch.zeros_like(x))), (3, 0, 0)),
    "gate": (lambda: Calls(lambda x, a: x * (a(x) > 0), conv()), (1, 1, 1)),
    "choice": (lambda: Calls(lambda x, a: torch.where(a(x) > 0, x, x / 9), conv()), (1, 1, 1)),
    "choice of the far": (lambda: Calls(lambda x: torch.where(x > 9, shift(x, 2), x)), (2, 0, 0)),
    "filled mask": (lambda: Calls(lambda x, a: x.masked_fill(a(x) < 0, 0.0), conv()), (1, 1, 1)),
    "overwritten": (lambda: Calls(overwrite, conv()), (1, 1, 1)),
    "rounded gate": (lambda: Calls(lambda x, a: x * (torch.sigmoid(a(x)) > 0.5), conv()), (1, 1, 1)),
    "gate of two": (lambda: Calls(lambda x, a: x * ((a(x) > 0) & ~(shift(x, 0, 2) < 1)), conv()), (1, 2, 1)),
    "any in a row": (lambda: Calls(lambda x, a: x * (a(x) > 0).any(1, keepdim=True), conv()), (1, 1, 1)),
    "sign": (lambda: Calls(lambda x, a, b: b(torch.sign(a(x))), conv(), conv(kernel=1)), (1, 1, 1)),
    "sign, then kernel 3": (lambda: Calls(lambda x, a, b: x + b(torch.sign(a(x))), conv(), conv()), (2, 2, 2)),
    "mask, then kernel 5": (lambda: Calls(lambda x, a: a((x > 0).to(x)), conv(kernel=5)), (2, 2, 2)),
    "integers": (lambda: Calls(lambda x, a, b: b((9 * a(x)).int().to(x)), conv(), conv()), (2, 2, 2)),
    "greater of two": (lambda: Calls(lambda x: torch.fmax(x, F.avg_pool3d(x, 5, 1, 2))), (2, 2, 2)),
    "book": (lambda: Calls(nearest, conv(), nn.Embedding(8, 2)), (1, 1, 1)),
}
HIDDEN = BY_WAY_OF_ANOTHER_AXIS | THROUGH_GATES


@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_dependence_is_found(name):
    build, radius = HIDDEN[name]
    network = build().double()
    found = reach(network, n_channels=2)
    assert (found.radius, found.halo) == (radius, radius)
    x = torch.randn(2, 17, 18, 19, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(apply_blockwise(network, x, 4), network(x[None])[0], rtol=1e-10, atol=1e-10)


def test_channels_may_be_taken_in_any_order_on_the_way():
    network = Calls(lambda x: shift(shift(x, 2)[:, [1, 0]], -2))
    assert reach(network).halo == (2, 0, 0)


def test_a_mask_that_is_always_the_same_hides_what_it_covers():
    mask = torch.tensor([True, False]).reshape(2, 1, 1, 1)
    covered = Calls(lambda x: torch.where(mask, x, shift(x, 3))[:, :1])
    shown = Calls(lambda x: torch.where(mask, x, shift(x, 3))[:, 1:])
    assert [reach(network, n_channels=2).radius[0] for network in (covered, shown)] == [0, 3]


def test_a_shift_undone_by_a_second_shift_still_needs_its_halo():
    network = nn.Sequential(nn.ConstantPad3d((2, -2) * 3, 0.0), nn.ConstantPad3d((-2, 2) * 3, 0.0))
    assert reach(network).halo == (2, 2, 2)
    assert worst_window(network, 2, 0, 1, (1, 1, 1)) > 0
    assert worst_window(network, 2, 0, 2, (1, 1, 1)) == 0


def test_the_network_stays_as_it_is():
    network = nn.Sequential(conv(2, 4), nn.BatchNorm3d(4), nn.Dropout(), conv(4, 2))
    network[1].eval()
    network[0].bias.grad = torch.ones(4)
    state = copy.deepcopy(network.state_dict())
    random, flags = torch.get_rng_state(), [module.training for module in network.modules()]
    reach(network)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert [module.training for module in network.modules()] == flags
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
    assert torch.equal(network[0].bias.grad, torch.ones(4))
    assert all(p.requires_grad and p.dtype == torch.float32 for p in network.parameters())


def test_a_new_layer_is_seen():
    network = nn.Sequential(conv())
    assert reach(network).radius == (1, 1, 1)
    network.append(conv())
    assert reach(network).radius == (2, 2, 2)


def test_a_changed_layer_is_seen():
    network = nn.Sequential(conv())
    reach(network)
    network[0].dilation = network[0].padding = (2, 2, 2)
    assert reach(network).radius == (2, 2, 2)


class Functional(nn.Module):
    """A convolution whose settings and weights are its own affair."""

    def __init__(self):
        super().__init__()
        self.settings, self.activation = {"dilation": [1]}, F.silu
        self.register_buffer("kernel", torch.ones(2, 1, 3, 3, 3))

    def forward(self, x):
        dilation = self.settings["dilation"][0]
        return self.activation(F.conv3d(x, self.kernel, padding="same", dilation=dilation, groups=2))


def blur(x):
    return F.avg_pool3d(x, 5, 1, 2)


def patch_forward(network):
    forward = network.forward
    network.forward = lambda x: blur(forward(x))


@pytest.mark.parametrize(
    "change",
    [
        lambda network: network.settings["dilation"].__setitem__(0, 3),
        lambda network: setattr(network, "kernel", torch.ones(2, 1, 7, 7, 7)),
        lambda network: setattr(network, "activation", blur),
        lambda network: network.register_forward_pre_hook(lambda module, inputs: (blur(inputs[0]),)),
        lambda network: network.register_forward_hook(lambda module, inputs, output: blur(output)),
        patch_forward,
    ],
    ids=["list", "buffer", "function", "hook before", "hook after", "forward"],
)
def test_any_other_change_is_seen(change):
    network = Functional()
    assert reach(network, n_channels=2).radius == (1, 1, 1)
    change(network)
    assert reach(network, n_channels=2).radius == (3, 3, 3)


def test_a_switch_to_training_mode_is_seen():
    network = nn.Sequential(conv(), nn.BatchNorm3d(2)).eval()
    assert reach(network).radius == (1, 1, 1)
    with pytest.raises(ValueError, match="BatchNorm3d"):
        reach(network.train())


class Counting(nn.Conv3d):
    n_calls = 0

    def forward(self, x):
        self.n_calls += 1
        return super().forward(x)


def test_the_second_call_takes_the_answer_of_the_first():
    network = Counting(2, 2, 3, padding=1)
    first = reach(network)
    network(torch.zeros(1, 2, 4, 4, 4))
    assert network.n_calls == 1
    assert reach(network) is first


def test_a_network_without_a_convolution_is_probed_with_the_given_channels():
    network = Calls(lambda x: slices(x, lambda s: F.avg_pool2d(s, 3, 1, 1)) + x[:, [2, 1, 0, 3, 4]])
    assert reach(network, n_channels=5).radius == (0, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_precision_will_do(dtype):
    assert reach(Residual(conv(), nn.SiLU(), conv()).to(dtype)).radius == (2, 2, 2)


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(1, 1, 3, padding=1, dtype=torch.complex64)
        self.linear = nn.Linear(1, 1, dtype=torch.complex64)
        self.phase = nn.Parameter(torch.tensor(1j))

    def forward(self, x):
        z = self.conv(torch.complex(*x.chunk(2, dim=1))) * self.phase
        return torch.view_as_real(self.linear(z.movedim(1, -1)).squeeze(-1)).movedim(-1, 1)


def test_complex_layers_stay_complex():
    network = Complex()
    assert reach(network, n_channels=2).radius == (1, 1, 1)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.complex64}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_conversion_to_the_precision_of_a_layer_is_no_obstacle(dtype):
    norm = lambda x, a, n: n(a(x).to(dtype).movedim(1, -1)).movedim(-1, 1).to(x.dtype)  # noqa: E731
    network = Calls(norm, conv(2, 4), nn.LayerNorm(4, dtype=dtype))
    assert reach(network).radius == (1, 1, 1)


def test_an_error_is_told_for_the_channels_that_the_first_convolution_takes():
    with pytest.raises(ValueError, match=r"\(2, 2, 6, 6, 6\).*Pad"):
        reach(conv(5, 2, padding=0))


def test_the_surroundings_of_the_call_do_not_matter():
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert reach(conv()).radius == (1, 1, 1)
    network = nn.Sequential(conv(), conv())
    with torch.device("meta"):
        assert reach(network).radius == (2, 2, 2)


def test_a_network_without_memory_can_be_probed():
    with torch.device("meta"):
        network = nn.Sequential(conv(), nn.BatchNorm3d(2), nn.PReLU(), conv()).eval()
    assert reach(network).radius == (2, 2, 2)
    assert all(value.is_meta for value in network.state_dict().values())


@pytest.mark.slow
def test_a_network_of_hundreds_of_channels_is_probed_without_its_weights():
    with torch.device("meta"):
        wide = Residual(conv(2, 400), nn.SiLU(), *(conv(400, 400) for _ in range(5)), conv(400, 2))
    assert reach(wide).radius == (7, 7, 7)


def test_explain_lists_the_layers_that_widen_the_reach():
    text = reach(UNet(1)).explain()
    assert "radius" in text
    assert "pool (MaxPool3d): kernel (2, 2, 2), stride (2, 2, 2)" in text
    assert "up (Upsample): nearest resampling by (2, 2, 2)" in text


@pytest.mark.filterwarnings("ignore")  # of torch: all three are deprecated or new there
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: torch.jit.script(conv()), r"torch\.jit"),
        (lambda: nn.LazyConv3d(2, 3, padding=1), "lazy layers"),
        (lambda: nn.utils.weight_norm(conv()), "parametrizations"),
    ],
    ids=["jit", "lazy", "weight norm"],
)
def test_what_cannot_be_watched_is_refused_with_what_to_do(build, message):
    with pytest.raises(ValueError, match=message):
        reach(build())


def test_what_is_not_a_module_is_refused():
    with pytest.raises(TypeError, match="function"):
        reach(lambda x: x)
