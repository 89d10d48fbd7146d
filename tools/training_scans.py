"""The scans that the shipped model is trained on: each is drawn from its seed alone."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import blockkit as bk

IMAGE_SHAPES = ((48, 40, 48), (44, 44, 40), (56, 42, 56), (52, 40, 52))
SHAPE_ODDS = (0.4, 0.2, 0.25, 0.15)
FINER = 1.5

Shape = tuple[int, ...]


class SimulatedScans(Sequence[bk.Scan]):
    """Scans made from seeds, each kept in a folder once it is made: for each way to make one, its seeds."""

    def __init__(self, seeds: dict[Callable[[int], bk.Scan], Sequence[int]], folder: Path) -> None:
        self.seeds = [(make, seed) for make, some in seeds.items() for seed in some]
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, i: int) -> bk.Scan:  # type: ignore[override]
        make, seed = self.seeds[i]
        path = self.folder / f"scan_{seed}.h5"
        if not path.exists():
            make(seed).save(path)
        return bk.load_scan(path)


def make_scan(seed: int) -> bk.Scan:
    """Simulate a radial scan: acceleration 4 to 16, 2 to 8 coils, noise 0.7 to 4 %, phantom 1.5 x finer."""
    rng = np.random.default_rng(seed)
    shape = IMAGE_SHAPES[rng.choice(len(IMAGE_SHAPES), p=SHAPE_ODDS)]
    fine = tuple(round(FINER * n) for n in shape)
    acceleration = _log_uniform(rng, 4, 16)
    n_spokes = round(np.pi / 2 * max(shape) ** 2 / acceleration)
    noise = _log_uniform(rng, 0.007, 0.04)
    volume = bk.pulmonary_phantom(fine, seed=seed) * _log_uniform(rng, math.exp(-1), math.exp(1))
    n_coils = int(rng.integers(2, 9))
    return bk.simulate_scan(volume, shape, n_coils=n_coils, n_spokes=n_spokes, noise=noise, seed=seed)


def make_wide_scan(seed: int, odds: Sequence[float] = (0.7, 0.15, 0.15)) -> bk.Scan:
    """Simulate a scan of any kind: 1 to 20 coils, acceleration 1 to 20, noise 0 to 10 %, three trajectories.

    Also the size of the voxels, the orientation, the contrast and the phase are drawn, each only sometimes other than
    the phantom's own. The trajectory is radial, cones or a stack of stars, with these ``odds``.
    """
    rng = np.random.default_rng([seed, 0x81DE])
    shape = _draw_shape(rng)
    volume = _draw_volume(rng, tuple(math.ceil(FINER * n) for n in shape), seed)
    acceleration = rng.uniform(1, 2) if rng.random() < 0.1 else _log_uniform(rng, 2, 20)
    noise = rng.uniform(0, 0.003) if rng.random() < 0.08 else _log_uniform(rng, 0.004, 0.1)
    trajectory = _draw_trajectory(rng, shape, acceleration, odds)
    n_coils = round(_log_uniform(rng, 1, 20))
    return bk.simulate_scan(volume, shape, n_coils=n_coils, trajectory=trajectory, noise=noise, seed=seed)


def make_other_scan(seed: int) -> bk.Scan:
    """Simulate a scan of any kind but radial: most are a stack of stars."""
    return make_wide_scan(seed, odds=(0, 0.3, 0.7))


def make_clean_scan(seed: int) -> bk.Scan:
    """Simulate a scan that leaves little to do: acceleration 1 to 3, noise 0 to 1 %, 1 to 8 coils, three trajectories.

    Of the relative errors that training minimizes, those of such scans are the smallest, so they are drawn apart.
    """
    rng = np.random.default_rng([seed, 0xC1EA])
    shape = _draw_shape(rng)
    volume = _draw_volume(rng, tuple(math.ceil(FINER * n) for n in shape), seed)
    noise = 0.0 if rng.random() < 0.3 else _log_uniform(rng, 0.001, 0.01)
    trajectory = _draw_trajectory(rng, shape, _log_uniform(rng, 1, 3), odds=(0.4, 0.2, 0.4))
    n_coils = round(_log_uniform(rng, 1, 8))
    return bk.simulate_scan(volume, shape, n_coils=n_coils, trajectory=trajectory, noise=noise, seed=seed)


def make_textured_scan(seed: int) -> bk.Scan:
    """Simulate a scan of what is no phantom: tissues with edges anywhere, or a phantom, both with a texture.

    Acceleration 3 to 16, noise 0.4 to 5 %, 2 to 12 coils; one in five is no radial scan.
    """
    rng = np.random.default_rng([seed, 0x7E87])
    shape = _draw_shape(rng)
    fine = tuple(math.ceil(FINER * n) for n in shape)
    if rng.random() < 0.5:
        volume = _draw_volume(rng, fine, seed)
    else:
        volume = torch.from_numpy(_draw_tissues(rng, fine)) * _draw_phase(rng, fine)
    texture = np.exp(rng.uniform(0.05, 0.5) * _draw_field(rng, fine, rng.uniform(1.2, 2.5)))
    trajectory = _draw_trajectory(rng, shape, _log_uniform(rng, 3, 16), odds=(0.8, 0.1, 0.1))
    noise, n_coils = _log_uniform(rng, 0.004, 0.05), round(_log_uniform(rng, 2, 12))
    volume = volume * torch.from_numpy(texture)
    return bk.simulate_scan(volume, shape, n_coils=n_coils, trajectory=trajectory, noise=noise, seed=seed)


def _draw_tissues(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Return a body in air, cut into regions of one magnitude each by the level sets of a random field."""
    field = _draw_field(rng, shape, rng.uniform(2, 3.5))
    levels = np.quantile(field, np.sort(rng.uniform(0, 1, rng.integers(3, 9))))
    magnitudes = rng.uniform(0.02, 1, len(levels) + 1).astype(np.float32)
    grid = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij", sparse=True)
    half_axes = rng.uniform(0.7, 0.95, 3)
    radius = sum((g / a) ** 2 for g, a in zip(grid, half_axes, strict=True)) ** 0.5 + 0.05 * _draw_field(rng, shape, 3)
    return magnitudes[np.searchsorted(levels, field)] * (radius < 1).astype(np.float32)


