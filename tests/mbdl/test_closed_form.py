"""The sums of the closed form against the trace of the very step."""

import itertools
import random
from dataclasses import replace
from math import prod

import pytest
import torch
from torch import nn

from blockkit.blockwise.reach import reach
from blockkit.mbdl.closed_form import step_bytes, work_factor
from blockkit.mbdl.footprint import Case, blocks_of, predict_run
from blockkit.mbdl.network_bytes import PRECISIONS, computing_in, network_bytes, residual_cnn_bytes, traced_bytes
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.unrolled import UnrolledNetwork

WITHIN = 0.03


class SmallUNet(nn.Module):
    """Another network than the house's: two scales, a skip connection, ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv3d(2, 6, 3, padding=1), nn.Conv3d(12, 2, 3, padding=1)
        self.down, self.up = nn.Conv3d(6, 12, 2, stride=2), nn.ConvTranspose3d(12, 6, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        high = torch.relu(self.first(x))
        low = self.up(torch.relu(self.down(high)))
        return self.last(torch.cat([high, low], dim=1))


NETWORKS = {
    "thin": lambda: ResidualCNN(6, 3),
    "deep": lambda: ResidualCNN(16, 6),
    "U-Net": SmallUNet,
    "sees gradient": lambda: ResidualCNN(6, 3, sees_gradient=True),
    "strided": lambda: ResidualCNN(12, 3, downsample=2),
}
SMALL = Case((40, 28, 36), 4, 20_000)
BLOCK = {"block_shape": (16, 14, 12)}
SETTINGS = {
    "naive": ("thin", SMALL, {}),
    "blocks": ("thin", SMALL, BLOCK),
    "one unroll": ("thin", SMALL, {**BLOCK, "n_unrolls": 1}),
    "one unroll, naive": ("deep", SMALL, {"n_unrolls": 1}),
    "one block": ("deep", SMALL, {"block_shape": (40, 28, 36)}),
    "deep": ("deep", SMALL, BLOCK),
    "reconstruction": ("deep", replace(SMALL, training=False), BLOCK),
    "reconstruction, whole": ("deep", replace(SMALL, training=False), {}),
    "coils together": ("thin", replace(SMALL, coils_at_once=3), BLOCK),
    "all coils together": ("thin", replace(SMALL, n_coils=12, coils_at_once=40, training=False), BLOCK),
    "small maps": ("thin", replace(SMALL, interpolated_maps=True, coils_at_once=2), BLOCK),
    "disk": ("thin", SMALL, {**BLOCK, "offload": "disk"}),
    "kept": ("thin", SMALL, {"block_shape": (20, 28, 36), "recompute": False}),
    "half": ("deep", SMALL, {**BLOCK, "precision": "half"}),
    "half, naive": ("deep", SMALL, {"precision": "half"}),
    "double": ("thin", replace(SMALL, dtype=torch.complex128), {**BLOCK, "precision": "double"}),
    "U-Net": ("U-Net", replace(SMALL, image_shape=(39, 28, 35)), BLOCK),
    "U-Net, naive": ("U-Net", SMALL, {}),
    "sees gradient": ("sees gradient", SMALL, BLOCK),
    "sees gradient, disk": ("sees gradient", SMALL, {**BLOCK, "offload": "disk"}),
    "sees gradient, one unroll": ("sees gradient", SMALL, {"n_unrolls": 1}),
    "sees gradient, naive": ("sees gradient", SMALL, {}),
    "strided": ("strided", replace(SMALL, image_shape=(41, 28, 33)), BLOCK),
    "the paper's size": ("deep", Case((300, 200, 300), 8, 9_000_000), {"block_shape": (100, 100, 100)}),
}


def both(of_network, case, n_unrolls=3, precision="single", **options):
    """Return what the closed form says and what the trace counts."""
    torch.manual_seed(0)
    network = NETWORKS[of_network]()
    said = step_bytes(network_bytes(network, precision), case, n_unrolls, **options)
    model = UnrolledNetwork(network, n_unrolls, **options)
    model = model.double() if precision == "double" else model
    with computing_in(precision):
        return said, predict_run(model, case)


@pytest.mark.parametrize("name", SETTINGS)
def test_the_sums_are_within_three_per_cent_of_the_trace(name):
    of_network, case, options = SETTINGS[name]
    said, traced = both(of_network, case, **options)
    assert said.bytes == pytest.approx(traced.bytes, rel=WITHIN)
    assert sum(said.parts.values()) == said.bytes
    for part in said.parts | traced.parts:
        assert abs(said.parts.get(part, 0) - traced.parts.get(part, 0)) <= 2 * WITHIN * traced.bytes, part


def grid(n):
    """Draw settings from all combinations of options, always the same ones."""
    draw = random.Random(0)
    steps = [{}, {**BLOCK}, {**BLOCK, "offload": "disk"}, {"block_shape": (20, 28, 20), "recompute": False}]
    axes = itertools.product(
        NETWORKS, steps, (1, 2, 5), PRECISIONS, (True, False), (True, False), (1, 2, 5), ((40, 28, 36), (63, 48, 31))
    )
    for of_network, options, n_unrolls, precision, training, small_maps, coils_at_once, shape in draw.sample(
        list(axes), n
    ):
        dtype = torch.complex128 if precision == "double" else torch.complex64
        case = Case(shape, 5, draw.choice((2_000, 60_000)), training, small_maps, coils_at_once, dtype=dtype)
        yield of_network, case, {**options, "n_unrolls": n_unrolls, "precision": precision}


@pytest.mark.slow
@pytest.mark.parametrize("setting", list(grid(150)), ids=str)
def test_the_sums_are_within_three_per_cent_on_a_large_grid(setting):
    of_network, case, options = setting
    said, traced = both(of_network, case, **options)
    assert said.bytes == pytest.approx(traced.bytes, rel=WITHIN)


@pytest.mark.parametrize("sizes", [(1, 2), (16, 5)])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_formula_of_a_residual_cnn_is_what_a_trace_finds(sizes, precision):
    formula, traced = residual_cnn_bytes(*sizes, precision), traced_bytes(ResidualCNN(*sizes), precision)
    assert vars(formula) == {name: pytest.approx(value, rel=1e-6) for name, value in vars(traced).items()}


def test_an_own_network_says_how_far_it_sees():
    found, seen = network_bytes(SmallUNet()), reach(SmallUNet(), n_channels=2)
    assert (found.halo, found.stride) == (seen.halo, seen.stride)
    assert found.stride == (2, 2, 2)


def test_the_work_is_that_of_all_windows_and_a_third_more_to_recompute():
    network, case, block = SmallUNet(), Case((61, 50, 70), 6, 20_000), (24, 26, 18)
    blocks = blocks_of(network, case.image_shape, block)
    windows = sum(prod(s.stop - s.start for s in b.window) for b in blocks)
    found = network_bytes(network)
    assert work_factor(found, case, block, recompute=False) == pytest.approx(windows / (62 * 50 * 70))
    assert work_factor(found, case, block) == pytest.approx(4 / 3 * windows / (62 * 50 * 70))
    assert work_factor(found, replace(case, training=False), block) == pytest.approx(windows / (62 * 50 * 70))
    assert work_factor(found, case, None) == 1


@pytest.mark.parametrize(
    ("case", "options"),
    [
        (replace(SMALL, n_held_out=100), BLOCK),
        (replace(SMALL, normal="nufft"), BLOCK),
        (replace(SMALL, off_resonance=True), BLOCK),
        (SMALL, {"offload": "disk"}),
        (SMALL, {**BLOCK, "offload": "disk", "recompute": False}),
    ],
)
def test_what_it_cannot_sum_it_refuses(case, options):
    with pytest.raises(ValueError, match="predict_run traces any step"):
        step_bytes(residual_cnn_bytes(6, 3), case, 3, **options)


def test_a_wrong_size_of_a_network_is_named():
    with pytest.raises(ValueError, match="n_layers is 1, expected at least 2"):
        residual_cnn_bytes(8, 1)
    with pytest.raises(ValueError, match="precision is 'quarter', expected one of 'single', 'half', 'double'"):
        residual_cnn_bytes(8, 3, "quarter")
