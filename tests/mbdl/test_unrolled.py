import pytest
import torch
from torch import nn

from blockkit.blockwise.memory import measure_peak
from blockkit.mbdl import unrolled
from blockkit.mbdl.data_consistency import DataTerm, prepare
from blockkit.mbdl.networks import DepthToSpace, ResidualCNN, SpaceToDepth
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.physics.coils import simulate_maps
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

SHAPE = (14, 12, 10)


def make_scan(shape=SHAPE, dtype=torch.complex128, n_coils=2):
    A = Encoding(radial_3d(80, 28, shape), simulate_maps(n_coils, shape, seed=3).to(dtype), normal="toeplitz")
    image = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(4))
    return A, A(image), image


def awake(network, seed=0):
    """Give the last layer weights, so that the network does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.15)
    return network


def loss_and_gradients(model, A, kspace, target):
    model.zero_grad()
    loss = (model(A, kspace) - target).abs().square().sum()
    loss.backward()
    return loss.detach(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    ("data_term", "sees_gradient"),
    [("density", False), ("unweighted", False), ("cg", False), ("density", True), ("unweighted", True)],
)
@pytest.mark.parametrize("shared_weights", [True, False])
@pytest.mark.parametrize("block_shape", [(4, 4, 4), (6, 2, 8), (64, 64, 64)])
def test_any_block_shape_gives_the_loss_and_gradients_of_naive_backprop(
    data_term, sees_gradient, shared_weights, block_shape
):
    A, kspace, target = make_scan()
    network = awake(ResidualCNN(3, 2, downsample=2, sees_gradient=sees_gradient).double())
    results = []
    for shape in (None, block_shape):
        model = UnrolledNetwork(network, 2, block_shape=shape, shared_weights=shared_weights, data_term=data_term)
        results.append(loss_and_gradients(model, A, kspace, target))
    (loss, gradients), (block_loss, block_gradients) = results
    assert abs(block_loss - loss) < 1e-10 * loss
    for mine, theirs in zip(block_gradients, gradients, strict=True):
        assert torch.linalg.vector_norm(mine - theirs) <= 1e-9 * torch.linalg.vector_norm(theirs)
        assert torch.linalg.vector_norm(theirs) > 0


def test_the_gradient_reaches_the_regularizer_and_changes_the_image():
    A, kspace, _ = make_scan()
    network = awake(ResidualCNN(3, 2, downsample=2, sees_gradient=True).double())
    image = UnrolledNetwork(network, 2)(A, kspace)
    with torch.no_grad():
        network.layers[1].weight[:, 16:] = 0  # what comes of the two channels of the gradient, by 2 x 2 x 2
        blind = ResidualCNN(3, 2, downsample=2).double()
        blind.layers[1].weight.copy_(network.layers[1].weight[:, :16])
        for name in ("layers.1.bias", "layers.3.weight", "layers.3.bias"):
            blind.get_parameter(name).copy_(network.get_parameter(name))
    unseen = UnrolledNetwork(network, 2)(A, kspace)
    assert torch.linalg.vector_norm(image - unseen) > 1e-3 * torch.linalg.vector_norm(unseen)
    assert torch.allclose(unseen, UnrolledNetwork(blind, 2)(A, kspace), rtol=1e-10, atol=1e-12)


HALF = DataTerm(
    normal=lambda v: 0.5 * v,
    b=torch.tensor([[[1 + 2j, -3j, 0.5]]], dtype=torch.complex128),
    start=torch.tensor([[[2 - 1j, 1j, -4]]], dtype=torch.complex128),
    scale=torch.tensor(7.0, dtype=torch.float64),
)  # N is a half: then every step is a formula


class Corrected(nn.Module):
    """The image less a tenth of the gradient."""

    sees_gradient = True

    def forward(self, x):
        return x[:, :2] - 0.1 * x[:, 2:]


@pytest.mark.parametrize("n_unrolls", [1, 3])
@pytest.mark.parametrize(
    ("name", "regularizer"), [("gradient", nn.Identity()), ("channels", Corrected()), ("cg", nn.Identity())]
)
def test_each_unroll_is_its_own_step_and_then_the_regularizer(name, regularizer, n_unrolls):
    model = UnrolledNetwork(regularizer, n_unrolls, data_term="cg" if name == "cg" else "unweighted").double()
    model.step_size.data = torch.tensor([0.7, -1.3, 0.4], dtype=torch.float64)[:n_unrolls]
    x, images = HALF.start, []
    for step in model.step_size.tolist():
        gradient = 0.5 * x - HALF.b
        x = (HALF.b + 0.05 * abs(step) * x) / (0.5 + 0.05 * abs(step)) if name == "cg" else x - step * gradient
        x = x - 0.1 * gradient if name == "channels" else x
        images.append(x)
    for found, expected in zip(model.iterates(HALF), images, strict=True):
        assert torch.allclose(found, expected, rtol=1e-12)
    assert torch.allclose(model.unroll(HALF), 7 * x, rtol=1e-12)


@pytest.mark.parametrize(("data_term", "other"), [("density", "unweighted"), ("unweighted", "density")])
def test_the_data_term_asked_for_is_the_one_that_is_taken(data_term, other):
    A, kspace, _ = make_scan()
    model = UnrolledNetwork(nn.Identity(), 2, data_term=data_term)
    with torch.no_grad():
        image = model(A, kspace)
        same, another = (model.unroll(prepare(A, kspace, term)) for term in (data_term, other))
    assert torch.linalg.vector_norm(image - same) < 1e-12 * torch.linalg.vector_norm(image)
    assert torch.linalg.vector_norm(image - another) > 1e-2 * torch.linalg.vector_norm(image)


@pytest.mark.parametrize("offload", [None, "disk"])
def test_what_waits_for_backward_waits_where_it_was_asked_to_and_what_stays_alive_stays(offload, monkeypatch):
    seen = []
    monkeypatch.setattr(unrolled, "offloading", lambda *arguments: seen.append(arguments))
    network = nn.Sequential(nn.Conv3d(2, 2, 1), nn.BatchNorm3d(2))
    UnrolledNetwork(network, 2, offload=offload).offloading(HALF)
    ((place, alive),) = seen
    assert place == offload
    assert {id(t) for t in (*network.parameters(), *network.buffers(), HALF.b)} < {id(t) for t in alive}


def test_each_unroll_has_its_own_copy_of_what_is_not_shared():
    model = UnrolledNetwork(nn.Conv3d(2, 2, 1).double(), 2, shared_weights=False, data_term="unweighted")
    first, second = model.regularizers
    with torch.no_grad():
        second.weight.zero_()
        second.bias.copy_(torch.tensor([3.0, -5.0]))
    assert first.weight.abs().min() > 0
    assert torch.equal(model.unroll(HALF), torch.full_like(HALF.b, 7 * (3 - 5j)))


def test_what_is_not_asked_for_is_what_the_signature_says():
    model = UnrolledNetwork(nn.Identity())
    assert (model.n_unrolls, model.block_shape, model.shared_weights) == (6, None, True)
    assert (model.data_term, model.offload, model.recompute) == ("density", None, True)
    assert torch.equal(model.step_size, torch.ones(6))
    kept = UnrolledNetwork(nn.Identity(), block_shape=(1, 2, 3), offload="cpu", recompute=False)
    assert (kept.block_shape, kept.offload, kept.recompute) == ((1, 2, 3), "cpu", False)


def test_a_network_that_sees_the_whole_volume_runs_whole_and_not_in_blocks():
    network = nn.Sequential(nn.Conv3d(2, 2, 3, padding=1), nn.InstanceNorm3d(2)).double()
    model, image = UnrolledNetwork(network, 1), torch.randn(4, 5, 6, dtype=torch.complex128)
    channels = torch.stack([image.real, image.imag])
    assert torch.allclose(torch.view_as_real(model.regularize(image, 0)).movedim(-1, 0), network(channels[None])[0])
    model.block_shape = (2, 5, 6)
    with pytest.raises(ValueError, match="InstanceNorm3d"):
        model.regularize(image, 0)


@pytest.mark.parametrize("block_shape", [None, (4, 10, 10)])
def test_the_windows_are_booked_as_such_whole_and_in_blocks(block_shape):
    image = torch.randn(12, 10, 10, dtype=torch.complex64)
    model = UnrolledNetwork(ResidualCNN(6, 2), 1, block_shape=block_shape)
    with torch.no_grad(), measure_peak() as peak:
        model.regularize(image, 0)
    assert set(peak.parts) == {"windows", "other"}
    assert peak.parts["other"] <= 3 * image.nbytes


@pytest.mark.parametrize("recompute", [True, False])
def test_backward_runs_the_regularizer_again_only_to_recompute(recompute):
    network, seen = nn.Conv3d(2, 2, 1), []
    model = UnrolledNetwork(network, 1, block_shape=(2, 3, 3), recompute=recompute)
    network.register_forward_hook(lambda *_: seen.append(1))
    image = model.regularize(torch.ones(2, 3, 3, dtype=torch.complex64), 0)
    seen.clear()
    image.abs().sum().backward()
    assert len(seen) == recompute


def test_conjugate_gradient_has_no_gradient_to_show():
    with pytest.raises(ValueError, match=r"'cg'.*no gradient.*'density'"):
        UnrolledNetwork(ResidualCNN(3, 2, sees_gradient=True), 2, data_term="cg")


@pytest.mark.parametrize("sees_gradient", [False, True])
@pytest.mark.parametrize("shape", [(9, 11, 7), (1, 12, 9)])
def test_a_volume_that_the_stride_does_not_divide_is_padded_alike_whole_and_block_wise(shape, sees_gradient):
    A, kspace, target = make_scan(shape)
    network = awake(ResidualCNN(3, 2, downsample=2, sees_gradient=sees_gradient).double())
    whole = loss_and_gradients(UnrolledNetwork(network, 2), A, kspace, target)
    blocks = loss_and_gradients(UnrolledNetwork(network, 2, block_shape=(4, 4, 4)), A, kspace, target)
    assert abs(whole[0] - blocks[0]) < 1e-10 * whole[0]
    for mine, theirs in zip(blocks[1], whole[1], strict=True):
        assert torch.linalg.vector_norm(mine - theirs) <= 1e-9 * torch.linalg.vector_norm(theirs)


def test_the_padding_is_zeros_at_the_far_edges_up_to_the_next_multiple_of_the_stride():
    network, seen = ResidualCNN(3, 2, downsample=3), []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = torch.randn(9, 10, 14, dtype=torch.complex64)
    UnrolledNetwork(network, 1).regularize(image, 0)
    expected = torch.zeros(1, 2, 9, 12, 15)
    expected[0, :, :, :10, :14] = torch.stack([image.real, image.imag])
    assert torch.equal(seen[-1], expected)


@pytest.mark.parametrize("data_term", ["density", "unweighted", "cg"])
@pytest.mark.parametrize("unit", [1e-20, 1e-7, 3.0, 1e6, 1e20])
def test_kspace_in_any_unit_gives_the_same_image_in_that_unit(unit, data_term):
    A, kspace, _ = make_scan()
    model = UnrolledNetwork(awake(ResidualCNN(3, 2).double()), 2, data_term=data_term)
    image, scaled = model(A, kspace), model(A, kspace * unit)
    assert torch.linalg.vector_norm(scaled / unit - image) < 1e-10 * torch.linalg.vector_norm(image)
    if data_term == "cg":
        return  # conjugate gradients amplify the rounding of single precision
    model, kspace = model.float(), kspace.to(torch.complex64)
    image, scaled = model(A, kspace), model(A, kspace * unit)
    assert torch.linalg.vector_norm(scaled / unit - image) < 1e-4 * torch.linalg.vector_norm(image)


def test_an_untrained_model_improves_on_its_gridding_start():
    A, kspace, target = make_scan()
    start = UnrolledNetwork(ResidualCNN(3, 2).double(), 1)
    with torch.no_grad():
        start.step_size.zero_()
    many = UnrolledNetwork(ResidualCNN(3, 2).double(), 8)
    with torch.no_grad():
        errors = [float((model(A, kspace) - target).abs().square().sum()) for model in (start, many)]
    assert errors[1] < 0.85 * errors[0]


def test_free_weights_have_a_regularizer_for_each_unroll():
    network = ResidualCNN(4, 3)
    n_parameters = sum(p.numel() for p in network.parameters())
    free = UnrolledNetwork(network, 5, shared_weights=False)
    shared = UnrolledNetwork(network, 5)
    assert sum(p.numel() for p in free.regularizers.parameters()) == 5 * n_parameters
    assert sum(p.numel() for p in shared.regularizers.parameters()) == n_parameters


def test_single_precision_agrees_with_double():
    A, kspace, _ = make_scan()
    model = UnrolledNetwork(awake(ResidualCNN(3, 2).double()), 2, block_shape=(4, 4, 4))
    double = model(A, kspace)
    single = model.float()(A, kspace.to(torch.complex64))
    assert single.dtype == torch.complex64
    assert torch.linalg.vector_norm(single - double) < 1e-4 * torch.linalg.vector_norm(double)


def test_space_to_depth_and_back_changes_nothing():
    x = torch.randn(2, 3, 4, 6, 8)
    folded = SpaceToDepth(2)(x)
    assert folded.shape == (2, 24, 2, 3, 4)
    assert torch.equal(DepthToSpace(2)(folded), x)
    assert torch.equal(folded[0, 8:16, 1, 2, 3], x[0, 1, 2:4, 4:6, 6:8].flatten())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: UnrolledNetwork("cnn"), TypeError, "expected a torch.nn.Module"),
        (lambda: UnrolledNetwork(nn.Identity(), 0), ValueError, "n_unrolls is 0, expected at least 1"),
        (lambda: UnrolledNetwork(nn.Identity(), 2.0), TypeError, "n_unrolls is 2.0, expected a whole number"),
        (lambda: UnrolledNetwork(nn.Identity(), data_term="l2"), ValueError, "expected one of 'density'"),
        (lambda: UnrolledNetwork(nn.Identity(), offload="tape"), ValueError, "offload is 'tape', expected one of None"),
        (lambda: ResidualCNN(0), ValueError, "n_channels is 0"),
        (lambda: ResidualCNN(8, 1), ValueError, "n_layers is 1, expected at least 2"),
    ],
)
def test_a_wrong_argument_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_kspace_of_another_precision_or_kind_is_refused():
    A, kspace, _ = make_scan()
    model = UnrolledNetwork(ResidualCNN(3, 2), 2)
    with pytest.raises(TypeError, match=r"complex128, and the regularizer weights of torch.float32: .* model.double"):
        model(A, kspace)
    with pytest.raises(TypeError, match="kspace is a NoneType, expected"):
        model(A, None)
    with pytest.raises(TypeError, match=r"kspace has dtype torch.float64, expected torch.complex64"):
        model(A, kspace.real)


@pytest.mark.parametrize("block_shape", [None, (4, 4, 4)])
def test_a_regularizer_that_gives_other_channels_is_refused(block_shape):
    A, kspace, _ = make_scan()
    model = UnrolledNetwork(nn.Conv3d(2, 3, 3, padding=1).double(), 1, block_shape=block_shape)
    with pytest.raises(ValueError, match="gives 3 channels, expected 2"):
        model(A, kspace)
