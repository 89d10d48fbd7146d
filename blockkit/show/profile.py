"""The line profile of a viewer as SVG: one line a volume, through the crosshair, in colors of the page's theme."""

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

WIDTH, HEIGHT = 900, 170
LEFT, RIGHT, TOP, BOTTOM = 62, 8, 24, 30
# Okabe and Ito, "Color Universal Design": told apart with every kind of color vision, on light and on dark.
LINE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#F0E442")
TEXT = 'fill="var(--jp-ui-font-color1, currentColor)" font-size="11" font-family="sans-serif"'
RULE = 'stroke="var(--jp-border-color1, #999)" stroke-width="1"'


def profile_svg(lines: Mapping[str, NDArray[Any]], *, position: int, xlabel: str, ylabel: str) -> str:
    """Return an SVG picture of ``lines``, one number a voxel each, with a mark at the voxel ``position``.

    What is not finite leaves a gap.
    """
    values = np.concatenate([np.asarray(line, dtype=np.float64) for line in lines.values()])
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    low, high = (min(low, 0.0), high) if high > low else (low - 0.5, low + 0.5)
    n = len(next(iter(lines.values())))
    x = LEFT + (np.arange(n) + 0.5) * ((WIDTH - LEFT - RIGHT) / n)
    bottom = HEIGHT - BOTTOM
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(ylabel)} along {escape(xlabel)}" '
        'xmlns="http://www.w3.org/2000/svg" style="width:100%;height:auto;display:block">',
        f'<path d="M{LEFT} {TOP}V{bottom}H{WIDTH - RIGHT}" fill="none" {RULE}/>',
        f'<path class="at" d="M{x[position]:.1f} {TOP}V{bottom}" {RULE} stroke-dasharray="3 3"/>',
        f'<text x="{LEFT - 5}" y="{TOP + 8}" text-anchor="end" {TEXT}>{high:.3g}</text>',
        f'<text x="{LEFT - 5}" y="{bottom}" text-anchor="end" {TEXT}>{low:.3g}</text>',
        f'<text x="{LEFT}" y="{HEIGHT - 14}" {TEXT}>0</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 14}" text-anchor="end" {TEXT}>{n - 1}</text>',
        f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - 14}" text-anchor="middle" {TEXT}>{escape(xlabel)}</text>',
    ]
    offset = float(LEFT)
    for color, (name, line) in zip(LINE_COLORS, lines.items(), strict=False):
        y = bottom - (np.asarray(line, dtype=np.float64) - low) * ((bottom - TOP) / (high - low))
        parts.append(f'<path class="line" d="{_path(x, y)}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        parts.append(f'<path d="M{offset:.0f} 10h14" stroke="{color}" stroke-width="3"/>')
        parts.append(f'<text x="{offset + 18:.0f}" y="14" {TEXT}>{escape(name)}</text>')
        offset += 36 + 6.2 * len(name)
    return "".join(parts) + "</svg>"


def _path(x: NDArray[Any], y: NDArray[Any]) -> str:
    words, pen = [], "M"
    for one_x, one_y in zip(x, y, strict=True):
        if np.isfinite(one_y):
            words.append(f"{pen}{one_x:.1f} {one_y:.1f}")
            pen = "L"
        else:
            pen = "M"
    return "".join(words)
