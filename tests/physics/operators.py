"""The registry of linear operators: every law in ``test_laws.py`` is tried on each, with another size on each axis."""

from collections.abc import Callable

import torch

from blockkit.physics.coils import simulate_maps
from blockkit.physics.density import density_compensation
from blockkit.physics.fourier import NUFFT, DirectFourier
from blockkit.physics.linop import LinearOperator
from blockkit.physics.off_resonance import OffResonance
from blockkit.physics.sense import Encoding
from blockkit.physics.toeplitz import Toeplitz, padded_shape
from blockkit.physics.trajectory import radial_3d, spiral_phyllotaxis

Registry = list[tuple[str, Callable[[], LinearOperator]]]


def scattered(image_shape: tuple[int, int, int], n_samples: int, seed: int = 0) -> torch.Tensor:
    """Return random sample positions all over k-space, up to its edges."""
    random = torch.rand(n_samples, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (random - 0.5) * torch.tensor(image_shape)


def _weighted_toeplitz() -> Toeplitz:
    trajectory = radial_3d(31, 14, (7, 5, 6))
    return NUFFT(trajectory, (7, 5, 6)).toeplitz(density_compensation(trajectory, (7, 5, 6)))


def _indefinite_toeplitz() -> Toeplitz:
    generator = torch.Generator().manual_seed(0)
    return Toeplitz(torch.randn(padded_shape((4, 7, 5)), generator=generator, dtype=torch.float64), (4, 7, 5))


def _encoding(shape: tuple[int, int, int], n_coils: int, **options: str | int) -> Encoding:
    return Encoding(radial_3d(23, 14, shape), simulate_maps(n_coils, shape, seed=2), **options)


def _weighted_encoding() -> Encoding:
    A = _encoding((6, 5, 8), 2, normal="toeplitz")
    return A.weighted(A.dcf)


def off_resonance(shape: tuple[int, int, int], n_readout: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a rough field map in Hz, and the times of one readout of 5 ms in seconds."""
    generator = torch.Generator().manual_seed(4)
    return 40 * torch.randn(shape, generator=generator), 1e-3 + 5e-3 * torch.arange(n_readout) / n_readout


def _off_resonant_nufft(shape: tuple[int, int, int]) -> OffResonance:
    return OffResonance(NUFFT(spiral_phyllotaxis(11, 14, shape), shape), *off_resonance(shape, 14))


def off_resonant_encoding(shape: tuple[int, int, int], n_coils: int, **options: str | int) -> Encoding:
    """Return an encoding operator off resonance."""
    return _encoding(shape, n_coils, **options).off_resonant(*off_resonance(shape, 14))


def _weighted_off_resonant_encoding() -> Encoding:
    A = off_resonant_encoding((5, 7, 6), 3, coils_at_once=2)
    return A.weighted(A.dcf)


OPERATORS: Registry = [
    ("exact sum", lambda: DirectFourier(scattered((4, 5, 6), 37), (4, 5, 6))),
    ("exact sum, one slice", lambda: DirectFourier(radial_3d(9, 12, (1, 6, 5)), (1, 6, 5))),
    ("finufft", lambda: NUFFT(scattered((7, 6, 9), 83), (7, 6, 9), engine="finufft")),
    ("finufft, coarse", lambda: NUFFT(scattered((5, 8, 6), 61), (5, 8, 6), engine="finufft", tolerance=1e-2)),
    ("finufft, one slice", lambda: NUFFT(radial_3d(11, 16, (1, 8, 7)), (1, 8, 7), engine="finufft")),
    ("finufft, one row", lambda: NUFFT(scattered((1, 9, 1), 23), (1, 9, 1), engine="finufft")),
    ("torchkbnufft", lambda: NUFFT(scattered((4, 6, 5), 41), (4, 6, 5), engine="torchkbnufft", tolerance=1e-2)),
    (
        "torchkbnufft, one slice",
        lambda: NUFFT(radial_3d(7, 10, (5, 1, 6)), (5, 1, 6), engine="torchkbnufft", tolerance=1e-2),
    ),
    ("Toeplitz", _weighted_toeplitz),
    ("Toeplitz, indefinite", _indefinite_toeplitz),
    ("Toeplitz, one slice", lambda: NUFFT(radial_3d(13, 12, (6, 5, 1)), (6, 5, 1)).toeplitz()),
    ("encoding", lambda: _encoding((7, 6, 5), 3, normal="nufft")),
    ("encoding, coils together", lambda: _encoding((5, 8, 6), 4, coils_at_once=3, normal="toeplitz")),
    ("encoding, one slice", lambda: _encoding((1, 9, 8), 2)),
    ("encoding, torchkbnufft", lambda: _encoding((6, 4, 7), 2, engine="torchkbnufft")),
    ("encoding, weighted", _weighted_encoding),
    ("off resonance", lambda: _off_resonant_nufft((6, 5, 7))),
    ("off resonance, one slice", lambda: _off_resonant_nufft((1, 8, 7))),
    ("encoding, off resonance, weighted", _weighted_off_resonant_encoding),
    (
        "encoding after Toeplitz",
        lambda: _encoding((4, 6, 5), 3, normal="nufft") @ NUFFT(radial_3d(19, 12, (4, 6, 5)), (4, 6, 5)).toeplitz(),
    ),
    (
        "composition",
        lambda: NUFFT(scattered((5, 4, 7), 53), (5, 4, 7)) @ NUFFT(scattered((5, 4, 7), 29, 1), (5, 4, 7)).toeplitz(),
    ),
]