def _draw_field(rng: np.random.Generator, shape: Shape, falloff: float) -> np.ndarray:
    """Return Gaussian noise of mean 0 and variance 1 whose spectrum falls with this power of the frequency."""
    frequencies = np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij", sparse=True)
    distance = np.sqrt(sum(f**2 for f in frequencies))
    distance[0, 0, 0] = np.inf
    field = np.fft.ifftn(np.fft.fftn(rng.standard_normal(shape)) * distance**-falloff).real
    return (field / field.std()).astype(np.float32)


def _draw_shape(rng: np.random.Generator) -> Shape:
    longest = int(rng.integers(40, 59))
    shape = [longest, longest - rng.integers(0, 9), longest - rng.integers(4, 17)]
    return tuple(int(n) for n in rng.permutation(shape))


def _draw_volume(rng: np.random.Generator, fine: Shape, seed: int) -> Tensor:
    """Return a part of a phantom, or all of it, turned, recolored and given more phase."""
    axes = rng.permutation(3) if rng.random() < 0.3 else np.arange(3)
    zoom = rng.uniform(1.2, 2.2) if rng.random() < 0.5 else 1.0
    whole = bk.pulmonary_phantom([round(zoom * fine[axis]) for axis in np.argsort(axes)], seed=seed)
    volume = whole.permute(*(int(axis) for axis in axes))
    if zoom > 1:
        corner = [int(rng.uniform(0.2, 0.8) * (m - n)) for m, n in zip(volume.shape, fine, strict=True)]
        volume = volume[tuple(slice(c, c + n) for c, n in zip(corner, fine, strict=True))] * _fade(fine)
    if rng.random() < 0.3:
        volume = _recolor(rng, volume)
    if rng.random() < 0.4:
        volume = volume * _draw_phase(rng, fine)
    return volume.contiguous() * _log_uniform(rng, math.exp(-1), math.exp(1))


def _fade(shape: Shape) -> Tensor:
    """Return a window that falls to zero over the outer tenth of each axis."""
    window = torch.ones(())
    for n in shape:
        away = 1 - (2 * torch.arange(n) - n + 1).abs() / n
        window = window[..., None] * torch.sin(torch.pi / 2 * (away / 0.2).clamp(0, 1)) ** 2
    return window


def _recolor(rng: np.random.Generator, volume: Tensor) -> Tensor:
    """Give each magnitude another one, by a curve through random points; zero stays zero."""
    magnitude, knots = volume.abs().numpy(), np.array([0, 0.06, 0.15, 0.3, 0.5, 0.8, 1.2])
    curve = np.interp(magnitude, knots, np.concatenate([[0], rng.uniform(0.05, 1, len(knots) - 1)]))
    return volume * torch.from_numpy((curve / np.maximum(magnitude, 1e-6)).astype(np.float32))


def _draw_phase(rng: np.random.Generator, shape: Shape) -> Tensor:
    """Return a phase factor of a few slow waves."""
    grid = np.meshgrid(*(np.linspace(-0.5, 0.5, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    phase = np.zeros(shape, np.float32)
    for _ in range(4):
        turns, start = rng.uniform(-1.5, 1.5, 3), rng.uniform(0, 2 * np.pi)
        wave = sum(np.float32(t) * g for t, g in zip(turns, grid, strict=True))
        phase += np.float32(rng.uniform(0, 1.5)) * np.cos(2 * np.pi * wave + np.float32(start))
    return torch.polar(torch.ones(shape), torch.from_numpy(phase))


def _draw_trajectory(rng: np.random.Generator, shape: Shape, acceleration: float, odds: Sequence[float]) -> Tensor:
    n_spokes = max(8, round(np.pi / 2 * max(shape) ** 2 / acceleration))
    kind = rng.choice(3, p=odds)
    if kind == 0:
        return bk.radial_3d(n_spokes, 2 * max(shape), shape)
    if kind == 1:
        return bk.cones(n_spokes, 2 * max(shape), shape)
    n_spokes = max(8, round(np.pi / 2 * shape[0] * max(shape[1:]) / acceleration))
    return bk.stack_of_stars(n_spokes, 2 * max(shape[1:]), shape)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))
