import pytest
import torch

from blockkit.mbdl.data_consistency import gradient_channels, gradient_step, prepare, proximal_step
from blockkit.physics.coils import simulate_maps
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

SHAPE = (9, 8, 7)


def make_scan(dtype=torch.complex128, normal="toeplitz"):
    trajectory = radial_3d(60, 16, SHAPE)
    maps = simulate_maps(3, SHAPE, seed=1).to(dtype)
    A = Encoding(trajectory, maps, normal=normal, tolerance=1e-6)
    image = torch.randn(SHAPE, dtype=dtype, generator=torch.Generator().manual_seed(2))
    return A, A(image), image


@pytest.mark.parametrize("normal", ["nufft", "toeplitz"])
@pytest.mark.parametrize("data_term", ["density", "unweighted"])
def test_the_gradient_step_has_the_gradients_of_the_formula_left_to_autograd(data_term, normal):
    A, kspace, image = make_scan(normal=normal)
    data = prepare(A, kspace, data_term)
    weights = torch.randn(SHAPE, dtype=torch.complex128)

    def gradients(step):
        x, tau = image.clone().requires_grad_(), torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        loss = (step(x, tau) * weights).abs().square().sum()
        return torch.autograd.grad(loss, (x, tau))

    ours = gradients(lambda x, tau: gradient_step(x, tau, data))
    A_w = A.weighted(A.dcf) if data_term == "density" else A
    autograd = gradients(lambda x, tau: x - tau * (A_w.adjoint(A_w(x)) / A_w.lipschitz - data.b))
    for mine, theirs in zip(ours, autograd, strict=True):
        assert torch.linalg.vector_norm(mine - theirs) < 1e-5 * torch.linalg.vector_norm(theirs)


def test_the_gradient_step_passes_gradcheck_in_image_step_size_and_right_hand_side():
    A, kspace, image = make_scan()
    data = prepare(A, kspace)

    def step(x, tau, b):
        return gradient_step(x, tau, type(data)(data.normal, b, data.start, data.scale))

    tau = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        step, (image.requires_grad_(), tau, data.b.clone().requires_grad_()), fast_mode=True
    )


def test_the_gradient_channels_are_the_step_and_the_gradient_and_pass_gradcheck():
    A, kspace, image = make_scan()
    data = prepare(A, kspace)
    tau = torch.tensor(0.9, dtype=torch.float64)
    channels = gradient_channels(image, tau, data)
    g = data.normal(image) - data.b
    for pair, expected in zip(channels.split(2), (gradient_step(image, tau, data), g), strict=True):
        assert torch.allclose(torch.complex(pair[0], pair[1]), expected, rtol=1e-12, atol=1e-12)

    def step(x, tau, b):
        return gradient_channels(x, tau, type(data)(data.normal, b, data.start, data.scale))

    leaves = (image.requires_grad_(), tau.requires_grad_(), data.b.clone().requires_grad_())
    assert torch.autograd.gradcheck(step, leaves, fast_mode=True)


def test_the_proximal_step_solves_its_equation_and_its_backward_is_implicit():
    A, kspace, image = make_scan()
    data = prepare(A, kspace, "cg")
    x, mu = image.requires_grad_(), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    z = proximal_step(x, mu, data, n_iterations=60)
    left, right = data.normal(z.detach()) + mu * z, data.b + mu * x
    assert torch.linalg.vector_norm(left - right) < 1e-9 * torch.linalg.vector_norm(right)
    assert torch.autograd.gradcheck(lambda x, mu: proximal_step(x, mu, data, n_iterations=60), (x, mu), fast_mode=True)


@pytest.mark.parametrize("data_term", ["density", "unweighted", "cg"])
def test_the_bound_holds_so_the_normal_never_amplifies(data_term):
    A, kspace, image = make_scan()
    data = prepare(A, kspace, data_term)
    x = image
    for _ in range(30):
        x = data.normal(x / torch.linalg.vector_norm(x))
    assert 0.2 < float(torch.linalg.vector_norm(x)) <= 1.0


def test_an_unknown_data_term_is_named_with_the_choices():
    A, kspace, _ = make_scan()
    with pytest.raises(ValueError, match="'dcf', expected one of 'density', 'unweighted', 'cg'"):
        prepare(A, kspace, "dcf")


def test_zero_kspace_gives_a_zero_start_and_no_nan():
    A, kspace, _ = make_scan()
    data = prepare(A, torch.zeros_like(kspace))
    assert torch.equal(data.start, torch.zeros_like(data.start))
    assert float(data.scale) == 1.0


def test_what_cannot_be_differentiated_is_refused_and_nan_is_named():
    A, kspace, _ = make_scan()
    with pytest.raises(ValueError, match=r"kspace requires a gradient, .* write kspace.detach\(\)"):
        prepare(A, kspace.clone().requires_grad_())
    maps = A.maps.clone().requires_grad_()
    with pytest.raises(ValueError, match="maps requires a gradient"):
        prepare(Encoding(A.trajectory, maps), kspace)
    kspace[1, 3] = torch.nan
    with pytest.raises(ValueError, match=r"kspace has 1 values .* index \(1, 3\)"):
        prepare(A, kspace)
