from dataclasses import replace
from itertools import pairwise
from math import prod

import pytest
import torch
from torch import nn

from blockkit.blockwise.memory import measure_peak
from blockkit.blockwise.resident import free_bytes
from blockkit.data.simulate import simulate_scan
from blockkit.mbdl import footprint, room
from blockkit.mbdl.footprint import PARTS, Case, predict_run, run_from_nothing
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.planner import candidates, plan
from blockkit.mbdl.training import fit
from blockkit.mbdl.unrolled import UnrolledNetwork

NUMBERS = 64  # bytes: single numbers that real tensors bring along and fake ones do not

MODELS = {
    "naive": {},
    "blocks": {"block_shape": (8, 10, 8)},
    "kept": {"block_shape": (8, 10, 8), "recompute": False},
    "own weights": {"block_shape": (8, 10, 8), "shared_weights": False},
    "disk": {"block_shape": (12, 8, 6), "offload": "disk"},
    "cg": {"block_shape": (8, 8, 8), "data_term": "cg"},
    "sees gradient": {"block_shape": (8, 10, 8), "shared_weights": False},
}
CASES = {
    "few coils": Case((24, 20, 22), 2, 900),
    "many coils": Case((22, 26, 18), 7, 4000),
    "coils together": Case((22, 26, 18), 7, 4000, coils_at_once=3),
    "small maps": Case((24, 20, 30), 5, 900, interpolated_maps=True),
    "reconstruction": Case((24, 28, 22), 4, 900, training=False),
    "one slice": Case((1, 40, 36), 3, 2000),
    "double precision": Case((24, 20, 22), 2, 900, dtype=torch.complex128),
    "held out": Case((22, 26, 18), 5, 4000, n_held_out=1000),
    "held out, NUFFT normal": Case((22, 26, 18), 3, 900, n_held_out=225, normal="nufft", tolerance=1e-3),
    "NUFFT normal": Case((22, 26, 18), 3, 900, normal="nufft", tolerance=1e-3),
}


def make_network(of_model):
    return ResidualCNN(5, 3, sees_gradient=of_model == "sees gradient")


@pytest.mark.parametrize("of_case", CASES)
@pytest.mark.parametrize("of_model", MODELS)
@pytest.mark.parametrize("n_unrolls", [1, 4])
def test_the_prediction_is_the_counted_peak_to_the_byte(of_model, of_case, n_unrolls):
    case = CASES[of_case]
    model = UnrolledNetwork(make_network(of_model), n_unrolls, **MODELS[of_model])
    model = model.double() if case.dtype == torch.complex128 else model
    predicted = predict_run(model, case)
    assert all(p.grad is None for p in model.parameters())
    weights = sum(p.nbytes for p in model.parameters())
    with measure_peak() as counted:
        run_from_nothing(model, case)
    assert abs(predicted.bytes - counted.bytes - weights) <= NUMBERS
    assert sum(predicted.parts.values()) == predicted.bytes
    counted.parts["weights"] = counted.parts.get("weights", 0) + weights
    for name in predicted.parts | counted.parts:
        assert abs(predicted.parts.get(name, 0) - counted.parts.get(name, 0)) <= NUMBERS, name
    assert set(predicted.parts) <= set(PARTS) | {"other"}
    assert predicted.parts.get("other", 0) < 1000


def test_the_prediction_is_the_counted_peak_when_the_padded_grid_takes_several_slabs():
    case, model = Case((48, 40, 44), 2, 900), UnrolledNetwork(ResidualCNN(3, 2), 2, block_shape=(24, 20, 22))
    predicted = predict_run(model, case)
    with measure_peak() as counted:
        run_from_nothing(model, case)
    weights = sum(p.nbytes for p in model.parameters())
    assert abs(predicted.bytes - counted.bytes - weights) <= NUMBERS


def test_the_prediction_is_the_counted_peak_off_resonance():
    case = Case((14, 10, 12), 3, 900, off_resonance=True, n_held_out=225)
    model = UnrolledNetwork(ResidualCNN(3, 2), 2, block_shape=(7, 10, 12))
    predicted = predict_run(model, case)
    with measure_peak() as counted:
        run_from_nothing(model, case)
    weights = sum(p.nbytes for p in model.parameters())
    assert abs(predicted.bytes - counted.bytes - weights) <= 2 * NUMBERS  # and two tables of interpolators
    assert predicted.parts["nufft"] != predict_run(model, replace(case, off_resonance=False)).parts["nufft"]


