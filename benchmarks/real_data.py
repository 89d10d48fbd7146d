"""The shipped model on data that no phantom made: an anatomy from CT, and a measured lung scan.

``--cta``: a contrast CT angiogram of the thorax as NIfTI, in Hounsfield units. Its values become those of an MR
angiogram, resampled over the phantom's field of view, a scan of it is simulated (64 x 48 x 64, 8 coils, acceleration 8,
noise 2 %), and MBDL is compared with compressed sensing, blockkit's and BART's; weight and iterations are tuned on this
very scan, with the reference in hand. Images are kept in build/quality/cta/.
``--lung``: measured 3D radial scans of hyperpolarized gas, one coil, as NumPy archives with ``ksp_gas`` or ``ksp``
(coil, spoke, sample) and ``coord`` (spoke, sample, 3) in cycles per voxel of a matrix of 64. There is no reference:
images from all spokes and from every fourth, by MBDL, by MBDL after self-supervised training on the very spokes it
reconstructs from, and by compressed sensing at several weights; their apparent signal-to-noise ratio, how sharp the
border of the lungs is, and of every fourth the error on the other spokes, which no method has seen.

Neither file comes with this project. Writes benchmarks/results/real_data.md, and pictures to build/real_data/.
"""

import argparse
import functools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import nibabel
import numpy as np
import torch
from baselines import BASELINES
from cases import Case
from common import ROOT, machine, weights_name
from matplotlib import image as files
from numpy.typing import NDArray
from quality import baseline_image, gridding_image, mbdl_image, mean_psnr
from scipy import ndimage
from skimage.morphology import convex_hull_image
from tuning import tune

import blockkit as bk
from blockkit.mbdl.splitting import held_out_error
from blockkit.physics.coils import FOV_MM

PICTURES = ROOT / "build" / "real_data"
CTA_SHAPE, CTA_COILS, ACCELERATION = (64, 48, 64), 8, 8
RIVALS, MOST_ITERATIONS = ("own", "own_haar", "bart_haar", "bart_wavelet"), 1600
LUNG_MATRIX, LUNG_WEIGHTS, LUNG_ITERATIONS = 64, (1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 1e-3), 400
SELF_STEPS, SELF_RATE = 200, 1e-4
SIGNAL = {-1000: 0.0, -500: 0.15, -200: 0.2, -100: 0.3, -20: 0.18, 80: 0.2, 160: 0.45, 300: 1.0}
OUTSIDE = {-1000: 0.0, -500: 0.1, -200: 0.2, -100: 0.3, -20: 0.18, 120: 0.2, 300: 0.15, 900: 0.05}
"""Signal by Hounsfield units inside the ribcage, where what is bright is blood, and outside, where it is bone."""

Array = NDArray[np.float32]


def read_cta(path: Path) -> tuple[Array, Array]:
    """Return Hounsfield units (z, y, x), head to feet, front to back, right to left, and the voxel size in mm."""
    image = nibabel.load(path)
    right_order = nibabel.orientations.axcodes2ornt(("L", "P", "I"))
    turn = nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(image.affine), right_order)
    turned = image.as_reoriented(turn)
    return np.asarray(turned.dataobj, np.float32).transpose(2, 1, 0), np.array(turned.header.get_zooms()[::-1])


def angiogram(hounsfield: Array) -> Array:
    """Map Hounsfield units to the magnitude of an MR angiogram."""
    lungs = ndimage.binary_opening((hounsfield > -980) & (hounsfield < -500), iterations=2)
    pieces, _ = ndimage.label(lungs)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    for side in (pieces[:, [0, -1]], pieces[:, :, [0, -1]]):  # couch and clothes, which reach the edge of the picture
        sizes[np.unique(side)] = 0
    lungs = np.isin(pieces, np.flatnonzero(sizes > 0.2 * sizes.max()))
    cage = np.stack([convex_hull_image(plane) if plane.any() else plane for plane in lungs])
    cage = ndimage.binary_erosion(cage, iterations=2)
    inside, outside = (np.interp(hounsfield, list(table), list(table.values())) for table in (SIGNAL, OUTSIDE))
    return np.where(cage, inside, outside).astype(np.float32)


