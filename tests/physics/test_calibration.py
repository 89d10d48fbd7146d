"""Maps estimated from the data, against those a scan was simulated with and against BART's, and what they cost."""

import functools
import shutil
import subprocess

import numpy as np
import pytest
import torch

from blockkit.blockwise.memory import measure_peak
from blockkit.classic.compressed_sensing import compressed_sensing
from blockkit.data.phantom import pulmonary_phantom
from blockkit.data.simulate import simulate_scan
from blockkit.metrics import psnr
from blockkit.physics.calibration import estimate_maps, grid_center
from blockkit.physics.channels import compress_coils, mix_coils
from blockkit.physics.coils import simulate_maps
from blockkit.physics.espirit import espirit, smooth_phase
from blockkit.physics.fourier import DirectFourier
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

SHAPES = {"slice": (1, 64, 56), "volume": (36, 32, 40)}
N_SPOKES = {"slice": 120, "volume": 900}

every_kind = pytest.mark.parametrize("kind", SHAPES)
every_method = pytest.mark.parametrize("method", ["espirit", "lowres"])


@pytest.fixture(scope="module")
def scans():
    """One scan of a slice and one of a volume."""
    made = {}
    for kind, shape in SHAPES.items():
        volume = pulmonary_phantom([n if n == 1 else -(-3 * n // 2) for n in shape], seed=3)
        made[kind] = simulate_scan(volume, shape, n_coils=8, n_spokes=N_SPOKES[kind], noise=0.02)
    return made


@pytest.fixture(scope="module")
def estimates(scans):
    """Give the maps estimated for a kind of scan by a method, computed once."""

    @functools.cache
    def estimate(kind, method):
        scan = scans[kind]
        return estimate_maps(scan.kspace, scan.trajectory, scan.image_shape, method=method)

    return estimate


def body(scan):
    return scan.reference.abs() > 0.1 * scan.reference.abs().max()


def difference(maps, others, mask):
    """Relative L2 distance over a mask, up to a common phase and scale in each voxel."""
    scale = (maps.conj() * others).sum(dim=0) / maps.abs().square().sum(dim=0)
    off = (scale * maps - others).abs().square().sum(dim=0)
    return float((off[mask].sum() / others.abs().square().sum(dim=0)[mask].sum()).sqrt())


def largest_step(maps, mask):
    """The largest change of all coils from one voxel to the next, both within a mask; maps have the length 1."""
    steps = []
    for axis in range(3):
        n = maps.shape[1 + axis] - 1
        if n:
            both = mask.narrow(axis, 0, n) & mask.narrow(axis, 1, n)
            steps.append(float(maps.diff(dim=1 + axis).abs().square().sum(dim=0).sqrt()[both].max()))
    return max(steps)


@every_kind
@pytest.mark.parametrize(("method", "bound"), [("espirit", 0.05), ("lowres", 0.08)])
def test_the_maps_are_those_of_the_scan(scans, estimates, kind, method, bound):
    scan, maps = scans[kind], estimates(kind, method)
    assert maps.dtype == torch.complex64
    assert difference(maps, scan.maps, body(scan)) < bound
    torch.testing.assert_close(maps.norm(dim=0), torch.ones(scan.image_shape), rtol=1e-5, atol=0)


@every_kind
@every_method
def test_the_phase_is_smooth_in_the_body(scans, estimates, kind, method):
    scan, maps = scans[kind], estimates(kind, method)
    assert largest_step(maps, body(scan)) < 0.35


@every_kind
@every_method
def test_the_image_is_nearly_as_good_as_with_the_true_maps(scans, estimates, kind, method):
    scan, estimated = scans[kind], estimates(kind, method)
    scores = []
    for maps in (scan.maps, estimated):
        A = Encoding(scan.trajectory, maps)
        scores.append(psnr(A.adjoint(A.dcf * scan.kspace), scan.reference))
    assert scores[1] > scores[0] - 0.5


@pytest.mark.slow
@every_kind
@every_method
def test_compressed_sensing_loses_little_by_estimated_maps(scans, estimates, kind, method):
    scan, estimated = scans[kind], estimates(kind, method)
    scores = [
        psnr(compressed_sensing(Encoding(scan.trajectory, maps), scan.kspace, n_iterations=100), scan.reference)
        for maps in (scan.maps, estimated)
    ]
    assert scores[1] > scores[0] - 1


@pytest.mark.parametrize("shape", [(14, 12, 13), (1, 14, 12), (11, 1, 14)], ids=str)
def test_the_center_is_the_fourier_series_of_the_object_at_whole_cycles(shape):
    wide = [3 * n if n > 1 else 1 for n in shape]  # an image that is finer, so that k-space goes on beyond the center
    image = torch.ones((), dtype=torch.complex128)
    for axis, n in enumerate(wide):
        place = (torch.arange(n) - n // 2) / n
        image = image[..., None] * torch.exp(-((place - 0.03 * axis) ** 2) / 0.02 + 3j * place)
    k = radial_3d(1200 if 1 not in shape else 120, 60, [2 * n if n > 1 else 1 for n in shape]).double()
    kspace = DirectFourier(k, wide)(image)[None]
    center = grid_center(kspace, k, [2 * n if n > 1 else 1 for n in shape], calibration_width=8)[0]
    whole = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) - n // 2 for n in center.shape), indexing="ij")
    exact = DirectFourier(torch.stack([axis.flatten() for axis in whole], dim=1), wide)(image).view(center.shape)
    assert torch.linalg.vector_norm(center - exact / exact.abs().max()) < 0.01 * torch.linalg.vector_norm(center)


@every_kind
@every_method
def test_interpolated_maps_are_the_full_ones_but_for_the_normalization(scans, kind, method):
    scan = scans[kind]
    full, few = (
        estimate_maps(scan.kspace, scan.trajectory, scan.image_shape, method=method, calibration_width=14, **options)
        for options in ({}, {"interpolated": True})
    )
    assert few.values.shape[1:] == tuple(min(n, 28) if n > 1 else 1 for n in scan.image_shape)
    length = few.full().norm(dim=0)
    torch.testing.assert_close(few.full() / length, full, rtol=1e-4, atol=1e-5)
    assert (length[body(scan)] - 1).abs().max() < 0.02


@every_method
def test_memory_does_not_grow_with_the_image(scans, method):
    scan, peaks = scans["slice"], []
    for shape in (scan.image_shape, (1, 400, 320)):
        with measure_peak() as peak:
            estimate_maps(scan.kspace, scan.trajectory, shape, method=method, calibration_width=16, interpolated=True)
        peaks.append(peak.bytes)
    assert peaks[1] < 1.05 * peaks[0]


@every_method
def test_full_maps_take_little_more_than_themselves(scans, method):
    scan, shape, peaks = scans["slice"], (1, 400, 320), []
    for interpolated in (True, False):
        with measure_peak() as peak:
            maps = estimate_maps(
                scan.kspace, scan.trajectory, shape, method=method, calibration_width=16, interpolated=interpolated
            )
        peaks.append(peak.bytes)
    image = maps[0].nbytes
    assert peaks[1] < max(peaks[0], maps.nbytes + 2.1 * image) + image / 2


@every_method
@pytest.mark.parametrize("unit", [1e-20, 1e20, 2j])
def test_the_unit_of_the_kspace_does_not_matter(scans, method, unit):
    scan = scans["slice"]
    maps, others = (estimate_maps(u * scan.kspace, scan.trajectory, scan.image_shape, method=method) for u in (1, unit))
    assert difference(others, maps, body(scan)) < 1e-3


@every_method
def test_double_precision_gives_the_same_maps_in_double_precision(scans, method):
    scan = scans["slice"]
    single, double = (
        estimate_maps(scan.kspace.to(dtype), scan.trajectory, scan.image_shape, method=method)
        for dtype in (torch.complex64, torch.complex128)
    )
    assert double.dtype == torch.complex128
    assert difference(single.to(double), double, body(scan)) < 1e-3


def test_maps_of_compressed_coils_are_the_compressed_maps(scans):
    scan = scans["slice"]
    kspace, matrix = compress_coils(scan.kspace, 5)
    maps = estimate_maps(kspace, scan.trajectory, scan.image_shape)
    assert difference(maps, mix_coils(matrix, scan.maps), body(scan)) < 0.05


def test_one_coil_has_a_map_of_modulus_one(scans):
    scan = scans["slice"]
    for method in ("espirit", "lowres"):
        maps = estimate_maps(scan.kspace[:1], scan.trajectory, scan.image_shape, method=method)
        torch.testing.assert_close(maps.abs(), torch.ones_like(maps.real))
        if method == "espirit":
            torch.testing.assert_close(maps, torch.ones_like(maps))


def test_vectors_of_any_phase_are_turned_to_a_smooth_one_where_no_coil_reaches_all_of_them():
    maps = simulate_maps(8, (12, 10, 11), seed=5)
    random = torch.rand(12, 10, 11, generator=torch.Generator().manual_seed(0))
    turned = smooth_phase(maps * torch.polar(torch.ones_like(random), 2 * torch.pi * random), torch.ones_like(random))
    everywhere = torch.ones(12, 10, 11, dtype=torch.bool)
    assert difference(turned, maps, everywhere) < 1e-5
    assert largest_step(turned, everywhere) < 1.2 * largest_step(maps, everywhere)


def bart_maps(center, shape, folder, kernel_width):
    """BART's ecalib on this center, put into k-space of the whole size."""
    kspace = torch.zeros(len(center), *shape, dtype=torch.complex64)
    widths = center.shape[1:]
    place = [slice(n // 2 - w // 2, n // 2 - w // 2 + w) for n, w in zip(shape, widths, strict=True)]
    kspace[:, place[0], place[1], place[2]] = center
    (folder / "kspace.hdr").write_text("# Dimensions\n" + " ".join(map(str, (*shape[::-1], len(center)))) + "\n")
    kspace.numpy().tofile(folder / "kspace.cfl")  # the first axis runs fastest there, the last one here
    sizes = {"-k": [min(kernel_width, n) for n in center.shape[:0:-1]], "-r": center.shape[:0:-1]}
    options = [word for flag, size in sizes.items() for word in (flag, ":".join(map(str, size)))]
    command = ["bart", "ecalib", "-m1", "-c0", "-t0.001", *options, "kspace", "maps"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    return torch.from_numpy(np.fromfile(folder / "maps.cfl", dtype=np.complex64).reshape(kspace.shape))


@pytest.mark.skipif(shutil.which("bart") is None, reason="BART is not installed")
@every_kind
def test_the_maps_agree_with_those_of_bart(scans, kind, tmp_path):
    scan, width, kernel_width = scans[kind], 16, 6 if kind == "slice" else 5
    center = grid_center(scan.kspace, scan.trajectory, scan.image_shape, calibration_width=width)
    theirs = bart_maps(center, scan.image_shape, tmp_path, kernel_width)
    ours, _ = espirit(center, scan.image_shape, kernel_width=kernel_width, threshold=0.001**0.5)
    assert difference(ours, theirs, body(scan)) < 0.01
    interpolated = estimate_maps(scan.kspace, scan.trajectory, scan.image_shape, calibration_width=width)
    assert difference(interpolated, theirs, body(scan)) < 0.03


def test_a_wrong_argument_is_named(scans):
    scan = scans["slice"]
    kspace, k, shape = scan.kspace, scan.trajectory, scan.image_shape
    with pytest.raises(ValueError, match="method is 'walsh', expected one of 'espirit', 'lowres'"):
        estimate_maps(kspace, k, shape, method="walsh")
    with pytest.raises(ValueError, match=r"Write kspace.flatten\(1\)"):
        estimate_maps(kspace.unflatten(1, (N_SPOKES["slice"], -1)), k, shape)
    with pytest.raises(ValueError, match=r"expected \(sample, 3\)"):
        estimate_maps(kspace, k[:-1], shape)
    with pytest.raises(ValueError, match="For a single slice, write"):
        estimate_maps(kspace, k, shape[1:])
    with pytest.raises(ValueError, match="calibration_width is 3"):
        estimate_maps(kspace, k, shape, calibration_width=3)
    with pytest.raises(ValueError, match="zero, or not sampled, within 12"):
        estimate_maps(0 * kspace, k, shape)
    with pytest.raises(TypeError, match="Write kspace"):
        estimate_maps(kspace.real, k, shape)


def test_the_phase_of_espirit_maps_does_not_depend_on_that_of_the_eigenvectors(monkeypatch):
    """Another linear algebra library may give every eigenvector another phase."""
    scan = simulate_scan(pulmonary_phantom((36, 30, 36), seed=3), (24, 20, 24), n_coils=3, n_spokes=120, seed=3)
    expected = estimate_maps(scan.kspace, scan.trajectory, scan.image_shape)

    def turned(*args, **kwargs):
        vectors, values = espirit(*args, **kwargs)
        return -1j * vectors, values

    monkeypatch.setattr("blockkit.physics.calibration.espirit", turned)
    torch.testing.assert_close(estimate_maps(scan.kspace, scan.trajectory, scan.image_shape), expected)
