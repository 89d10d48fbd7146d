"""Small raw scans for the tests of formats, and ways to damage their files."""

import random

import h5py
import numpy as np
import torch

from blockkit.data.raw import RawScan
from blockkit.physics.coils import simulate_maps
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d

SHAPE = (12, 10, 14)
VOXEL = (1.5, 2.0, 2.5)
SPOKES = {"kspace": "ksp: coil spoke readout", "trajectory": "coord: spoke readout (kz ky kx)"}
MATLAB = {
    "kspace": "ksp: readout spoke coil",
    "trajectory": "coord: (kx ky kz) readout spoke",
    "maps": "b1: x y z coil",
    "noise": "n: sample coil",
}
ABSURD = (0, 1, 2**31 - 1, 2**32 - 1, 2**33, 2**40, 2**60, 2**63 - 1, 2**64 - 1)


def make_raw(shape=SHAPE, n_coils=2, n_spokes=12, noise=True, maps=True):
    """A scan whose k-space is that of a random image behind its maps."""
    generator = torch.Generator().manual_seed(3)
    n_readout = 2 * max(shape)
    trajectory = radial_3d(n_spokes, n_readout, shape)
    coils = simulate_maps(n_coils, shape)
    image = torch.randn(shape, dtype=torch.complex64, generator=generator)
    return RawScan(
        Encoding(trajectory, coils).forward(image).to(torch.complex64),
        trajectory,
        shape,
        VOXEL,
        noise=torch.randn(n_coils, 40, dtype=torch.complex64, generator=generator) if noise else None,
        n_readout=n_readout,
        maps=coils if maps else None,
    )


def assert_same(back, raw, rounding=0.0):
    """Every array and every number is the same; the trajectory up to ``rounding`` cycles/FOV."""
    for name in ("kspace", "noise", "maps"):
        a, b = getattr(back, name), getattr(raw, name)
        assert (a is None) == (b is None), name
        assert a is None or torch.equal(a, b), name
    torch.testing.assert_close(back.trajectory, raw.trajectory, atol=rounding, rtol=0)
    assert (back.image_shape, back.n_readout) == (raw.image_shape, raw.n_readout)
    assert all(abs(a - b) < 1e-6 for a, b in zip(back.voxel_size, raw.voxel_size, strict=True))


def matlab_arrays(raw):
    """In MATLAB's manner: readout first, kx first, x first."""
    return {
        "ksp": raw.kspace.reshape(2, -1, raw.n_readout).numpy().transpose(2, 1, 0),
        "coord": raw.trajectory.reshape(-1, raw.n_readout, 3).flip(2).numpy().astype(np.float64).transpose(2, 1, 0),
        "b1": raw.maps.numpy().transpose(3, 2, 1, 0),
        "n": raw.noise.numpy().T,
        "title": "a text",
        "s": {"te": 1.0},
    }


def write_mat73(path, arrays):
    """As MATLAB writes 7.3: a user block, axes reversed, complex numbers as compounds, the class as an attribute."""
    pairs = np.dtype([("real", "<f4"), ("imag", "<f4")])
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in arrays.items():
            if isinstance(values, np.ndarray):
                turned = np.ascontiguousarray(values.T)
                data = turned.view(pairs).reshape(turned.shape) if turned.dtype.kind == "c" else turned
                file.create_dataset(name, data=data).attrs["MATLAB_class"] = np.bytes_(
                    "single" if turned.dtype.kind == "c" else "double"
                )
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM")


def mutate(content: bytes, seed: int) -> bytes:
    """Damage a file: cut it, flip bits, write absurd numbers, blank, move or double a piece."""
    chance = random.Random(seed)
    at = chance.randrange(len(content))
    size = chance.randint(1, 64)
    new = bytearray(content)
    kind = chance.randrange(7)
    if kind == 0:
        return content[:at]
    if kind == 1:
        for _ in range(chance.randint(1, 8)):
            new[chance.randrange(len(new))] ^= 1 << chance.randrange(8)
    elif kind == 2:
        for _ in range(chance.randint(1, 3)):
            new[chance.randrange(len(new))] = chance.choice((0, 1, 127, 128, 255))
    elif kind == 3:
        width = chance.choice((4, 8))
        at &= ~(width - 1)
        new[at : at + width] = (chance.choice(ABSURD) & (2 ** (8 * width) - 1)).to_bytes(width, "little")
    elif kind == 4:
        new[at : at + size] = bytes(len(new[at : at + size]))
    elif kind == 5:
        other = chance.randrange(len(content))
        new[at : at + size] = content[other : other + size]
    else:
        new[at:at] = content[at : at + size]
    return bytes(new)
