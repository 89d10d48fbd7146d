import pytest
import torch

from blockkit.mbdl.augmentation import mirrored
from blockkit.mbdl.data_consistency import prepare
from blockkit.physics.coils import simulate_maps
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

SHAPE = (9, 7, 11)  # odd: mirroring about the center is negating k


def make(seed=0):
    trajectory = radial_3d(50, 22, SHAPE).double()
    maps = simulate_maps(3, SHAPE, seed=1).to(torch.complex128)
    A = Encoding(trajectory, maps, normal="nufft", tolerance=1e-9)
    image = torch.randn(SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))
    return A, image, prepare(A, A(image), "unweighted")


def relative(a, b):
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def draw(seed):
    """Say what the augmentation of a seed does: the axes it mirrors, and whether it conjugates."""
    generator = torch.Generator().manual_seed(seed)
    coins = [bool(torch.rand((), generator=generator) < 0.5) for _ in range(4)]
    return [axis for axis in range(3) if coins[axis]], coins[3]


@pytest.mark.parametrize("seed", range(12))
def test_it_is_the_data_term_of_mirrored_coils_and_trajectory(seed):
    A, image, data = make()
    axes, conjugate = draw(seed)
    changed, reference = mirrored(data, image, torch.Generator().manual_seed(seed))
    signs = torch.tensor([-1.0 if (axis in axes) != conjugate else 1.0 for axis in range(3)])
    maps = A.maps.flip([axis + 1 for axis in axes]) if axes else A.maps
    other = Encoding(A.trajectory * signs, maps.conj() if conjugate else maps, normal="nufft", tolerance=1e-9)
    x = torch.randn(SHAPE, dtype=torch.complex128, generator=torch.Generator().manual_seed(9))
    assert relative(changed.normal(x), other.normal(x) / A.lipschitz) < 1e-7
    assert relative(changed.b * changed.scale, other.adjoint(other(reference)) / A.lipschitz) < 1e-7
    assert relative(changed.start.abs(), (data.start.flip(axes) if axes else data.start).abs()) < 1e-12


def test_twelve_seeds_mirror_each_axis_and_conjugate_and_leave_each():
    draws = [draw(seed) for seed in range(12)]
    for axis in range(3):
        assert {axis in axes for axes, _ in draws} == {True, False}
    assert {conjugate for _, conjugate in draws} == {True, False}


def test_one_seed_gives_one_change_and_the_scan_stays_as_it_is():
    _, image, data = make()
    start, b = data.start.clone(), data.b.clone()
    first, second, other = (mirrored(data, image, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[0].b, second[0].b)
    assert not torch.equal(first[1], other[1])
    assert torch.equal(data.start, start)
    assert torch.equal(data.b, b)
