"""Random operators and their compositions obey the laws of linear operators."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_laws import random, relative

from blockkit.physics.coils import simulate_maps
from blockkit.physics.fourier import NUFFT, DirectFourier
from blockkit.physics.linop import adjoint_error
from blockkit.physics.maps import InterpolatedMaps
from blockkit.physics.sense import Encoding

every_time_the_same = settings(
    max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
shapes = st.tuples(*3 * [st.integers(1, 7)])


@st.composite
def trajectories(draw, shape):
    """Return samples anywhere in k-space, some of them at its edge, its center, or twice in one place."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    k = (torch.rand(draw(st.integers(1, 30)), 3, generator=generator, dtype=torch.float64) - 0.5) * torch.tensor(shape)
    special = draw(st.sampled_from(["none", "center", "edge", "twice"]))
    if special == "center":
        k[0] = 0
    elif special == "edge":
        k[0] = -torch.tensor(shape, dtype=torch.float64) / 2
    elif special == "twice":
        k = torch.cat([k, k[:1]])
    return k


@st.composite
def fourier_operators(draw, shape):
    kind = draw(st.sampled_from(["exact", "finufft", "coarse"]))
    k = draw(trajectories(shape))
    if kind == "exact":
        return DirectFourier(k, shape)
    return NUFFT(k, shape, engine="finufft", tolerance=1e-2 if kind == "coarse" else 1e-5)


@st.composite
def encodings(draw, shape):
    n_coils = draw(st.integers(1, 4))
    maps = simulate_maps(n_coils, shape, seed=draw(st.integers(0, 9)))
    if draw(st.booleans()):
        maps = InterpolatedMaps(simulate_maps(n_coils, tuple(n // 2 if n > 5 else 1 for n in shape)), shape)
    k = draw(trajectories(shape))
    weights = draw(st.sampled_from([None, 0.25 + torch.arange(len(k)) / len(k)]))
    return Encoding(
        k, maps, normal=draw(st.sampled_from(["toeplitz", "nufft"])),
        coils_at_once=draw(st.integers(1, 5)), weights=weights,
    )  # fmt: skip


@st.composite
def operators(draw):
    shape = draw(shapes)
    A = draw(st.one_of(fourier_operators(shape), encodings(shape)))
    for _ in range(draw(st.integers(0, 2))):  # what maps images to images may come before it
        k = draw(trajectories(shape))
        A = A @ NUFFT(k, shape, tolerance=1e-6).toeplitz()
    return A


@pytest.mark.slow
@every_time_the_same
@given(operators())
def test_the_adjoint_is_the_conjugate_transpose(A):
    assert adjoint_error(A) < 1e-12


@pytest.mark.slow
@every_time_the_same
@given(operators())
def test_forward_is_linear_and_normal_is_adjoint_after_forward(A):
    a, b = random(A.in_shape, seed=1), random(A.in_shape, seed=2)
    size = torch.linalg.vector_norm(A(a)) + torch.linalg.vector_norm(A(b))
    assert torch.linalg.vector_norm(A(a + (2 - 3j) * b) - A(a) - (2 - 3j) * A(b)) <= 1e-12 * size
    assert relative(A.normal(a), A.adjoint(A(a))) < 2e-4  # a Toeplitz normal has the error of its kernel


@pytest.mark.slow
@every_time_the_same
@given(st.data(), shapes)
def test_the_nufft_is_the_exact_sum_within_its_tolerance(data, shape):
    k = data.draw(trajectories(shape))
    tolerance = data.draw(st.sampled_from([1e-2, 1e-4, 1e-8]))
    fast, exact = NUFFT(k, shape, engine="finufft", tolerance=tolerance), DirectFourier(k, shape)
    x, y = random(exact.in_shape), random(exact.out_shape)
    assert torch.linalg.vector_norm(fast(x) - exact(x)) <= 10 * tolerance * torch.linalg.vector_norm(x)
    assert torch.linalg.vector_norm(fast.adjoint(y) - exact.adjoint(y)) <= 10 * tolerance * torch.linalg.vector_norm(y)


@pytest.mark.slow
@every_time_the_same
@given(st.data(), shapes)
def test_coils_at_once_and_the_form_of_the_maps_change_nothing(data, shape):
    n_coils, k = data.draw(st.integers(1, 5)), data.draw(trajectories(shape))
    maps = InterpolatedMaps(simulate_maps(n_coils, tuple(n // 2 if n > 5 else 1 for n in shape)), shape)
    one = Encoding(k, maps.full(), normal="nufft")
    other = Encoding(k, maps, normal="nufft", coils_at_once=data.draw(st.integers(1, 7)))
    x, y = random(one.in_shape), random(one.out_shape)
    assert torch.linalg.vector_norm(other(x) - one(x)) <= 1e-6 * torch.linalg.vector_norm(one(x))
    assert torch.linalg.vector_norm(other.adjoint(y) - one.adjoint(y)) <= 1e-6 * torch.linalg.vector_norm(
        one.adjoint(y)
    )
