import pytest
import torch
from torch import nn

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
        (lambda: UnrolledNetwork(nn.Identity(), data_term="l2"), ValueError, "expected one of 'density'"),
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


@pytest.mark.parametrize("block_shape", [None, (4, 4, 4)])
def test_a_regularizer_that_gives_other_channels_is_refused(block_shape):
    A, kspace, _ = make_scan()
    model = UnrolledNetwork(nn.Conv3d(2, 3, 3, padding=1).double(), 1, block_shape=block_shape)
    with pytest.raises(ValueError, match="gives 3 channels, expected 2"):
        model(A, kspace)
