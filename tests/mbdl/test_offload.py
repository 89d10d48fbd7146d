import os
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

from blockkit.blockwise.memory import measure_peak, predict_peak
from blockkit.data.simulate import simulate_scan
from blockkit.mbdl.data_consistency import prepare
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.offload import offloading
from blockkit.mbdl.training import fit
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.physics.coils import simulate_maps
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

SHAPE = (24, 28, 22)
VOLUME = 24 * 28 * 22 * 8


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make this the folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def make_scan():
    A = Encoding(radial_3d(60, 48, SHAPE), simulate_maps(2, SHAPE, seed=3), normal="toeplitz")
    image = torch.randn(SHAPE, dtype=torch.complex64, generator=torch.Generator().manual_seed(4))
    return A, A(image), image


def make_model(offload, n_unrolls=3, *, sees_gradient=False, **options):
    torch.manual_seed(0)
    network = ResidualCNN(4, 3, downsample=2, sees_gradient=sees_gradient)
    nn.init.normal_(network.layers[-2].weight, std=0.1)
    return UnrolledNetwork(network, n_unrolls, offload=offload, **options)


def step(model, A, kspace, target):
    model.zero_grad()
    loss = (model(A, kspace) - target).abs().square().sum()
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("block_shape", [None, (8, 12, 10)])
@pytest.mark.parametrize("shared_weights", [True, False])
@pytest.mark.parametrize("data_term", ["density", "unweighted", "cg"])
def test_offload_changes_no_value_and_no_gradient(offload, block_shape, shared_weights, data_term):
    scan = make_scan()
    options = {"block_shape": block_shape, "shared_weights": shared_weights, "data_term": data_term}
    loss, gradients = step(make_model(None, **options), *scan)
    loss_away, gradients_away = step(make_model(offload, **options), *scan)
    assert torch.equal(loss_away, loss)
    for mine, theirs in zip(gradients_away, gradients, strict=True):
        assert torch.equal(mine, theirs)
        assert theirs.any()


def peak_of(offload, n_unrolls, scan, sees_gradient):
    model = make_model(offload, n_unrolls, sees_gradient=sees_gradient, block_shape=(12, 14, 12))
    step(model, *scan)  # makes the operator's own parts, which stay
    with measure_peak() as peak:
        step(model, *scan)
    return peak.bytes


@pytest.mark.parametrize("sees_gradient", [False, True])
def test_an_unroll_keeps_two_volumes_and_with_offload_none(sees_gradient):
    scan = make_scan()
    few, many = (peak_of(None, n_unrolls, scan, sees_gradient) for n_unrolls in (3, 8))
    assert many - few == pytest.approx(5 * 2 * VOLUME, rel=1e-3)
    few, many = (peak_of("disk", n_unrolls, scan, sees_gradient) for n_unrolls in (3, 8))
    assert many - few < 1000  # the step sizes


@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("block_shape", [None, (12, 14, 12)])
def test_the_predicted_peak_is_the_measured_one(offload, block_shape, folder):
    A, kspace, target = make_scan()
    model = make_model(offload, block_shape=block_shape)
    step(model, A, kspace, target)
    predicted = predict_peak(step, model, A, kspace, target)
    with measure_peak() as peak:
        step(model, A, kspace, target)
    assert predicted == peak.bytes


def open_files(folder):
    return [link for fd in Path("/proc/self/fd").iterdir() if (link := os.path.realpath(fd)).startswith(str(folder))]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_the_file_has_no_name_and_goes_with_the_graph(folder):
    A, kspace, target = make_scan()
    image = make_model("disk")(A, kspace)
    assert list(folder.iterdir()) == []
    assert len(open_files(folder)) == 1
    (image - target).abs().sum().backward()
    del image
    assert open_files(folder) == []


@pytest.mark.parametrize("offload", [None, "cpu", "disk"])
@pytest.mark.parametrize("block_shape", [None, (8, 12, 10)])
def test_weights_changed_before_backward_are_noticed_wherever_the_images_are(offload, block_shape):
    A, kspace, target = make_scan()
    model = make_model(offload, block_shape=block_shape)
    loss = (model(A, kspace) - target).abs().sum()
    with torch.no_grad():
        model.regularizers[0].layers[1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="place"):
        loss.backward()


def test_without_gradients_nothing_is_written(folder, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: pytest.fail("a file was made"))
    A, kspace, _ = make_scan()
    with torch.no_grad():
        make_model("disk")(A, kspace)


def test_a_full_disk_is_reported_with_what_to_do(folder):
    resource = pytest.importorskip("resource")
    A, kspace, _ = make_scan()
    model = make_model("disk")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * VOLUME, before[1]))
    try:
        with pytest.raises(OSError, match=rf"no room for [\d,]+ bytes more .*{folder.name}.* TMPDIR"):
            model(A, kspace)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64])
def test_every_layout_comes_back_as_it_was(dtype):
    x = torch.randn(40, 50, 60).to(dtype).requires_grad_()
    views = [lambda t: t, lambda t: t.permute(2, 0, 1), lambda t: t[3:, ::2, 1:], lambda t: t[:1].expand(40, 50, 60)]
    for view in views:
        with offloading("disk"):
            y = view(x) * view(x)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
        (expected,) = torch.autograd.grad(view(x) * view(x), x, torch.ones_like(y))
        assert torch.equal(grad, expected)


@pytest.mark.parametrize("offload", ["cpu", "disk"])
def test_training_is_the_same(offload):
    image = torch.randn(40, 40, 40, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    scan = simulate_scan(image, (24, 24, 24), n_coils=2, n_spokes=60, seed=1)
    runs = []
    for where in (None, offload):
        model = make_model(where, 2, block_shape=(12, 12, 12))
        history = fit(model, [scan], n_steps=3)
        runs.append((history.losses, model.state_dict()))
    assert runs[0][0] == runs[1][0]
    assert all(torch.equal(runs[0][1][name], value) for name, value in runs[1][1].items())


def test_a_wrong_place_is_named():
    with pytest.raises(ValueError, match="offload is 'gpu', expected one of None, 'cpu', 'disk'"):
        make_model("gpu")


@pytest.mark.cuda
@pytest.mark.parametrize("offload", ["cpu", "disk"])
@pytest.mark.parametrize("block_shape", [None, (8, 12, 10)])
def test_offload_from_a_gpu_changes_nothing_and_frees_it(offload, block_shape):
    A, kspace, target = make_scan()
    A = Encoding(A.trajectory.cuda(), A.maps.cuda().to(torch.complex128), normal="toeplitz")
    data = prepare(A, kspace.cuda().to(torch.complex128))  # once: the NUFFT's tables are larger than this network
    target = target.cuda().to(torch.complex128)
    results, peaks = [], []
    for where in (None, offload):
        model = make_model(where, 8, block_shape=block_shape).double().cuda()
        for _ in range(2):  # the first run loads what later ones have
            model.zero_grad()
            with measure_peak() as peak:
                loss = (model.unroll(data) - target).abs().square().sum()
                loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
        peaks.append(peak.cuda_bytes)
    torch.testing.assert_close(results[1], results[0], rtol=1e-8, atol=1e-8)  # sums on a GPU come in any order
    assert peaks[1] < peaks[0] - 10 * VOLUME
