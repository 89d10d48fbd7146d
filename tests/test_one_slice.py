"""Two-dimensional data is a volume one voxel thick, everywhere: each public function is run on a slice."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import Tensor

import blockkit as bk
from blockkit.cli import main

SHAPE = (1, 40, 36)
N_SPOKES, N_READOUT = 60, 80

Check = Callable[["Slice"], Any]


class Slice:
    """A scan of one slice and what is made from it, a few times over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scan = bk.simulate_scan(bk.pulmonary_phantom((1, 60, 54), seed=1), SHAPE, n_coils=4, n_spokes=N_SPOKES)
        self.k, self.kspace, self.maps = self.scan.trajectory, self.scan.kspace, self.scan.maps
        assert self.scan.reference is not None
        self.image = self.scan.reference
        self.A = bk.Encoding(self.k, self.maps)
        self.raw = bk.RawScan(self.kspace, self.k, SHAPE, self.scan.voxel_size, n_readout=N_READOUT, maps=self.maps)
        self.file = folder / "scan.h5"
        self.scan.save(self.file)

    def model(self, block_shape: tuple[int, int, int] | None, **options: Any) -> bk.UnrolledNetwork:
        torch.manual_seed(0)
        return bk.UnrolledNetwork(bk.ResidualCNN(4, 3, **options), 2, block_shape=block_shape)


@pytest.fixture(scope="module")
def slice_(tmp_path_factory: pytest.TempPathFactory) -> Slice:
    return Slice(tmp_path_factory.mktemp("slice"))


