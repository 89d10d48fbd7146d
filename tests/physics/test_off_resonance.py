"""Off-resonance by time segmentation, against the exact sum with the phase of every voxel at every time."""

import math

import pytest
import torch
from operators import off_resonant_encoding, scattered

from blockkit.blockwise.memory import measure_peak, predict_peak
from blockkit.classic.compressed_sensing import compressed_sensing
from blockkit.data.band import limit_band
from blockkit.data.phantom import pulmonary_phantom
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.metrics import nrmse
from blockkit.physics.coils import simulate_maps
from blockkit.physics.fourier import NUFFT, DirectFourier
from blockkit.physics.off_resonance import OffResonance
from blockkit.physics.sense import Encoding
from blockkit.physics.solvers import conjugate_gradient
from blockkit.physics.trajectory import cones, radial_3d

SHAPE = (7, 8, 9)
TRAJECTORY = radial_3d(40, 24, SHAPE)
TIMES = 1e-3 + 2e-4 * torch.arange(24, dtype=torch.float64)  # one readout, in s


def random(shape, dtype=torch.complex128, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def field(spread, shape=SHAPE):
    """Return random frequencies with a standard deviation in Hz: none resembles its neighbor."""
    return spread * random(shape, torch.float64, seed=7)


def relative(a, b):
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def exact(trajectory, image, field_map, times):
    """Sum the series with the phase that each voxel has when each sample is read out."""
    y = torch.empty(len(trajectory), dtype=image.dtype)
    for time in times.unique():
        now = times == time
        phase = torch.polar(torch.ones_like(field_map), -2 * math.pi * field_map * time).to(image.dtype)
        y[now] = DirectFourier(trajectory[now], image.shape)(phase * image)
    return y


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("spread", [30.0, 1000.0])
def test_it_is_the_exact_sum_with_the_phase_below_the_tolerance(tolerance, spread):
    f, times = field(spread), TIMES.repeat(40)
    F = OffResonance(NUFFT(TRAJECTORY, SHAPE, tolerance=tolerance), f, times)
    corner, rare = torch.zeros(2, *SHAPE, dtype=torch.complex128)
    corner[0, 0, 0] = rare.view(-1)[f.argmax()] = 1
    for image in (random(SHAPE), corner, rare):
        assert relative(F(image), exact(TRAJECTORY, image, f, times)) < tolerance


def test_all_different_times_are_exact_too():
    k, f = scattered(SHAPE, 300), field(400.0)
    times = 0.02 * torch.rand(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    F = OffResonance(NUFFT(k, SHAPE), f, times)
    assert relative(F(random(SHAPE)), exact(k, random(SHAPE), f, times)) < 1e-4


def test_a_gradient_of_the_field_moves_the_samples():
    hz = 37.0
    ramp = (torch.arange(SHAPE[2], dtype=torch.float64) - SHAPE[2] // 2) / SHAPE[2]
    F = OffResonance(NUFFT(0.9 * TRAJECTORY, SHAPE), (hz * ramp).expand(SHAPE), TIMES)
    moved = 0.9 * TRAJECTORY.double()
    moved[:, 2] += hz * TIMES.repeat(40)  # exp(-2 pi i (k + f' t) x / n)
    assert relative(F(random(SHAPE)), DirectFourier(moved, SHAPE)(random(SHAPE))) < 1e-4


def test_a_uniform_field_takes_one_segment_and_no_field_changes_nothing():
    F = NUFFT(TRAJECTORY, SHAPE)
    uniform = OffResonance(F, torch.full(SHAPE, -220.0), TIMES)
    assert len(uniform.segment_times) == 1
    turn = torch.polar(torch.ones(24).double(), 2 * math.pi * 220 * TIMES).repeat(40)
    assert relative(uniform(random(SHAPE)), turn * F(random(SHAPE))) < 1e-12
    assert relative(OffResonance(F, torch.zeros(SHAPE), TIMES)(random(SHAPE)), F(random(SHAPE))) < 1e-14


def test_segments_are_about_as_many_as_the_turns_and_fewer_for_few_frequencies():
    F, times = NUFFT(radial_3d(3, 2000, (20, 20, 20)), (20, 20, 20)), 0.05 * torch.arange(2000) / 2000
    spread = torch.linspace(-220, 220, 8000).view(20, 20, 20)  # 22 turns
    n_spread = len(OffResonance(F, spread, times).segment_times)
    assert 22 < n_spread < 22 + 15
    water_and_fat = 220 * (spread > 0) - 220 * (spread <= 0) + spread / 50
    assert len(OffResonance(F, water_and_fat, times).segment_times) < 0.7 * n_spread
    assert len(OffResonance(F, spread, times, tolerance=1e-2).segment_times) < n_spread


def test_few_times_need_no_more_segments():
    F = OffResonance(NUFFT(scattered(SHAPE, 90), SHAPE), field(900.0), torch.tensor([0.0, 0.01, 0.02]))
    assert len(F.segment_times) == 3
    times = torch.tensor([0.0, 0.01, 0.02]).double().repeat(30)
    assert relative(F(random(SHAPE)), exact(F.trajectory, random(SHAPE), field(900.0), times)) < 1e-4


def test_times_of_one_readout_are_those_of_all():
    F = NUFFT(TRAJECTORY, SHAPE)
    one, all_of_them = (OffResonance(F, field(50.0), times) for times in (TIMES, TIMES.repeat(40)))
    assert torch.equal(one(random(SHAPE)), all_of_them(random(SHAPE)))


def test_every_coil_is_done_alike_alone_and_together():
    F, x, y = OffResonance(NUFFT(TRAJECTORY, SHAPE), field(50.0), TIMES), random((3, *SHAPE)), random((3, 960))
    assert torch.equal(F(x), torch.stack([F(one) for one in x]))
    assert torch.equal(F.adjoint(y), torch.stack([F.adjoint(one) for one in y]))
    A, many = (off_resonant_encoding((6, 5, 7), 5, coils_at_once=n) for n in (1, 3))
    x, y = random(A.in_shape), random(A.out_shape)
    assert relative(many(x), A(x)) < 1e-13
    assert relative(many.adjoint(y), A.adjoint(y)) < 1e-13
    assert relative(many.normal(x), A.normal(x)) < 1e-13


def test_memory_grows_neither_with_segments_nor_with_coils_and_is_predicted():
    shape = (12, 10, 12)
    peaks = set()
    for n_coils, spread in ((2, 20.0), (2, 200.0), (6, 20.0)):
        A = Encoding(radial_3d(20, 32, shape), simulate_maps(n_coils, shape))
        A = A.off_resonant(field(spread, shape), 1e-3 * torch.arange(32))
        x = random(shape, torch.complex64)
        A.normal(x)
        with measure_peak() as peak:
            A.normal(x)
        assert predict_peak(A.normal, x) == peak.bytes > 0
        peaks.add(peak.bytes)
    assert len(peaks) == 1


def test_weights_and_coils_are_those_of_the_encoding():
    A = off_resonant_encoding((6, 5, 7), 3)
    weights = torch.rand(A.out_shape[1], generator=torch.Generator().manual_seed(2))
    B, x = A.weighted(weights), random(A.in_shape)
    assert relative(B(x), A(x) * weights.double().sqrt()) < 1e-14
    assert relative(B.normal(x), A.adjoint(weights * A(x))) < 1e-13
    assert relative(B.of_coils(slice(1, 3))(x), B(x)[1:]) < 1e-14
    assert torch.equal(B.off_resonant(torch.zeros(A.in_shape), torch.zeros(1)).weights, weights)


def test_a_new_field_takes_the_place_of_the_old_one_and_leaves_the_old_operator():
    A = off_resonant_encoding((6, 5, 7), 2)
    x = random(A.in_shape)
    before, bound = A(x), A.lipschitz
    on_resonance = A.off_resonant(torch.zeros(A.in_shape), torch.zeros(1))
    assert relative(on_resonance(x), Encoding(A.trajectory, A.maps)(x)) < 1e-14
    assert on_resonance.lipschitz != bound
    assert torch.equal(A(x), before)


def test_there_is_no_toeplitz_form():
    A = off_resonant_encoding((6, 5, 7), 2)
    assert A.normal_kind == "nufft"
    with pytest.raises(ValueError, match=r"no Toeplitz form. Use A\.normal"):
        A.toeplitz  # noqa: B018


def test_the_largest_eigenvalue_is_bounded():
    A = off_resonant_encoding((6, 5, 7), 1)
    x = random(A.in_shape)
    for _ in range(40):
        x = A.normal(x / torch.linalg.vector_norm(x))
    largest = float(torch.linalg.vector_norm(x))
    assert largest <= A.lipschitz < 1.1 * largest


@pytest.fixture(scope="module")
def spiral_scan():
    """Simulate on a finer grid, by the exact sum, a slice along spirals of 12 ms in a field of up to 150 Hz."""
    shape, fine, n_readout = (1, 40, 36), (1, 60, 54), 160
    k, times = cones(24, n_readout, shape, n_turns=2), 1e-3 + 75e-6 * torch.arange(n_readout)

    def field_map(n):
        y, x = ((torch.arange(n[axis]) - n[axis] // 2) / n[axis] for axis in (1, 2))
        return 150 * torch.cos(2 * y[None, :, None] + 0.4) * torch.sin(2 * x + 0.9)

    truth = pulmonary_phantom(fine, seed=3)
    scale = (math.prod(shape) / math.prod(fine)) ** 0.5
    kspace = [scale * exact(k, m * truth, field_map(fine), times.repeat(24)) for m in simulate_maps(2, fine, seed=3)]
    A = Encoding(k, simulate_maps(2, shape, seed=3))
    return A, A.off_resonant(field_map(shape), times), torch.stack(kspace), limit_band(truth, shape)


def solve(A, kspace):
    A = A.weighted(A.dcf)
    return conjugate_gradient(A.normal, A.adjoint(kspace * A.dcf.sqrt()), n_iterations=15)


def test_the_correction_makes_the_image_many_times_better(spiral_scan):
    blurred, corrected, kspace, reference = spiral_scan
    ignored, corrected = (nrmse(solve(A, kspace), reference) for A in (blurred, corrected))
    assert ignored > 0.3
    assert corrected < ignored / 5


def test_compressed_sensing_and_networks_take_it(spiral_scan):
    blurred, corrected, kspace, reference = spiral_scan
    ignored, image = (compressed_sensing(A, kspace, n_iterations=12) for A in (blurred, corrected))
    assert nrmse(image, reference) < 0.4 * nrmse(ignored, reference)
    model = UnrolledNetwork(ResidualCNN(4, 2), n_unrolls=4, block_shape=(1, 20, 18))  # untrained: data consistency
    with torch.no_grad():
        ignored, image = (model(A, kspace) for A in (blurred, corrected))
    assert nrmse(image, reference) < 0.3 * nrmse(ignored, reference)


@pytest.mark.parametrize(
    ("field_map", "times", "error", "message"),
    [
        (field(9.0)[0], TIMES, ValueError, r"shape \(8, 9\), expected \(z, y, x\) .* field_map\[None\]"),
        (field(9.0).to(torch.complex64), TIMES, TypeError, r"Pass field_map\.real"),
        (field(9.0).int(), TIMES, TypeError, r"Pass field_map\.float\(\)"),
        (field(9.0) * math.nan, TIMES, ValueError, "field_map has 504 values that are"),
        (field(9.0), TIMES[:7], ValueError, r"times has shape \(7,\), expected \(sample,\) = \(960,\), or"),
        (field(9.0), TIMES[None], ValueError, r"times has shape \(1, 24\)"),
        (field(9.0), torch.arange(24), TypeError, r"Pass times\.float\(\)"),
        (field(9.0), TIMES / 0, ValueError, "times has 24 values"),
        (field(90.0), 1e6 * TIMES, ValueError, r"turns, expected at most 200\. Is the field map in Hz .* in seconds"),
        (field(9.0).numpy(), TIMES, TypeError, r"torch\.as_tensor\(field_map\)"),
    ],
)
def test_bad_input_is_explained(field_map, times, error, message):
    with pytest.raises(error, match=message):
        OffResonance(NUFFT(TRAJECTORY, SHAPE), field_map, times)


def test_other_operators_and_tolerances_are_refused():
    with pytest.raises(TypeError, match=r"fourier is a DirectFourier, expected a NUFFT: NUFFT\(trajectory"):
        OffResonance(DirectFourier(TRAJECTORY, SHAPE), field(9.0), TIMES)
    with pytest.raises(ValueError, match=r"tolerance is 0\.5, expected"):
        OffResonance(NUFFT(TRAJECTORY, SHAPE), field(9.0), TIMES, tolerance=0.5)
