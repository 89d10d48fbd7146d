import os
import signal
from dataclasses import replace

import pytest
import torch

from blockkit.blockwise.memory import measure_peak
from blockkit.data.scan import Scan
from blockkit.mbdl.footprint import Case, predict_run
from blockkit.mbdl.loss import relative_error
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.run import Run
from blockkit.mbdl.training import fit
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.physics.coils import simulate_maps
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

SHAPE = (8, 8, 8)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the last bits of a threaded sum differ from run to run
    yield
    torch.set_num_threads(before)


def make_scan(seed, reference=True):
    generator = torch.Generator().manual_seed(seed)
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in SHAPE), indexing="ij")
    center = torch.rand(3, generator=generator) - 0.5
    image = torch.exp(-6 * ((z - center[0]) ** 2 + (y - center[1]) ** 2 + (x - center[2]) ** 2)).to(torch.complex64)
    trajectory, maps = radial_3d(25, 16, SHAPE), simulate_maps(2, SHAPE, seed=seed)
    kspace = Encoding(trajectory, maps)(image)
    kspace = kspace + 0.05 * kspace.abs().square().mean().sqrt() * torch.randn(
        kspace.shape, dtype=kspace.dtype, generator=generator
    )
    return Scan(kspace, trajectory, maps, (2.0, 2.0, 2.0), image if reference else None)


SCANS = [make_scan(seed) for seed in range(4)]


def make_model():
    torch.manual_seed(1)
    return UnrolledNetwork(ResidualCNN(8, 3), 2)


def states_equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_training_lowers_the_loss_and_two_runs_are_alike():
    models = [make_model(), make_model()]
    histories = [fit(model, SCANS, n_steps=40, learning_rate=3e-3) for model in models]
    losses = histories[0].losses
    assert sum(losses[-4:]) < 0.9 * sum(losses[:4])
    assert histories[0].losses == histories[1].losses
    assert states_equal(*models)


def test_the_seed_draws_the_order_of_the_scans():
    losses = [fit(make_model(), SCANS, n_steps=8, seed=seed).losses for seed in range(3)]
    assert losses[0] != losses[1] != losses[2]


def test_the_best_validation_weights_are_kept(tmp_path):
    model = make_model()
    history = fit(model, SCANS[:3], validation=SCANS[3:], n_steps=12, learning_rate=0.3)
    from blockkit.mbdl.data_consistency import prepare
    from blockkit.metrics import psnr

    scan = SCANS[3]
    with torch.no_grad():
        image = model.unroll(prepare(Encoding(scan.trajectory, scan.maps), scan.kspace))
    best = max(value for _, value in history.validation)
    assert psnr(image, scan.reference) == pytest.approx(best, abs=1e-6)
    assert [step for step, _ in history.validation] == [3, 6, 9, 12]
    assert not model.training


@pytest.mark.parametrize("stop_at", [2, 4])
def test_ctrl_c_ends_after_the_step_and_the_same_call_goes_on_without_loss(tmp_path, stop_at):
    whole, parts = make_model(), make_model()
    expected = fit(whole, SCANS, validation=SCANS[:1], n_steps=9)

    class Stopping(list):
        reads = 0

        def __getitem__(self, i):
            self.reads += 1
            if self.reads == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(i)

    handler = signal.getsignal(signal.SIGINT)
    checkpoint = tmp_path / "run.safetensors"
    first = fit(parts, Stopping(SCANS), validation=SCANS[:1], n_steps=9, checkpoint=checkpoint)
    stopped = len(first.losses)
    assert first.interrupted
    assert stopped < 9
    assert signal.getsignal(signal.SIGINT) is handler
    resumed = make_model()
    second = fit(resumed, SCANS, validation=SCANS[:1], n_steps=9, checkpoint=checkpoint)
    assert not second.interrupted
    assert second.losses == expected.losses
    assert second.validation == expected.validation
    assert states_equal(whole, resumed)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    fit(make_model(), SCANS, n_steps=2, checkpoint=path)
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(UnrolledNetwork(ResidualCNN(6, 3), 2), SCANS, n_steps=2, checkpoint=path)
    with pytest.raises(ValueError, match="belongs to another run"):
        fit(make_model(), SCANS, n_steps=3, checkpoint=path)