def relative(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float(torch.linalg.vector_norm(a - b) / torch.linalg.vector_norm(b))


def in_the_plane(make: Callable[..., Tensor]) -> Check:
    def check(s: Slice) -> bool:
        k = make(30, N_READOUT, SHAPE)
        reach = k.abs().amax(dim=0)
        return bool((k[:, 0] == 0).all()) and 19 < reach[1] <= 20 and 17 < reach[2] <= 18

    return check


def as_the_exact_sum(s: Slice) -> bool:
    F, exact = bk.NUFFT(s.k, SHAPE), bk.DirectFourier(s.k, SHAPE)
    x = s.image.to(torch.complex128)
    place = [(torch.arange(n, dtype=torch.float64) - n // 2) / n for n in SHAPE[1:]]
    ey, ex = (torch.exp(-2j * math.pi * s.k[:, a, None].double() * p) for a, p in zip((1, 2), place, strict=True))
    summed = torch.einsum("sy,sx,yx->s", ey, ex, x[0]) / math.sqrt(math.prod(SHAPE))
    return relative(F(x), summed) < 1e-4 and relative(exact(x), summed) < 1e-10


def normal_by_toeplitz(s: Slice) -> bool:
    w = bk.density_compensation(s.k, SHAPE)
    F = bk.NUFFT(s.k, SHAPE)
    return relative(F.toeplitz(w)(s.image), F.adjoint(w * F(s.image))) < 1e-4


def weights_of_a_disk(s: Slice) -> bool:
    return abs(float(bk.density_compensation(s.k, SHAPE).sum()) / (math.pi / 4 * math.prod(SHAPE)) - 1) < 0.2


def maps_like_the_true_ones(method: str) -> Check:
    def check(s: Slice) -> bool:
        maps = bk.estimate_maps(s.kspace, s.k, SHAPE, method=method)
        together = (maps.conj() * s.maps).sum(dim=0).abs()[s.image.abs() > 0.2]
        return maps.shape == s.maps.shape and float(together.mean()) > 0.98

    return check


def delays_that_were_put_in(s: Slice) -> bool:
    late = bk.delay_gradients(0.9 * s.k, N_READOUT, (0, 0.8, -0.4))
    volume = bk.pulmonary_phantom((1, 60, 54), seed=1)
    scan = bk.simulate_scan(volume, SHAPE, n_coils=4, trajectory=late)
    found = bk.estimate_delays(scan.kspace, 0.9 * s.k, N_READOUT)
    return found[0] == 0 and abs(found[1] - 0.8) < 0.05 and abs(found[2] + 0.4) < 0.05


def off_resonance(s: Slice) -> bool:
    times = 1e-5 * torch.arange(N_READOUT)
    A = s.A.off_resonant(torch.full(SHAPE, 100.0), times)
    turn = torch.exp(-2j * math.pi * 100 * times).repeat(N_SPOKES)
    return relative(A(s.image), turn * s.A(s.image)) < 1e-5


def compressed_sensing(s: Slice) -> bool:
    return bk.nrmse(bk.compressed_sensing(s.A, s.kspace, n_iterations=20), s.image) < 0.1


def network(**options: Any) -> Check:
    def check(s: Slice) -> bool:
        whole, blocks = (s.model(block, **options) for block in (None, (16, 20, 18)))
        images = [model(s.A, s.kspace) for model in (whole, blocks)]
        for image in images:
            image.abs().square().sum().backward()
        same = [
            relative(b.grad, a.grad) < 1e-4
            for a, b in zip(whole.parameters(), blocks.parameters(), strict=True)
            if a.grad is not None and b.grad is not None and bool(a.grad.any())
        ]
        return images[0].shape == SHAPE and relative(images[1], images[0]) < 1e-5 and len(same) > 1 and all(same)

    return check


def blocks(s: Slice) -> bool:
    net, x = bk.ResidualCNN(4, 3), torch.view_as_real(s.image).movedim(-1, 0).contiguous()
    torch.nn.init.normal_(net.layers[-1].weight, std=0.1)
    with torch.no_grad():
        return relative(bk.apply_blockwise(net, x, (1, 20, 18)), net(x[None])[0]) < 1e-6


def planned(s: Slice) -> bool:
    sizes = {"n_coils": 4, "n_samples": len(s.k), "n_unrolls": 1, "budget_gib": 1}
    found = bk.plan(SHAPE, network=bk.ResidualCNN(2, 2), training=False, **sizes)
    return found.block_shape == SHAPE and 0 < found.n_bytes < 2**30


def predicted(s: Slice) -> bool:
    with bk.measure_peak() as peak:
        s.A.normal(s.image)
    return bk.predict_peak(s.A.normal, s.image) == peak.bytes > 0


def trained(s: Slice) -> bool:
    history = bk.fit(s.model((1, 20, 18)), [s.scan], n_steps=2)
    by_itself = bk.fit(s.model((1, 20, 18)), [s.scan], n_steps=2, target="self")
    return all(math.isfinite(loss) for loss in (*history.losses, *by_itself.losses))


def selected(s: Slice) -> bool:
    kspace, k = bk.crop_kspace(*bk.select_readouts(s.kspace, s.k, N_READOUT, slice(0, 30)), (1, 20, 18))
    shifted = bk.shift_fov(kspace, k, (0, 0.1, 0))
    return 0 < len(k) < 30 * N_READOUT and relative(shifted.abs(), kspace.abs()) < 1e-6


def fewer_coils(s: Slice) -> bool:
    white, _ = bk.prewhiten(s.kspace, bk.outer_samples(s.kspace, s.k))
    few, matrix = bk.compress_coils(white, 2)
    return few.shape == (2, len(s.k)) and matrix.shape == (2, 4)


def stored(s: Slice) -> bool:
    back = bk.load_scan(s.file)
    return torch.equal(back.maps, s.maps) and back.image_shape == SHAPE and back.voxel_size == s.scan.voxel_size


def as_ismrmrd(s: Slice) -> bool:
    bk.save_ismrmrd(s.folder / "raw.h5", s.raw)
    return came_back(bk.load_ismrmrd(s.folder / "raw.h5"), s)


def as_cfl(s: Slice) -> bool:
    kspace, trajectory, maps = (str(path) for path in bk.save_cfl(s.folder / "raw", s.raw))
    parts = sorted((kspace, trajectory, maps))
    return came_back(bk.load_cfl(parts[0], parts[2], parts[1], voxel_size=s.scan.voxel_size), s)


def as_arrays(s: Slice) -> bool:
    spokes = {"ksp": s.kspace.view(4, N_SPOKES, N_READOUT), "coord": s.k.view(N_SPOKES, N_READOUT, 3)[..., 1:]}
    np.savez(s.folder / "raw.npz", **{name: values.numpy() for name, values in spokes.items()})
    axes = {"kspace": "ksp: coil spoke readout", "trajectory": "coord: spoke readout (ky kx)"}
    raw = bk.load_arrays(s.folder / "raw.npz", axes, voxel_size=s.scan.voxel_size, image_shape=SHAPE[1:])
    return came_back(raw, s)


def came_back(raw: bk.RawScan, s: Slice) -> bool:
    return (
        raw.image_shape == SHAPE
        and torch.equal(raw.kspace, s.kspace)
        and torch.allclose(raw.trajectory, s.k, atol=1e-5)
        and (raw.maps is None or torch.equal(raw.maps, s.maps))
    )


def as_nifti(s: Slice) -> bool:
    bk.save_nifti(s.folder / "image.nii.gz", s.image, s.scan.voxel_size)
    read = nibabel.load(s.folder / "image.nii.gz")
    there = np.asanyarray(read.dataobj).transpose(2, 1, 0)
    return np.allclose(there, s.image.abs()) and np.allclose(read.header.get_zooms(), s.scan.voxel_size[::-1])


def metrics(s: Slice) -> bool:
    worse = s.image + 0.05 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    return 0.2 < bk.ssim(worse, s.image) < 1 and bk.psnr(worse, s.image) > 20 and bk.nrmse(worse, s.image) < 0.3


def viewed(s: Slice) -> bool:
    viewer = bk.SliceViewer({"image": s.image, "reference": s.image}, face="image")
    viewer.position = (0, 3, 4)
    viewer.slab = 0
    viewer.save_png(s.folder / "view.png")
    return viewer.pixels("image", "z").shape == (40, 36, 3) and "1 x 40 x 36" in repr(viewer)


def drawn(s: Slice) -> bool:
    show = bk.show
    figures = [
        show.show_slices({"image": s.image, "reference": s.image}),
        show.show_mip({"image": s.image}, axis="z"),
        show.plot_blocks(s.image, (1, 20, 18), halo=(3, 3, 3)),
    ]
    return all(any(ax.images for ax in figure.axes) for figure in figures)


def explored(s: Slice) -> bool:
    return "1 x 40 x 36" in repr(bk.MemoryExplorer(image_shape=SHAPE))


def by_command(method: str, *options: str) -> Check:
    def check(s: Slice) -> bool:
        output = s.folder / f"{method}.nii.gz"
        arguments = ["recon", str(s.file), "--method", method, "-o", str(output), "--device", "cpu", *options]
        return main(arguments) == 0 and nibabel.load(output).shape == (36, 40, 1)

    return check


def told(s: Slice) -> bool:
    return main(["info", str(s.file)]) == 0


WORKS: dict[str, Check] = {
    "radial spokes": in_the_plane(bk.radial_3d),
    "a stack of stars": in_the_plane(bk.stack_of_stars),
    "cones": in_the_plane(bk.cones),
    "a phyllotaxis": in_the_plane(bk.spiral_phyllotaxis),
    "density compensation": weights_of_a_disk,
    "NUFFT and exact sum": as_the_exact_sum,
    "the Toeplitz form": normal_by_toeplitz,
    "the dot test": lambda s: bk.adjoint_error(s.A) < 1e-13,
    "off-resonance": off_resonance,
    "maps by ESPIRiT": maps_like_the_true_ones("espirit"),
    "maps of low resolution": maps_like_the_true_ones("lowres"),
    "interpolated maps": lambda s: bk.InterpolatedMaps(s.maps[:, :, ::8, ::6], SHAPE).full().shape == (4, *SHAPE),
    "fewer coils": fewer_coils,
    "the delays of the gradients": delays_that_were_put_in,
    "a choice of readouts": selected,
    "compressed sensing": compressed_sensing,
    "an unrolled network in blocks": network(),
    "a network with a stride": network(downsample=2),
    "blocks": blocks,
    "reach": lambda s: bk.reach(bk.ResidualCNN(4, 3)).halo == (3, 3, 3),
    "plan": planned,
    "predicted memory": predicted,
    "training": trained,
    "a scan file": stored,
    "ISMRMRD": as_ismrmrd,
    "BART's files": as_cfl,
    "named arrays": as_arrays,
    "NIfTI": as_nifti,
    "metrics": metrics,
    "the slice viewer": viewed,
    "figures": drawn,
    "the memory explorer": explored,
    "info": told,
    "recon by gridding": by_command("gridding"),
    "recon by compressed sensing": by_command("cs", "--n-iterations", "3"),
}


@pytest.mark.parametrize("name", WORKS)
def test_a_volume_one_voxel_thick_works_through(name: str, slice_: Slice) -> None:
    assert WORKS[name](slice_)


@pytest.mark.slow
def test_the_shipped_model_reconstructs_a_slice(slice_: Slice) -> None:
    assert by_command("mbdl")(slice_)


SHAPE_OF_TWO = r"has 2 numbers, \(40, 36\).* For a single slice, write \(1, y, x\)"
FLAT = {
    "a shape": (lambda s: bk.radial_3d(30, 80, SHAPE[1:]), SHAPE_OF_TWO),
    "a shape for maps": (lambda s: bk.estimate_maps(s.kspace, s.k, SHAPE[1:]), SHAPE_OF_TWO),
    "a phantom's shape": (lambda s: bk.pulmonary_phantom(SHAPE[1:]), SHAPE_OF_TWO),
    "a volume": (lambda s: bk.simulate_scan(s.image[0], SHAPE), r"For one slice, pass volume\[None\]"),
    "a trajectory": (lambda s: bk.NUFFT(s.k[:, 1:], SHAPE), r"torch\.nn\.functional\.pad\(trajectory, \(1, 0\)\)"),
    "a trajectory for maps": (lambda s: bk.estimate_maps(s.kspace, s.k[:, 1:], SHAPE), r"pad\(trajectory, \(1, 0\)\)"),
    "a trajectory of a scan": (
        lambda s: bk.Scan(s.kspace, s.k[:, 1:], s.maps, (1, 1, 1)),
        r"pad\(trajectory, \(1, 0\)\)",
    ),
    "maps": (lambda s: bk.Encoding(s.k, s.maps[:, 0]), r"for one slice, maps\[:, None\]"),
    "maps of a scan": (
        lambda s: bk.Scan(s.kspace, s.k, s.maps[:, 0], (1, 1, 1)),
        r"for one slice, maps\[:, None\]",
    ),
    "an image": (lambda s: s.A(s.image[0]), r"if that is z, pass image\[None\]"),
    "an image for the NUFFT": (lambda s: bk.NUFFT(s.k, SHAPE)(s.image[0]), r"if that is z, pass image\[None\]"),
    "channels": (
        lambda s: bk.apply_blockwise(bk.ResidualCNN(4, 2), torch.zeros(2, 40, 36), (1, 20, 18)),
        r"Is it one slice\? Pass x\[:, None\]",
    ),
    "an odd size under a stride": (
        lambda s: bk.apply_blockwise(bk.ResidualCNN(4, 2, downsample=2), torch.zeros(2, *SHAPE), (2, 20, 18)),
        r"Pad it to \(2, 40, 36\): torch\.nn\.functional\.pad\(x, \(0, 0, 0, 0, 0, 1\)\)",
    ),
    "a field map": (
        lambda s: s.A.off_resonant(torch.zeros(40, 36), torch.zeros(1)),
        r"if that is z, pass field_map\[None\]",
    ),
    "an image to write": (
        lambda s: bk.save_nifti(s.folder / "flat.nii", s.image[0], (1, 1, 1)),
        r"For one slice, pass image\[None\]",
    ),
    "a volume to view": (lambda s: bk.SliceViewer({"a": s.image[0]}), r"if that is z, pass volume\[None\]"),
    "FLORET": (lambda s: bk.floret(30, 80, SHAPE), "For one slice, use cones"),
}


@pytest.mark.parametrize("name", FLAT)
def test_what_lacks_the_axis_is_told_what_to_type(name: str, slice_: Slice) -> None:
    call, message = FLAT[name]
    with pytest.raises(ValueError, match=message):
        call(slice_)


@pytest.mark.parametrize("thin", [(40, 1, 36), (40, 36, 1)], ids=str)
def test_other_axes_may_be_one_voxel_thick_too(thin: tuple[int, int, int]) -> None:
    volume = bk.pulmonary_phantom([n if n == 1 else 60 for n in thin], seed=1)
    scan = bk.simulate_scan(volume, thin, n_coils=3, n_spokes=60)
    A = bk.Encoding(scan.trajectory, bk.estimate_maps(scan.kspace, scan.trajectory, thin))
    assert bk.nrmse(bk.compressed_sensing(A, scan.kspace, n_iterations=10), scan.reference) < 0.2
    model = bk.UnrolledNetwork(bk.ResidualCNN(4, 3, downsample=2), 2, block_shape=(20, 18, 18))
    with torch.no_grad():
        assert bk.nrmse(model(A, scan.kspace), scan.reference) < 0.25
