"""The same work on a CUDA device: the same images, gradients and losses as on the CPU."""

import copy

import pytest
import torch

import blockkit as bk

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def _single_precision():
    """Convolutions in full single precision: by default a device rounds their inputs to 10 bits."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    yield
    torch.backends.cudnn.allow_tf32 = before


def relative(a, b):
    a, b = a.detach().cpu(), b.detach().cpu()
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def scan():
    return bk.simulate_scan(bk.pulmonary_phantom((36, 30, 36), seed=3), (24, 20, 24), n_coils=3, n_spokes=120, seed=3)


def on(device, scan):
    return bk.Encoding(scan.trajectory.to(device), scan.maps.to(device)), scan.kspace.to(device)


def small_model(block_shape=None):
    torch.manual_seed(0)
    regularizer = bk.ResidualCNN(8, 3, downsample=2, sees_gradient=True)
    torch.nn.init.normal_(regularizer.layers[-2].weight, std=0.05)
    return bk.UnrolledNetwork(regularizer, 3, shared_weights=False, block_shape=block_shape)


def test_the_shipped_model_gives_the_image_of_the_cpu(scan):
    model = bk.pretrained()
    with torch.no_grad():
        here, there = model(*on("cpu", scan)), model.cuda()(*on("cuda", scan))
    assert there.is_cuda
    assert relative(there, here) < 1e-3


def test_blocks_give_the_gradients_of_naive_backprop_on_the_device(scan):
    gradients = []
    A, kspace = on("cuda", scan)
    for block_shape in (None, (8, 12, 8)):
        model = small_model(block_shape).cuda()
        model(A, kspace).abs().square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert relative(gradients[1], gradients[0]) < 1e-5


def test_training_on_the_device_goes_as_on_the_cpu(scan):
    model = small_model((8, 12, 8))
    there = copy.deepcopy(model).cuda()
    losses = [bk.fit(m, [scan], n_steps=5, augment=True, seed=1).losses for m in (model, there)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][-1] < losses[0][0]


def test_compressed_sensing_on_the_device_gives_the_image_of_the_cpu(scan):
    here, there = (bk.compressed_sensing(*on(device, scan), n_iterations=10) for device in ("cpu", "cuda"))
    assert relative(there, here) < 1e-3


def test_maps_are_estimated_on_the_device(scan):
    here = bk.estimate_maps(scan.kspace, scan.trajectory, scan.image_shape)
    there = bk.estimate_maps(scan.kspace.cuda(), scan.trajectory.cuda(), scan.image_shape)
    assert relative(there, here) < 1e-2