def test_what_cannot_be_trained_on_is_named():
    with pytest.raises(ValueError, match="scans is empty"):
        fit(make_model(), [])
    with pytest.raises(ValueError, match=r"scans\[0\] has no reference"):
        fit(make_model(), [make_scan(0, reference=False)], n_steps=1)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": ResidualCNN(4, 2)}, TypeError, "model is a ResidualCNN, expected a blockkit.UnrolledNetwork"),
        ({"scans": SCANS[0]}, TypeError, r"scans is a Scan, expected a sequence of blockkit.Scan: write \[scan\]"),
        ({"scans": ["scan.h5"]}, TypeError, r"scans\[0\] is a str, expected a blockkit.Scan"),
        ({"validation": [make_scan(0, reference=False)]}, ValueError, r"validation\[0\] has no reference"),
        ({"checkpoint": "no/such/folder/run.safetensors"}, ValueError, "expected a file in a folder that exists"),
        ({"checkpoint": "."}, ValueError, "expected a file in a folder that exists"),
    ],
)
def test_a_wrong_argument_is_named_before_the_first_step(change, error, message):
    model = make_model()
    before = [p.detach().clone() for p in model.parameters()]
    arguments = {"model": model, "scans": SCANS} | change
    with pytest.raises(error, match=message):
        fit(arguments.pop("model"), arguments.pop("scans"), n_steps=2, **arguments)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_reference_of_zeros_is_named():
    scan = replace(SCANS[0], reference=torch.zeros_like(SCANS[0].reference))
    with pytest.raises(ValueError, match="a reference that is zero everywhere"):
        fit(make_model(), [scan], n_steps=1)