def on_fov(magnitude: Array, size: Array, shape: tuple[int, int, int]) -> torch.Tensor:
    """Resample about the middle onto the phantom's field of view, zero beyond the data, and add a smooth phase."""
    step = np.array(FOV_MM) / shape
    smooth = ndimage.gaussian_filter(magnitude, np.sqrt(np.maximum((step / size) ** 2 - 1, 0)) / 2.355)
    axes = [
        (np.arange(n) - n // 2) * h / s + (old - 1) / 2
        for n, h, s, old in zip(shape, step, size, magnitude.shape, strict=True)
    ]
    image = ndimage.map_coordinates(smooth, np.meshgrid(*axes, indexing="ij"), order=1, cval=0.0)
    z, y, x = (
        ((np.arange(n) - n // 2) / n).reshape([-1 if a == i else 1 for a in range(3)]) for i, n in enumerate(shape)
    )
    phase = 0.7 + 0.9 * z - 1.1 * y + 0.6 * x + 1.5 * z * x - 2.0 * y**2
    return torch.from_numpy((image * np.exp(1j * phase)).astype(np.complex64))


def cta_scan(path: Path) -> bk.Scan:
    """Simulate the scan of a CT angiogram's anatomy."""
    volume = on_fov(*_mapped(path), tuple(round(1.5 * n) for n in CTA_SHAPE))
    n_spokes = round(math.pi / 2 * max(CTA_SHAPE) ** 2 / ACCELERATION)
    return bk.simulate_scan(volume, CTA_SHAPE, n_coils=CTA_COILS, n_spokes=n_spokes, noise=0.02, seed=1)


def _mapped(path: Path) -> tuple[Array, Array]:
    hounsfield, size = read_cta(path)
    return angiogram(hounsfield), size


def cta_report(path: Path) -> Iterator[str]:
    """Give the table of the CT angiogram."""
    case = Case("cta", functools.partial(cta_scan, path), list)
    reference = case.scan().reference
    images = {"gridding": gridding_image(case), "MBDL": mbdl_image(case)}
    for rival in BASELINES:
        if rival.key in RIVALS and rival.missing() is None:
            score = functools.cache(functools.partial(mean_psnr, [case], rival))
            weight, n_iterations, _ = tune(score, rival.weight, rival.n_iterations, MOST_ITERATIONS)
            name = f"{rival.name}, weight {weight:.2g}, {n_iterations} iterations"
            images[name] = baseline_image(case, rival, weight, n_iterations)
    yield "## Anatomy from a CT angiogram"
    yield ""
    yield f"{' x '.join(map(str, CTA_SHAPE))}, {CTA_COILS} coils, acceleration {ACCELERATION}, noise 2 %."
    yield ""
    yield "| image | PSNR dB | SSIM |"
    yield "| --- | --- | --- |"
    for name, image in images.items():
        yield f"| {name} | {bk.psnr(image, reference):.2f} | {bk.ssim(image, reference):.3f} |"
    gains = [bk.psnr(images["MBDL"], reference) - bk.psnr(image, reference) for image in images.values()]
    yield ""
    yield f"MBDL - best CS: {min(gains[2:]):+.2f} dB."
    yield ""
    picture("cta", {**images, "reference": reference})


def lung_scan(path: Path, spokes: NDArray[np.bool_] | slice) -> bk.Scan:
    """Return the scan of some of the spokes; the archive does not say how large the voxels are."""
    archive = np.load(path)
    kspace = archive["ksp_gas" if "ksp_gas" in archive else "ksp"][:, spokes].reshape(1, -1)
    return bk.Scan(
        kspace=torch.from_numpy(kspace),
        trajectory=torch.from_numpy(archive["coord"][spokes].reshape(-1, 3) * LUNG_MATRIX).float(),
        maps=torch.ones(1, *(LUNG_MATRIX,) * 3, dtype=torch.complex64),
        voxel_size=(1.0, 1.0, 1.0),
    )


def lung_images(scan: bk.Scan, name: str) -> dict[str, torch.Tensor]:
    """Reconstruct a lung scan by each method."""
    A = bk.Encoding(scan.trajectory, scan.maps)
    shipped, own = bk.pretrained(), self_trained(scan, name)
    with torch.no_grad():
        images = {"gridding": A.adjoint(A.dcf * scan.kspace), "MBDL": shipped(A, scan.kspace)}
        images[f"MBDL, {SELF_STEPS} steps on this scan"] = own(A, scan.kspace)
    for weight in LUNG_WEIGHTS:
        images[f"CS, weight {weight:g}"] = bk.compressed_sensing(
            A, scan.kspace, reg_weight=weight, n_iterations=LUNG_ITERATIONS, wavelet="haar"
        )
    return images


def self_trained(scan: bk.Scan, name: str) -> bk.UnrolledNetwork:
    """Train the shipped model on a scan by itself, without a reference; the run is kept, and goes on if stopped."""
    model = bk.pretrained()
    PICTURES.mkdir(parents=True, exist_ok=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        bk.fit(
            model,
            [scan],
            target="self",
            n_steps=SELF_STEPS,
            learning_rate=SELF_RATE,
            augment=True,
            checkpoint=PICTURES / f"{name}_{weights_name()}.safetensors",
            watch=lambda progress: None,
        )
    return model


def lung_regions(image: torch.Tensor) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Return lungs, their border and the air around, from a smoothed image."""
    smooth = ndimage.gaussian_filter(image.abs().numpy(), 1.5)
    lungs = smooth > 0.35 * np.quantile(smooth, 0.99)
    pieces, _ = ndimage.label(lungs)
    sizes = np.bincount(pieces.ravel())[1:]
    lungs = np.isin(pieces, 1 + np.flatnonzero(sizes > 0.1 * sizes.max()))
    border = ndimage.binary_dilation(lungs) & ~ndimage.binary_erosion(lungs)
    axes = np.meshgrid(*((np.arange(n) - n // 2) / n for n in lungs.shape), indexing="ij")
    air = ~ndimage.binary_dilation(lungs, iterations=6) & (sum(a**2 for a in axes) < 0.45**2)
    return ndimage.binary_erosion(lungs, iterations=2), border, air


def lung_words() -> Iterator[str]:
    """Give what the columns of the tables of lung scans mean."""
    yield "## Measured lung scans"
    yield ""
    yield "Apparent SNR: mean in the lungs over the standard deviation in the air around, of the magnitude. Rise: mean"
    yield "in the lungs less that in the air, over the median along their border of the steepest slope within a voxel,"
    yield "after a Gaussian of 0.7 voxels, so that noise counts less. CS by L1-wavelet (Haar), weights from one that"
    yield f"does almost nothing to one that blurs the lungs, {LUNG_ITERATIONS} iterations: compare where as sharp."
    yield "Error on other spokes: relative L2, weighted by density, of what an image gives on spokes left out. Their"
    yield "noise is in all of these errors; the image with the lowest is the nearest to what was measured there."
    yield ""


def lung_report(path: Path) -> Iterator[str]:
    """Give the table of a lung scan."""
    n_spokes = len(np.load(path)["coord"])
    every_fourth = np.arange(n_spokes) % 4 == 0
    used = {n_spokes: slice(None), int(every_fourth.sum()): every_fourth}
    others = lung_scan(path, ~every_fourth)
    found = {n: lung_images(lung_scan(path, spokes), f"{path.stem}_{n}") for n, spokes in used.items()}
    lungs, border, air = lung_regions(found[n_spokes]["gridding"])
    yield f"### {path.stem}"
    yield ""
    yield "| spokes | image | apparent SNR | rise, voxels | error on other spokes |"
    yield "| --- | --- | --- | --- | --- |"
    for n, images in found.items():
        for name, image in images.items():
            values = image.abs().numpy()
            signal = float(values[lungs].mean())
            slope = ndimage.maximum_filter(ndimage.gaussian_gradient_magnitude(values, 0.7), 3)
            rise = (signal - float(values[air].mean())) / float(np.median(slope[border]))
            error = f"{held_out_error(image, others):.4f}" if n < n_spokes else ""
            yield f"| {n} | {name} | {signal / float(values[air].std()):.1f} | {rise:.2f} | {error} |"
        picture(f"{path.stem}_{n}", images)
    yield ""


def picture(name: str, images: dict[str, torch.Tensor]) -> None:
    """Write the middle planes of all images side by side, each image scaled to its own brightest half percent."""
    columns = []
    for image in images.values():
        values = image.abs().numpy()
        planes = [np.take(values, n // 2, axis=axis) for axis, n in enumerate(values.shape)]
        width = max(plane.shape[1] for plane in planes)
        planes = [np.pad(plane, ((0, 2), (0, width - plane.shape[1] + 2))) for plane in planes]
        columns.append(np.concatenate(planes) / np.quantile(values, 0.995))
    PICTURES.mkdir(parents=True, exist_ok=True)
    whole = np.kron(np.clip(np.concatenate(columns, axis=1), 0, 1), np.ones((3, 3)))
    files.imsave(PICTURES / f"{name}.png", whole, cmap="gray", vmin=0, vmax=1)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables as they come, and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cta", type=Path, help="CT angiogram of a thorax, NIfTI, Hounsfield units")
    parser.add_argument("--lung", type=Path, nargs="+", default=[], help="radial lung scans, NumPy archives")
    args = parser.parse_args(argv)
    reports = [cta_report(args.cta)] * bool(args.cta) + [lung_words()] * bool(args.lung)
    reports += [lung_report(path) for path in args.lung]
    if not reports:
        print("No data given, nothing done: --cta PATH, --lung PATH..., or both.")
        return
    lines = ["# MBDL on data that no phantom made", "", f"`python benchmarks/real_data.py`, {machine()}", ""]
    for report in reports:
        for line in report:
            print(line, flush=True)
            lines.append(line)
    (ROOT / "benchmarks" / "results" / "real_data.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