@pytest.mark.parametrize("of_model", MODELS)
def test_the_prediction_is_the_counted_peak_in_half_precision(of_model):
    model, case = UnrolledNetwork(ResidualCNN(5, 3), 2, **MODELS[of_model]), CASES["few coils"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        predicted = predict_run(model, case)
        with measure_peak() as counted:
            run_from_nothing(model, case)
    weights = sum(p.nbytes for p in model.parameters())
    assert abs(predicted.bytes - counted.bytes - weights) <= NUMBERS
    full = predict_run(model, case)
    assert predicted.parts["windows" if "windows" in full.parts else "images"] < full.bytes


def test_calibration_adds_what_the_kernels_take_for_themselves():
    rate = footprint.scratch_rate(ResidualCNN(8, 4), torch.device("cpu"), training=True)
    assert 0 <= rate < 2000
    sizes = {**SIZES, "network": ResidualCNN(8, 4), "budget_gib": 0.5}
    counted, calibrated = plan((61, 50, 70), **sizes), plan((61, 50, 70), calibrate=True, **sizes)
    assert "scratch" not in counted.parts
    assert calibrated.n_bytes <= 0.5 * 2**30
    assert sum(calibrated.parts.values()) == calibrated.n_bytes


def test_calibration_itself_takes_little(monkeypatch):
    network, cpu = ResidualCNN(64, 3), torch.device("cpu")
    with measure_peak() as peak:
        footprint.scratch_rate(network, cpu, training=True)
    assert 2**20 < peak.bytes <= footprint.MOST_CALIBRATING
    monkeypatch.setattr(footprint, "MOST_CALIBRATING", 2**20)
    with measure_peak() as peak:
        assert footprint.scratch_rate(network, cpu, training=True) == 0
    assert peak.bytes < 2**21  # the windows themselves and the copy of the network


def test_calibration_leaves_everything_as_it_was():
    network = nn.Sequential(nn.Conv3d(2, 2, 3, padding=1), nn.BatchNorm3d(2), nn.Dropout(0.5)).train()
    network(torch.randn(1, 2, 6, 6, 6)).sum().backward()
    before = [value.clone() for value in (*network.buffers(), *(p.grad for p in network.parameters()))]
    random = torch.get_rng_state()
    footprint.scratch_rate(network, torch.device("cpu"), training=True)
    after = (*network.buffers(), *(p.grad for p in network.parameters()))
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    assert torch.equal(random, torch.get_rng_state())


def test_calibration_takes_networks_of_double_precision_and_such_that_see_everything():
    network = nn.Sequential(nn.Conv3d(2, 8, 3, padding=1), nn.InstanceNorm3d(8), nn.Conv3d(8, 2, 3, padding=1))
    assert footprint.scratch_rate(network.double(), torch.device("cpu"), training=True) >= 0


SIZES = {"n_coils": 6, "n_samples": 20_000, "n_unrolls": 4}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("network", [ResidualCNN(8, 4), ResidualCNN(12, 3, downsample=2)], ids=["plain", "strided"])
def test_the_largest_block_that_fits_is_found(network, training):
    shape = (61, 50, 70)
    totals, works = [], []
    for budget in (0.07, 0.15, 0.6):
        found = plan(shape, network=network, budget_gib=budget, training=training, **SIZES)
        assert found.n_bytes <= budget * 2**30
        assert sum(found.parts.values()) == found.n_bytes
        model = UnrolledNetwork(network, 4, block_shape=found.block_shape)
        case = Case(shape, 6, 20_000, training)
        assert predict_run(model, case).bytes == found.n_bytes
        blocks = candidates(shape, (2, 2, 2) if network.downsample == 2 else (1, 1, 1))
        place = blocks.index(found.block_shape)
        if place:
            model.block_shape = blocks[place - 1]
            assert predict_run(model, case).bytes > budget * 2**30
        totals.append(found.n_bytes)
        works.append(found.work)
    assert totals == sorted(totals)
    assert works == sorted(works, reverse=True)
    assert works[-1] == pytest.approx(4 / 3 if training else 1, rel=0.05)
    assert f"of {budget:g}" in str(found)


def test_candidates_go_from_the_whole_image_down_by_multiples_of_the_stride():
    blocks = candidates((61, 40, 90), (2, 2, 4))
    assert blocks[0] == (62, 40, 92)
    assert max(blocks[-1]) <= 16
    for larger, smaller in pairwise(blocks):
        assert prod(smaller) < prod(larger)
        assert sum(a != b for a, b in zip(larger, smaller, strict=True)) == 1
    assert all(n % s == 0 for block in blocks for n, s in zip(block, (2, 2, 4), strict=True))
    assert candidates((9, 5, 1), (1, 1, 1)) == [(9, 5, 1)]


def test_a_budget_that_cannot_work_says_what_is_missing_and_what_would_help():
    message = (
        r"budget_gib is 0.02, and even the smallest block takes 0.0\d+ GiB \(weights .*images .*\): 0.0\d+ GiB are "
        r'missing. What helps: offload="disk" saves 0.0\d+ GiB; interpolated_maps=True saves 0.0\d+ GiB; '
        r"training=False .* saves 0.0\d+ GiB"
    )
    with pytest.raises(ValueError, match=message):
        plan((61, 50, 70), network=ResidualCNN(8, 4), budget_gib=0.02, **SIZES)


@pytest.mark.long
def test_what_an_option_is_said_to_save_it_saves():
    sizes = {**SIZES, "n_unrolls": 8, "network": ResidualCNN(4, 3)}
    with pytest.raises(ValueError, match="What helps") as error:
        plan((61, 50, 70), budget_gib=0.01, **sizes)
    said = float(str(error.value).split('offload="disk" saves ')[1].split()[0])
    takes = []
    for offload in (None, "disk"):
        with pytest.raises(ValueError, match="even the smallest") as error:
            plan((61, 50, 70), budget_gib=0.01, offload=offload, **sizes)
        takes.append(float(str(error.value).split("smallest block takes ")[1].split()[0]))
    assert said == pytest.approx(takes[0] - takes[1], abs=1e-3)
    assert said == pytest.approx(16 * 61 * 50 * 70 * 8 / 2**30, rel=0.25)  # two images an unroll


def test_a_step_at_the_papers_size_is_planned_for_a_small_machine():
    naive = predict_run(UnrolledNetwork(ResidualCNN(32, 5), 6), Case((300, 200, 300), 8, 9_000_000))
    assert naive.bytes > 100 * 2**30
    found = plan((300, 200, 300), n_coils=8, n_samples=9_000_000, n_unrolls=6, network=ResidualCNN(32, 5), budget_gib=8)
    assert found.block_shape == (100, 100, 100)
    assert 4 * 2**30 < found.n_bytes <= 8 * 2**30


@pytest.mark.parametrize(
    ("of_model", "of_case"),
    [
        *((name, "few coils") for name in MODELS),
        *(("blocks", name) for name in ("coils together", "reconstruction", "double precision")),
    ],
)
def test_the_plan_of_a_whole_model_is_what_it_takes(of_model, of_case):
    case, model = CASES[of_case], UnrolledNetwork(make_network(of_model), 2, **MODELS[of_model])
    model = model.double() if of_case == "double precision" else model
    sizes = {"n_coils": case.n_coils, "n_samples": case.n_samples, "coils_at_once": case.coils_at_once}
    found = plan(case.image_shape, network=model, budget_gib=1, training=case.training, **sizes)
    peak = predict_run(model, case)
    assert (found.n_bytes, found.parts) == (peak.bytes, peak.parts)
    assert found.block_shape == (model.block_shape or case.image_shape)
    again = case.training and model.recompute and model.block_shape is not None
    assert (found.work >= 4 / 3) if again else (found.work == 1 or model.block_shape is not None)


def test_a_model_beyond_the_budget_says_what_its_smallest_block_would_save():
    model = UnrolledNetwork(ResidualCNN(8, 4), 2)
    sizes = {"n_coils": 6, "n_samples": 20_000}
    with pytest.raises(ValueError, match=r"the model takes .* What helps: the smallest block, .* saves 0\.") as error:
        plan((61, 50, 70), network=model, budget_gib=0.02, **sizes)
    said = float(str(error.value).split("recomputed in backward, saves ")[1].split()[0])
    block = candidates((61, 50, 70), (1, 1, 1))[-1]
    smallest = plan(
        (61, 50, 70), network=UnrolledNetwork(ResidualCNN(8, 4), 2, block_shape=block), budget_gib=1, **sizes
    )
    naive = plan((61, 50, 70), network=model, budget_gib=1, **sizes)
    assert said == pytest.approx((naive.n_bytes - smallest.n_bytes) / 2**30, rel=0.01)


@pytest.mark.parametrize(("name", "value"), [("n_unrolls", 3), ("offload", "disk")])
def test_what_a_whole_model_has_is_not_said_twice(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value!r}, but network is a whole model"):
        plan(
            (9, 9, 9),
            n_coils=1,
            n_samples=90,
            network=UnrolledNetwork(ResidualCNN(4, 2), 2),
            budget_gib=1,
            **{name: value},
        )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"image_shape": (9, 9)}, ValueError, "expected three"),
        ({"n_unrolls": None}, ValueError, "n_unrolls is None, expected a whole number"),
        ({"coils_at_once": 0}, ValueError, "coils_at_once is 0"),
        ({"n_coils": 0}, ValueError, "n_coils is 0"),
        ({"n_samples": -1}, ValueError, "n_samples is -1"),
        ({"budget_gib": "8 GB"}, TypeError, "budget_gib is '8 GB'"),
        ({"offload": "tape"}, ValueError, "offload is 'tape'"),
        ({"network": nn.Sequential(nn.Conv3d(2, 2, 3, padding=1), nn.InstanceNorm3d(2))}, ValueError, "InstanceNorm3d"),
    ],
)
def test_a_wrong_argument_is_named(change, error, message):
    arguments = {"image_shape": (20, 20, 20), "network": ResidualCNN(4, 3), "budget_gib": 1.0, **SIZES, **change}
    with pytest.raises(error, match=message):
        plan(arguments.pop("image_shape"), **arguments)


