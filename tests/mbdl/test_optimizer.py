import pytest
import torch
from torch import nn

from blockkit.mbdl.optimizer import KernelOptimizer


def make_network(seed=0, memory_format=torch.contiguous_format):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv3d(4, 6, 3, padding=1), nn.SiLU(), nn.Conv3d(6, 2, 3, padding=1))
    return network.to(memory_format=memory_format)


def backward(network, seed=0):
    network.zero_grad()
    x = torch.randn(2, 4, 5, 6, 7, generator=torch.Generator().manual_seed(seed))
    (network(x) - 1).square().mean().backward()


def steps(network, n=3):
    optimizer = KernelOptimizer(network.parameters(), 1e-2, lambda step: 1 / (1 + step))
    for seed in range(n):
        backward(network, seed)
        optimizer.step()
    return optimizer


def test_a_kernel_moves_along_an_orthogonal_matrix_with_the_root_mean_square_of_adam():
    network = make_network()
    kernel = network[0].weight
    before = kernel.detach().clone()
    steps(network, 1)
    move = (kernel.detach() - before).reshape(6, -1)
    values = torch.linalg.svdvals(move) / (1e-2 * 0.2 * (4 * 27) ** 0.5)
    assert 0.5 < values.min() <= values.max() < 1.5  # five Newton-Schulz iterations come that near to 1
    gradient = torch.linalg.svdvals(kernel.grad.reshape(6, -1))
    assert gradient.max() > 4 * gradient.min()  # so it is not the gradient that is flat


def test_a_bias_moves_as_adam_moves_it():
    network, other = make_network(), make_network()
    steps(network, 1)
    backward(other)
    torch.optim.Adam([other[0].bias], lr=1e-2).step()
    assert torch.equal(network[0].bias, other[0].bias)


def test_kernels_that_are_not_contiguous_move_alike():
    plain, strided = make_network(), make_network(memory_format=torch.channels_last_3d)
    assert not strided[0].weight.is_contiguous()
    steps(plain)
    steps(strided)
    for mine, theirs in zip(strided.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-2, atol=1e-4)
    assert not torch.allclose(plain[0].weight, make_network()[0].weight, rtol=1e-2, atol=1e-4)


def test_frozen_parameters_stay_and_parameters_without_gradient_are_passed_over():
    network = make_network()
    network[0].requires_grad_(False)
    unused = nn.Conv3d(2, 2, 1)
    before = [p.detach().clone() for p in (*network.parameters(), *unused.parameters())]
    optimizer = KernelOptimizer([*network.parameters(), *unused.parameters()], 1e-2, lambda step: 1.0)
    backward(network)
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip((*network.parameters(), *unused.parameters()), before, strict=True)]
    assert moved == [False, False, True, True, False, False]


@pytest.mark.parametrize("n_before", [1, 4])
def test_a_resumed_optimizer_goes_on_bit_for_bit(n_before):
    whole, part = make_network(), make_network()
    steps(whole, n_before + 2)
    stopped = steps(part, n_before)
    resumed = KernelOptimizer(part.parameters(), 1e-2, lambda step: 1 / (1 + step))
    resumed.load({name: value.clone() for name, value in stopped.state().items()}, n_before)
    for seed in range(n_before, n_before + 2):
        backward(part, seed)
        resumed.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), part.parameters(), strict=True))
