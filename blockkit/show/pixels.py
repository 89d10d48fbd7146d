"""From real numbers to pixels, with numpy alone: 256 colors, a crosshair, the visible part of a plane, PNG bytes.

A panel is one byte a voxel: 0 to 253 are colors from the first to the last of the window, 254 is the crosshair, 255 is
NaN. The same bytes go to a canvas, to a PNG file with a palette and to the tests.
"""

import struct
import zlib
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]
Box: TypeAlias = tuple[int, int, int, int]

N_LEVELS = 254
CROSSHAIR, LOST = 254, 255
CROSSHAIR_COLOR = (255, 196, 0)
NAN_COLOR = (214, 39, 40)
GAP = 2


def quantize(plane: NDArray[Any], window: tuple[float, float]) -> Bytes:
    """Return one byte a voxel, 0 to 253 from black to white of ``window``, 255 where ``plane`` is NaN.

    Parameters
    ----------
    plane
        Real numbers, (row, column).
    window
        The values that get the first and the last color; what lies outside is clipped. An empty window makes what
        lies above it white, the rest black.
    """
    low, high = window
    if high > low:
        level = plane - np.float64(low)
        level *= (N_LEVELS - 1) / (high - low)
        np.clip(level, 0, N_LEVELS - 1, out=level)
        level += 0.5
    else:
        level = np.where(plane > low, float(N_LEVELS - 1), 0.0)
    lost = np.isnan(plane)
    if lost.any():
        level[lost] = LOST
    return level.astype(np.uint8)


def palette(colors: NDArray[Any]) -> Bytes:
    """Return the RGB colors of the 256 bytes, uint8 (256, 3), from a table of 254 ``colors`` in 0 to 1."""
    table = np.empty((256, 3), dtype=np.uint8)
    table[:N_LEVELS] = np.rint(np.asarray(colors)[:, :3] * 255)
    table[CROSSHAIR], table[LOST] = CROSSHAIR_COLOR, NAN_COLOR
    return table


def mark(panel: Bytes, row: int, column: int) -> Bytes:
    """Return a copy with a dotted crosshair through (row, column): every second voxel, with a gap at the crossing."""
    marked = panel.copy()
    for line, center in ((marked[:, column], row), (marked[row], column)):
        line[(center + GAP) :: 2] = CROSSHAIR
        line[: max(center - GAP + 1, 0)][::-1][::2] = CROSSHAIR
    return marked


def crop(panel: NDArray[Any], box: Box) -> NDArray[Any]:
    """Return the rows and columns ``box`` = (first row, row after the last, first column, column after the last)."""
    top, bottom, left, right = box
    return panel[top:bottom, left:right]


def encode_png(panel: Bytes, table: Bytes | None = None) -> bytes:
    """Return a PNG file of bytes (row, column) with the palette ``table``, uint8 (256, 3), or of RGB (row, column, 3).

    The same bytes give the same file. Fast before small: only runs of one byte are sought.
    """
    height, width = panel.shape[:2]
    rows = np.zeros((height, 1 + panel[0].size), dtype=np.uint8)
    rows[:, 1:] = panel.reshape(height, -1)
    colors = b"" if table is None else _chunk(b"PLTE", table.tobytes())
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if table is None else 3, 0, 0, 0)
    squeeze = zlib.compressobj(1, strategy=zlib.Z_RLE)
    body = squeeze.compress(rows.tobytes()) + squeeze.flush()
    parts = (_chunk(b"IHDR", header), colors, _chunk(b"IDAT", body), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
