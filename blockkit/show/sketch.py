"""Drawings of a few shapes and words, which become SVG in a page and matplotlib artists in a figure.

A picture that follows a slider has to be there at once: an SVG takes a millisecond where a matplotlib figure takes 40.
Its colors are those of the page's theme, so that it can be read on light and on dark.
"""

from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

# By what they are for: in a page, and on the white of a figure.
THEME = {
    "ink": ("var(--jp-ui-font-color1, currentColor)", "#222222"),
    "rule": ("var(--jp-border-color2, #bbb)", "#DDDDDD"),
    "paper": ("var(--jp-layout-color1, #fff)", "#FFFFFF"),
    "limit": ("var(--jp-error-color1, #D32F2F)", "#B2182B"),
}
POINTS = 0.72  # in a pixel, at 100 pixels an inch
DPI = 100


@dataclass(frozen=True)
class Line:
    """A line through points (point, x and y), closed and filled where ``fill`` is a color."""

    points: NDArray[Any]
    line: str
    width: float
    dash: tuple[float, ...]
    fill: str
    alpha: float

    def svg(self) -> str:
        """Return an SVG path."""
        body = "L".join(f"{x:.1f} {y:.1f}" for x, y in self.points)
        dash = f' stroke-dasharray="{" ".join(map(str, self.dash))}"' if self.dash else ""
        alpha = f' fill-opacity="{self.alpha:g}"' if self.alpha < 1 else ""
        stroke = f' stroke="{_in_page(self.line)}" stroke-width="{self.width:g}"{dash}' if self.line else ""
        end = "Z" if self.fill else ""
        return f'<path d="M{body}{end}" fill="{_in_page(self.fill) or "none"}"{alpha}{stroke}/>'

    def draw_on(self, ax: Axes, order: int) -> None:
        """Add an artist to axes."""
        if self.fill:
            patch = Polygon(
                self.points, facecolor=_in_figure(self.fill), alpha=self.alpha, linewidth=POINTS * self.width,
                edgecolor=_in_figure(self.line) or "none", zorder=order,
            )  # fmt: skip
            ax.add_patch(patch)
        else:
            style: Any = (0, tuple(length / self.width for length in self.dash)) if self.dash else "-"
            x, y = self.points.T
            color = _in_figure(self.line)
            ax.add_line(Line2D(x, y, color=color, linewidth=POINTS * self.width, linestyle=style, zorder=order))


@dataclass(frozen=True)
class Words:
    """A line of text, its baseline at (x, y)."""

    x: float
    y: float
    text: str
    size: float
    color: str
    anchor: str
    bold: bool
    turned: bool
    outlined: bool

    def svg(self) -> str:
        """Return an SVG text."""
        more = ' font-weight="bold"' if self.bold else ""
        more += f' transform="rotate(-90 {self.x:.1f} {self.y:.1f})"' if self.turned else ""
        more += f' stroke="{_in_page("paper")}" stroke-width="4" paint-order="stroke"' if self.outlined else ""
        return (
            f'<text x="{self.x:.1f}" y="{self.y:.1f}" font-size="{self.size:g}" text-anchor="{self.anchor}" '
            f'fill="{_in_page(self.color)}"{more}>{escape(self.text)}</text>'
        )

    def draw_on(self, ax: Axes, order: int) -> None:
        """Add an artist to axes."""
        sides = {"start": "left", "middle": "center", "end": "right"}
        outline = [withStroke(linewidth=4 * POINTS, foreground=_in_figure("paper"))] if self.outlined else []
        ax.text(
            self.x, self.y, self.text, fontsize=POINTS * self.size, color=_in_figure(self.color), zorder=order,
            ha=sides[self.anchor], va="baseline", rotation=90 if self.turned else 0, rotation_mode="anchor",
            weight="bold" if self.bold else "normal", path_effects=outline,
        )  # fmt: skip