def test_a_run_that_fails_leaves_the_best_weights_in_the_model(monkeypatch):
    gradients_of, kept = Run.gradients_of, []

    def fail_at_the_sixth(run, data, reference, name, j):
        if run.step < 5:
            return gradients_of(run, data, reference, name, j)
        kept.append({name: value.clone() for name, value in run.best.items()})
        with torch.no_grad():
            run.model.step_size.fill_(torch.nan)
        raise OSError("the disk is gone")

    monkeypatch.setattr(Run, "gradients_of", fail_at_the_sixth)
    model = make_model()
    with pytest.raises(OSError, match="the disk is gone"):
        fit(model, SCANS, validation=SCANS[:1], n_steps=9)
    assert kept[0]
    assert all(torch.equal(value, kept[0][name]) for name, value in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize("unit", [1e-20, 1e20])
def test_the_unit_of_a_scan_does_not_change_the_training(unit):
    scaled = [replace(scan, kspace=scan.kspace * unit, reference=scan.reference * unit) for scan in SCANS]
    losses = [fit(make_model(), scans, n_steps=6).losses for scans in (SCANS, scaled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_augmentation_changes_the_steps_is_drawn_from_the_seed_and_resumes_without_loss(tmp_path):
    plain, whole, other = (fit(make_model(), SCANS, n_steps=8, augment=a, seed=s).losses for a, s in
                           ((False, 0), (True, 0), (True, 1)))  # fmt: skip
    assert plain != whole != other
    checkpoint = tmp_path / "run.safetensors"

    class Stopping(list):
        def __getitem__(self, i):
            if i == 2:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(i)

    first = fit(make_model(), Stopping(SCANS), n_steps=8, augment=True, checkpoint=checkpoint)
    assert first.interrupted
    assert fit(make_model(), SCANS, n_steps=8, augment=True, checkpoint=checkpoint).losses == whole


def test_half_precision_in_the_regularizer_trains_alike():
    single = fit(make_model(), SCANS, n_steps=12).losses
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = fit(make_model(), SCANS, n_steps=12).losses
    assert half != single
    assert half == pytest.approx(single, rel=0.02)


def test_the_relative_error_is_one_for_a_zero_image():
    assert float(relative_error(torch.zeros(SHAPE, dtype=torch.complex64), SCANS[0].reference)) == pytest.approx(1)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_the_gradient_of_the_relative_error_is_its_derivative(weight):
    generator = torch.Generator().manual_seed(0)
    image, reference = (torch.randn(3, 4, 2, dtype=torch.complex128, generator=generator) for _ in range(2))
    image.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: weight * relative_error(x, reference), image)
    (at_the_reference,) = torch.autograd.grad(relative_error(image, image.detach()), image)
    assert not at_the_reference.any()


def test_the_relative_error_keeps_no_image_of_its_own_for_backward():
    image, reference = torch.zeros(SHAPE, dtype=torch.complex64), SCANS[0].reference
    image.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        relative_error(image, reference)
    own = [t for t in kept if t.data_ptr() not in (image.data_ptr(), reference.data_ptr())]
    assert sum(t.numel() for t in own) == 2


def test_block_wise_and_naive_training_have_the_same_losses():
    models = make_model(), make_model()
    models[1].block_shape = (4, 4, 4)
    naive, blocks = (fit(model, SCANS, n_steps=6).losses for model in models)
    assert blocks == pytest.approx(naive, rel=1e-4)


def test_a_watcher_is_told_how_the_run_stands_and_changes_nothing():
    told = []
    plain = fit(make_model(), SCANS[:3], validation=SCANS[3:], n_steps=5)
    watched = fit(make_model(), SCANS[:3], validation=SCANS[3:], n_steps=5, watch=told.append)
    assert watched.losses == plain.losses
    assert watched.validation == plain.validation
    assert [progress.step for progress in told] == [0, 1, 2, 3, 3, 4, 5, 5, 5]
    with_image = [progress for progress in told if progress.image is not None]
    assert [progress.step for progress in with_image] == [3, 5]
    assert all(torch.equal(progress.reference, SCANS[3].reference) for progress in with_image)
    assert [progress.ended for progress in told] == [False] * 8 + [True]
    assert told[0].seconds_left is None
    assert told[1].seconds_left == pytest.approx(4 * told[1].seconds)
    assert told[-1].seconds_left == 0


def test_a_watcher_of_a_resumed_run_knows_what_was_done_before(tmp_path):
    checkpoint, told = tmp_path / "run.safetensors", []
    fit(make_model(), ReadsBeforeStop(SCANS, 2), n_steps=8, checkpoint=checkpoint)
    fit(make_model(), SCANS, n_steps=8, checkpoint=checkpoint, watch=told.append)
    assert told[0].step > 0
    assert told[0].n_new == 0
    assert told[-1].n_new == 8 - told[0].step


def test_a_watcher_is_told_of_the_end_also_if_the_run_fails(monkeypatch):
    def fail(run, data, target, name, j):
        raise OSError("the disk is gone")

    monkeypatch.setattr(Run, "gradients_of", fail)
    told = []
    with pytest.raises(OSError, match="the disk is gone"):
        fit(make_model(), SCANS, n_steps=8, watch=told.append)
    assert [progress.ended for progress in told] == [False, True]


def test_unless_asked_there_is_a_bar_with_the_loss(capsys):
    history = fit(make_model(), SCANS, n_steps=2)
    bar = capsys.readouterr().err
    assert "2/2" in bar
    assert f"loss={history.losses[-1]:.4f}" in bar


class ReadsBeforeStop(list):
    """Scans whose reading raises the signal of Ctrl-C at the given number of reads."""

    def __init__(self, scans, stop_at):
        super().__init__(scans)
        self.stop_at = stop_at

    def __getitem__(self, i):
        self.stop_at -= 1
        if not self.stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        return super().__getitem__(i)


def test_a_step_takes_the_memory_that_is_predicted_also_where_weights_are_most_of_it() -> None:
    torch.manual_seed(0)
    model, scan = UnrolledNetwork(ResidualCNN(64, 4), 1), make_scan(0)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    case = Case(scan.image_shape, scan.n_coils, scan.kspace.shape[1])
    with measure_peak() as peak:
        fit(model, [scan], n_steps=2, check_memory=False, watch=lambda progress: None)
    assert abs(peak.bytes + weights - predict_run(model, case).bytes) < 0.3 * weights