@pytest.fixture
def scan():
    image = torch.randn(40, 40, 40, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    return simulate_scan(image, (24, 24, 24), n_coils=2, n_spokes=60, seed=1)


def test_training_refuses_what_will_not_fit_and_names_a_block_that_does(scan, monkeypatch):
    model = UnrolledNetwork(ResidualCNN(24, 3), 3)
    free = 10 * 2**20
    monkeypatch.setattr(room, "free_bytes", lambda device: free)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        MemoryError, match=r"A training step by whole volumes takes 0.\d+ GiB .* 0.00977 GiB are"
    ) as error:
        fit(model, [scan], n_steps=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert "To start all the same: fit(..., check_memory=False)." in str(error.value)
    block = str(error.value).split("model.block_shape = (")[1].split(")")[0]
    model.block_shape = tuple(map(int, block.split(",")))
    assert len(fit(model, [scan], n_steps=2).losses) == 2
    model.block_shape = None
    assert len(fit(model, [scan], n_steps=2, check_memory=False).losses) == 2


def test_training_that_keeps_all_activations_is_told_to_recompute(scan, monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda device: 10 * 2**20)
    model = UnrolledNetwork(ResidualCNN(24, 3), 2, block_shape=(12, 12, 24), recompute=False)
    with pytest.raises(MemoryError, match=r"With model.recompute = True and model.block_shape = \(") as error:
        fit(model, [scan], n_steps=2)
    block = str(error.value).split("model.block_shape = (")[1].split(")")[0]
    model.recompute, model.block_shape = True, tuple(map(int, block.split(",")))
    assert len(fit(model, [scan], n_steps=1).losses) == 1


def test_with_no_room_at_all_it_says_so(scan, monkeypatch):
    monkeypatch.setattr(room, "free_bytes", lambda device: 1000)
    with pytest.raises(MemoryError, match=r'No block is small enough. Try offload="disk"'):
        fit(UnrolledNetwork(ResidualCNN(4, 3), 2), [scan], n_steps=1)


def test_free_memory_is_a_number_of_bytes_or_unknown():
    free = free_bytes(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
