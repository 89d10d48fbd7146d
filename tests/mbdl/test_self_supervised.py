"""Training without references: a scan is split in two, and one part of it is only for the loss."""

import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from blockkit.data.phantom import pulmonary_phantom
from blockkit.data.scan import Scan
from blockkit.data.simulate import simulate_scan
from blockkit.mbdl import room
from blockkit.mbdl.augmentation import mirrored
from blockkit.mbdl.data_consistency import prepare
from blockkit.mbdl.footprint import Case, predict_run
from blockkit.mbdl.held_out import HeldOut
from blockkit.mbdl.loss import training_loss
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.splitting import N_FOLDS, SplitScans, folds, held_out_error, number_readouts, split_scan
from blockkit.mbdl.training import fit
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import read_tensors, write_tensors
from blockkit.metrics import psnr
from blockkit.physics.coils import simulate_maps
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

SHAPE = (14, 12, 16)
N_SPOKES, N_READOUT = 43, 32


def make_scan(seed=0, noise=0.1):
    volume = pulmonary_phantom(tuple(3 * n // 2 for n in SHAPE), seed=seed)
    return simulate_scan(volume, SHAPE, n_coils=2, n_spokes=N_SPOKES, noise=noise, seed=seed)


SCANS = [make_scan(seed) for seed in range(3)]
UNREFERENCED = [replace(scan, reference=None) for scan in SCANS]


def make_model(**options):
    torch.manual_seed(1)
    return UnrolledNetwork(ResidualCNN(8, 3), 2, **options)


def relative(a, b):
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def states_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_half_of_the_spokes_are_dealt_whole_and_the_samples_of_the_others_one_by_one():
    fold = folds(SCANS[0], seed=3).view(N_SPOKES, N_READOUT)
    whole = (fold == fold[:, :1]).all(dim=1)
    pairs = whole[: N_SPOKES - 1].view(-1, 2)
    assert torch.equal(pairs.sum(dim=1), torch.ones(len(pairs), dtype=torch.int64))
    rounds = [*fold[whole, 0][:20].view(-1, N_FOLDS), *fold[~whole].view(-1, N_FOLDS)]
    assert all(sorted(hands.tolist()) == list(range(N_FOLDS)) for hands in rounds)


def test_the_seed_draws_the_folds():
    draws = [folds(SCANS[0], seed) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("fold", range(N_FOLDS))
def test_two_parts_of_a_scan_are_a_partition_of_its_samples(fold):
    scan = SCANS[0]
    kept, held_out = split_scan(scan, fold, seed=5)
    inside = folds(scan, 5) == fold
    for part, chosen in ((kept, ~inside), (held_out, inside)):
        assert torch.equal(part.kspace, scan.kspace[:, chosen])
        assert torch.equal(part.trajectory, scan.trajectory[chosen])
    assert kept.kspace.shape[1] + held_out.kspace.shape[1] == scan.kspace.shape[1]
    assert 0.2 < held_out.kspace.shape[1] / scan.kspace.shape[1] < 0.3


def scan_along(trajectory, image_shape):
    kspace = torch.ones(1, len(trajectory), dtype=torch.complex64)
    return Scan(kspace, trajectory, torch.ones(1, *image_shape, dtype=torch.complex64), (1.0, 1.0, 1.0))


def center_out(n_spokes, n_readout):
    """Return spokes from the center out, that start slowly, as a gradient does."""
    ends = radial_3d(n_spokes, 2, (32, 32, 32)).view(-1, 2, 3)[:, 0]
    times = torch.linspace(0, 1, n_readout)
    return (ends[:, None] * (times**1.3)[None, :, None]).reshape(-1, 3)


def spiral(n_arms, n_samples):
    t = torch.linspace(0, 1, n_samples)
    turn = 6 * torch.pi * t + torch.arange(n_arms)[:, None] * 2.4
    return torch.stack([torch.zeros_like(turn), 15 * t * turn.sin(), 15 * t * turn.cos()], dim=-1).reshape(-1, 3)


def lines(n_lines, n_readout):
    y, x = torch.meshgrid(torch.arange(n_lines) - n_lines // 2, torch.arange(n_readout) - n_readout // 2, indexing="ij")
    return torch.stack([torch.zeros_like(y), y, x], dim=-1).reshape(-1, 3).float()


@pytest.mark.parametrize(
    ("trajectory", "image_shape", "length"),
    [
        (radial_3d(50, 64, (48, 20, 32)), (48, 20, 32), 64),
        (radial_3d(30, 64, (1, 32, 32)), (1, 32, 32), 64),
        (center_out(40, 29), (32, 32, 32), 29),
        (spiral(12, 200), (1, 32, 32), 200),
        (lines(24, 32), (1, 32, 32), 32),
    ],
    ids=["flat volume", "one slice", "center out", "spiral", "Cartesian lines"],
)
def test_readouts_are_found_where_the_trajectory_jumps(trajectory, image_shape, length):
    numbers = number_readouts(scan_along(trajectory, image_shape))
    assert torch.equal(numbers, torch.arange(len(trajectory)) // length)


def test_readouts_may_have_different_lengths():
    spokes = radial_3d(3, 64, (32, 32, 32)).view(3, 64, 3)
    trajectory = torch.cat([spokes[0], spokes[1][10:], spokes[2][:50]])
    numbers = number_readouts(scan_along(trajectory, (32, 32, 32)))
    assert torch.bincount(numbers).tolist() == [64, 54, 50]


def splitting(scan, model, fold=0):
    """Return the data term and the target of one fold of a scan."""
    return SplitScans("scans", [scan], model).get(0, fold)


def test_held_out_samples_never_enter_the_data_term_but_the_loss():
    model, scan = make_model(), SCANS[0]
    nn.init.normal_(model.regularizers[0].layers[-1].weight, std=0.1)
    inside = folds(scan, 0) == 2
    other = scan.kspace.clone()
    other[:, inside] = 3 * other[:, inside].roll(7, dims=1)
    before, after = (splitting(replace(scan, kspace=kspace), model, 2) for kspace in (scan.kspace, other))
    for name in ("b", "start", "scale"):
        assert torch.equal(getattr(before[0], name), getattr(after[0], name))
    x = torch.randn(SHAPE, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(before[0].normal(x), after[0].normal(x))
    losses = [float(training_loss(model, *made)[1]) for made in (before, after)]
    assert abs(losses[1] / losses[0] - 1) > 0.05


def test_the_samples_of_the_data_term_never_enter_what_is_compared():
    scan = SCANS[0]
    inside = folds(scan, 0) == 1
    other = scan.kspace.clone()
    other[:, ~inside] *= 1 + torch.rand(other[:, ~inside].shape, generator=torch.Generator().manual_seed(1))
    (data, target), (changed_data, changed) = (
        splitting(replace(scan, kspace=kspace), make_model(), 1) for kspace in (scan.kspace, other)
    )
    assert relative(changed.kspace * changed_data.scale, target.kspace * data.scale) < 1e-6
    assert not torch.equal(changed_data.b, data.b)


def test_the_data_term_is_that_of_the_rest_alone():
    kept, _ = split_scan(SCANS[0], 3, seed=0)
    expected = prepare(Encoding(kept.trajectory, kept.maps), kept.kspace)
    data, _ = splitting(SCANS[0], make_model(), 3)
    assert torch.equal(data.b, expected.b)
    assert torch.equal(data.start, expected.start)


def test_the_image_behind_noiseless_samples_has_no_error():
    image = SCANS[0].reference
    A = Encoding(SCANS[0].trajectory, SCANS[0].maps)
    data, target = splitting(replace(SCANS[0], kspace=A(image)), make_model())
    assert float(target.relative_error(image / data.scale)) < 1e-3
    assert float(target.relative_error(torch.zeros_like(image))) == pytest.approx(1)


def test_the_error_on_the_smaller_part_of_a_scan_is_that_of_its_noise_for_the_image_behind_it():
    scan = SCANS[0]
    exact = Encoding(scan.trajectory, scan.maps)(scan.reference)
    clean, noisy = (split_scan(replace(scan, kspace=kspace))[1] for kspace in (exact, scan.kspace))
    assert held_out_error(scan.reference, clean) < 1e-3
    assert held_out_error(torch.zeros_like(scan.reference), noisy) == pytest.approx(1)
    assert 0.1 < held_out_error(scan.reference, noisy) < held_out_error(1.2 * scan.reference, noisy) < 1
    tiny = replace(noisy, kspace=noisy.kspace * 1e-25)
    error = held_out_error(scan.reference, noisy)
    assert held_out_error(scan.reference * 1e-25, tiny) == pytest.approx(error, rel=1e-4)
    with pytest.raises(ValueError, match="held_out has k-space that is zero everywhere"):
        held_out_error(scan.reference, replace(noisy, kspace=torch.zeros_like(noisy.kspace)))
    with pytest.raises(ValueError, match="image has shape"):
        held_out_error(scan.reference[1:], noisy)


def double_target():
    shape = (5, 4, 6)
    generator = torch.Generator().manual_seed(2)
    maps = simulate_maps(3, shape, seed=2).to(torch.complex128)
    trajectory = radial_3d(7, 8, shape).double()
    weights = torch.rand(len(trajectory), dtype=torch.float64, generator=generator)
    A = Encoding(trajectory, maps, weights=weights, tolerance=1e-9, normal="nufft")
    image = torch.randn(shape, dtype=torch.complex128, generator=generator)
    kspace = torch.randn(A.out_shape, dtype=torch.complex128, generator=generator)
    return prepare(A, kspace, "unweighted"), HeldOut(A, kspace), image


def test_the_error_is_the_weighted_norm_and_its_gradient_the_derivative():
    _, target, image = double_target()
    expected = torch.linalg.vector_norm(target.A(image) - target.kspace) / torch.linalg.vector_norm(target.kspace)
    assert float(target.relative_error(image)) == pytest.approx(float(expected), rel=1e-12)
    image.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: 0.3 * target.relative_error(x), image, fast_mode=True)


@pytest.mark.parametrize("seed", range(8))
def test_augmentation_leaves_the_held_out_error_as_it_is(seed):
    data, target, image = double_target()
    generator = torch.Generator().manual_seed(seed)
    changed, moved = mirrored(data, target, generator)
    _, changed_image = mirrored(data, image, torch.Generator().manual_seed(seed))
    assert not torch.allclose(changed_image, image)
    assert float(moved.relative_error(changed_image)) == pytest.approx(float(target.relative_error(image)), rel=1e-9)
    assert relative(changed.start.abs().flatten().sort().values, data.start.abs().flatten().sort().values) < 1e-12
    changed_image.requires_grad_()
    assert torch.autograd.gradcheck(moved.relative_error, changed_image, fast_mode=True)


def test_the_error_keeps_nothing_but_the_image_for_backward():
    _, target, image = double_target()
    image.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        target.relative_error(image)
    own = [t for t in kept if t.data_ptr() != image.data_ptr()]
    assert sum(t.numel() for t in own) == 2


@pytest.mark.parametrize(
    "options", [{"block_shape": (7, 6, 8)}, {"block_shape": (5, 12, 6), "offload": "disk"}, {"offload": "disk"}]
)
def test_memory_options_change_neither_loss_nor_gradients(options):
    steps = []
    for model in (make_model(), make_model(**options)):
        torch.manual_seed(4)
        nn.init.normal_(model.regularizers[0].layers[-1].weight, std=0.1)
        loss, _ = training_loss(model, *splitting(SCANS[0], model))
        loss.backward()
        steps.append((loss.detach(), [p.grad for p in model.parameters()]))
    (naive, gradients), (loss, my_gradients) = steps
    assert relative(loss, naive) < 1e-5
    for mine, gradient in zip(my_gradients, gradients, strict=True):
        assert relative(mine, gradient) < 1e-4


@pytest.mark.slow
def test_training_without_a_reference_brings_the_image_of_a_spoiled_model_nearer_to_the_hidden_one():
    scan, hidden = UNREFERENCED[0], SCANS[0].reference
    A, model = Encoding(scan.trajectory, scan.maps), make_model()
    nn.init.normal_(model.regularizers[0].layers[-1].weight, std=0.05)
    with torch.no_grad():
        before = psnr(model(A, scan.kspace), hidden)
    losses = fit(model, [scan], target="self", n_steps=40, learning_rate=3e-3).losses
    with torch.no_grad():
        after = psnr(model(A, scan.kspace), hidden)
    assert sum(losses[-4:]) < sum(losses[:4])
    assert after > before + 0.5


def test_validation_is_scored_on_held_out_samples_and_the_lowest_is_kept():
    model = make_model()
    history = fit(
        model, UNREFERENCED[:2], target="self", validation=UNREFERENCED[2:], n_steps=8, learning_rate=0.3, seed=7
    )
    assert [step for step, _ in history.validation] == [2, 4, 6, 8]
    data, target = splitting(SCANS[2], model)
    with torch.no_grad():
        score = float(target.relative_error(model.unroll(data) / data.scale))
    assert score == pytest.approx(min(value for _, value in history.validation), rel=1e-5)
    assert len({value for _, value in history.validation}) == 4


@pytest.mark.slow
def test_a_run_without_references_resumes_without_loss_also_augmented(tmp_path):
    how = {"target": "self", "validation": UNREFERENCED[2:], "n_steps": 7, "augment": True, "seed": 3}
    whole, resumed = make_model(), make_model()
    expected = fit(whole, UNREFERENCED, **how)

    class Stopping(list):
        reads = 0

        def __getitem__(self, i):
            self.reads += 1
            if self.reads == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(i)

    path = tmp_path / "run.safetensors"
    first = fit(make_model(), Stopping(UNREFERENCED), checkpoint=path, **how)
    assert first.interrupted
    second = fit(resumed, UNREFERENCED, checkpoint=path, **how)
    assert second.losses == expected.losses
    assert second.validation == expected.validation
    assert states_equal(whole, resumed)


def test_each_pass_holds_another_fold_out_and_keeps_what_it_made():
    scans = SplitScans("scans", UNREFERENCED[:2], make_model())
    made = [scans.get(1, epoch) for epoch in range(2 * N_FOLDS)]
    assert all(made[epoch] is made[epoch + N_FOLDS] for epoch in range(N_FOLDS))
    n_samples = sum(target.kspace.shape[1] for _, target in made[:N_FOLDS])
    assert n_samples == SCANS[1].kspace.shape[1]


def test_what_does_not_fit_the_cache_is_made_again():
    scans = SplitScans("scans", UNREFERENCED[:1], make_model())
    scans.most_bytes = 0
    first, second = scans.get(0), scans.get(0)
    assert first[0] is not second[0]
    assert torch.equal(first[0].b, second[0].b)
    assert scans.n_bytes == 0


def test_the_seed_of_a_run_changes_what_is_held_out():
    losses = [fit(make_model(), UNREFERENCED[:1], target="self", n_steps=2, seed=seed).losses for seed in (0, 1)]
    assert losses[0] != losses[1]


def test_a_checkpoint_belongs_to_its_target_and_an_older_one_to_references(tmp_path):
    path = tmp_path / "run.safetensors"
    expected = fit(make_model(), SCANS, n_steps=2, checkpoint=path).losses
    with pytest.raises(ValueError, match=r"belongs to another run.*'target': 'reference'.*'target': 'self'"):
        fit(make_model(), SCANS, target="self", n_steps=2, checkpoint=path)
    tensors, metadata = read_tensors(path)
    identity = json.loads(metadata["run"])
    assert identity.pop("target") == "reference"
    write_tensors(path, tensors, metadata | {"run": json.dumps(identity)})
    assert fit(make_model(), SCANS, n_steps=2, checkpoint=path).losses == expected


def silent(scan, inside):
    return replace(scan, kspace=torch.where(inside, torch.zeros_like(scan.kspace), scan.kspace))


FEW = replace(SCANS[0], kspace=SCANS[0].kspace[:, : 7 * N_READOUT], trajectory=SCANS[0].trajectory[: 7 * N_READOUT])
SILENT = silent(SCANS[0], torch.ones(N_SPOKES * N_READOUT, dtype=torch.bool))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "image"}, "target is 'image', expected one of 'reference', 'self'"),
        ({"target": "reference"}, r'scans\[\d\] has no reference.*fit\(..., target="self"\)'),
        ({"scans": [FEW]}, r"scans\[0\] has 7 readouts, expected at least 8 to hold some out"),
        ({"scans": [SILENT]}, r"scans\[0\] has k-space that is zero everywhere"),
        ({"scans": [silent(SCANS[0], folds(SCANS[0], 0) == 0)]}, r"scans\[0\] has only zeros in a quarter"),
        ({"validation": [SILENT]}, r"validation\[0\] has k-space that is zero everywhere"),
        ({"validation": [FEW]}, r"validation\[0\] has 7 readouts"),
    ],
)
def test_what_cannot_be_split_or_compared_is_named(change, message):
    arguments = {"scans": UNREFERENCED, "target": "self"} | change
    model, fresh = make_model(), make_model()
    with pytest.raises(ValueError, match=message):
        fit(model, arguments.pop("scans"), n_steps=2, **arguments)
    assert states_equal(model, fresh)


def test_a_fold_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="fold is 4, expected 0 to 3"):
        split_scan(SCANS[0], 4)


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1e-20, 1e20])
def test_the_unit_of_a_scan_does_not_change_the_training(unit):
    scaled = [replace(scan, kspace=scan.kspace * unit) for scan in UNREFERENCED]
    losses = [fit(make_model(), scans, target="self", n_steps=4).losses for scans in (UNREFERENCED, scaled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.parametrize("data_term", ["unweighted", "cg"])
def test_every_data_term_learns_without_references(data_term):
    losses = fit(make_model(data_term=data_term), UNREFERENCED[:1], target="self", n_steps=2).losses
    assert all(0 < loss < 2 for loss in losses)


def test_the_room_that_held_out_samples_take_is_asked_for(monkeypatch):
    model = make_model(block_shape=(7, 6, 8))
    n_samples = 400_000  # many, so that they count
    plain = Case(SHAPE, 2, n_samples)
    held_out = replace(plain, n_held_out=n_samples // N_FOLDS)
    more = predict_run(model, held_out).bytes - predict_run(model, plain).bytes
    assert more > (2 * 8 + 8) * n_samples // N_FOLDS  # their k-space, and what one coil misses
    asked = []
    monkeypatch.setattr(room, "free_bytes", lambda device: 1000)
    monkeypatch.setattr(room, "_what_would_fit", lambda model, case, budget: "")
    monkeypatch.setattr(room, "predict_run", lambda model, case: asked.append(case) or predict_run(model, case))
    with pytest.raises(MemoryError, match="A training step"):
        fit(model, UNREFERENCED, target="self", n_steps=2)
    assert asked[0].n_held_out == -(-N_SPOKES * N_READOUT // N_FOLDS)