@dataclass
class Sketch:
    """A picture of ``width`` x ``height`` pixels, (0, 0) at the top left; what is drawn later is in front."""

    width: float
    height: float
    items: list[Line | Words] = field(default_factory=list)

    def line(self, points: Any, color: str = "ink", *, width: float = 1.0, dash: tuple[float, ...] = ()) -> None:
        """Draw a line through ``points``, (point, x and y)."""
        self.items.append(Line(np.asarray(points, dtype=float), color, width, dash, "", 1.0))

    def area(self, points: Any, fill: str, *, alpha: float = 1.0, edge: str = "", width: float = 1.0) -> None:
        """Fill what lies inside ``points``, (point, x and y)."""
        self.items.append(Line(np.asarray(points, dtype=float), edge, width, (), fill, alpha))

    def bar(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        """Fill a rectangle whose top left corner is at (x, y)."""
        self.area([(x, y), (x + width, y), (x + width, y + height), (x, y + height)], fill)

    def words(
        self,
        x: float,
        y: float,
        text: str,
        *,
        color: str = "ink",
        anchor: str = "start",
        style: str = "",
        size: int = 12,
    ) -> None:
        """Write ``text`` with its baseline at (x, y); ``style`` has words out of bold, turned, outlined."""
        self.items.append(
            Words(x, y, text, size, color, anchor, "bold" in style, "turned" in style, "outlined" in style)
        )

    def svg(self, label: str) -> str:
        """Return the picture as SVG, as wide as there is room; a screen reader hears ``label``."""
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{escape(label)}" '
            'xmlns="http://www.w3.org/2000/svg" style="width:100%;height:auto;display:block" '
            f'font-family="var(--jp-ui-font-family, sans-serif)">{"".join(item.svg() for item in self.items)}</svg>'
        )

    def draw_on(self, ax: Axes) -> None:
        """Draw the picture into empty axes, which it fills."""
        ax.set_xlim(0, self.width)
        ax.set_ylim(self.height, 0)
        ax.set_axis_off()
        for order, item in enumerate(self.items):
            item.draw_on(ax, order)


@dataclass(frozen=True)
class Chart:
    """Where numbers lie in a sketch: a frame in pixels, with 0 at its left and its bottom."""

    sketch: Sketch
    left: float
    top: float
    right: float
    bottom: float
    most_x: float
    most_y: float

    def at(self, x: Any, y: Any) -> NDArray[Any]:
        """Return the places (point, x and y) of numbers."""
        across = self.left + np.asarray(x, dtype=float) / self.most_x * (self.right - self.left)
        up = self.bottom - np.asarray(y, dtype=float) / self.most_y * (self.bottom - self.top)
        return np.stack(np.broadcast_arrays(across, up), axis=-1)

    def draw_y(self, label: str, *, right: bool = False) -> None:
        """Draw numbers and a label at the left with lines across the frame, or at the right without."""
        side, sign = (self.right, 1) if right else (self.left, -1)
        for tick in ticks(self.most_y):
            _, y = self.at(0, tick)
            if not right:
                self.sketch.line([(self.left, y), (self.right, y)], "rule")
            self.sketch.words(side + 6 * sign, y + 4, f"{tick:g}", anchor="start" if right else "end")
        place = side + sign * 51
        self.sketch.words(place, (self.top + self.bottom) / 2, label, anchor="middle", style="turned", size=13)

    def draw_x(self, label: str) -> None:
        """Draw numbers and a label at the bottom."""
        for tick in ticks(self.most_x):
            self.sketch.words(self.at(tick, 0)[0], self.bottom + 17, f"{tick:g}", anchor="middle")
        self.sketch.words((self.left + self.right) / 2, self.bottom + 36, label, anchor="middle", size=13)

    def draw_frame(self) -> None:
        """Draw the left and the bottom side."""
        self.sketch.line([(self.left, self.top), (self.left, self.bottom), (self.right, self.bottom)])


def ticks(most: float) -> list[float]:
    """Return three to six round numbers from 0 to at most ``most``."""
    power = 10.0 ** np.floor(np.log10(most))
    steps = [factor * power for factor in (0.1, 0.2, 0.25, 0.5, 1, 2)]
    step = next(step for step in steps if most / step < 5.5)
    return [round(i * step, 12) for i in range(int(most / step * (1 + 1e-9)) + 1)]


def circle(center: NDArray[Any], radius: float, n: int = 24) -> NDArray[Any]:
    """Return the corners of a polygon that looks round."""
    turn = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return center + radius * np.stack([np.cos(turn), np.sin(turn)], axis=-1)


def star(center: NDArray[Any], radius: float) -> NDArray[Any]:
    """Return the ten corners of a star with a point at the top."""
    turn = np.linspace(0, 2 * np.pi, 10, endpoint=False) - np.pi / 2
    lengths = radius * np.where(np.arange(10) % 2, 0.42, 1.0)
    corners: NDArray[Any] = center + lengths[:, None] * np.stack([np.cos(turn), np.sin(turn)], axis=-1)
    return corners


def _in_page(color: str) -> str:
    return THEME[color][0] if color in THEME else color


def _in_figure(color: str) -> str:
    return THEME[color][1] if color in THEME else color
