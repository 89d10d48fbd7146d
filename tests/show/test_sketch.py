from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from blockkit.show.sketch import THEME, Chart, Sketch, circle, star, ticks

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("most", [0.00123, 0.04, 0.999, 1.0, 1.3, 2.0, 5.6, 9.99, 31.2, 640.0])
def test_ticks_are_few_round_and_within(most: float) -> None:
    found = ticks(most)
    assert 3 <= len(found) <= 6
    assert found[0] == 0
    assert 0.6 * most < found[-1] <= most
    assert all(len(f"{tick:g}".strip("0.").replace(".", "")) <= 3 for tick in found)


def test_a_chart_puts_numbers_between_its_sides() -> None:
    chart = Chart(Sketch(100, 80), 10, 5, 90, 70, most_x=4, most_y=2)
    assert chart.at([0, 4, 2], [0, 2, 1]).tolist() == [[10, 70], [90, 5], [50, 37.5]]


def test_the_page_and_the_figure_show_the_same() -> None:
    sketch = Sketch(100, 80)
    sketch.area([(0, 0), (20, 0), (20, 10)], "#0072B2", alpha=0.5, edge="ink")
    sketch.line([(5, 5), (50, 60)], "limit", width=2, dash=(6, 4))
    sketch.words(30, 40, "a < b & c", anchor="middle", style="bold turned outlined")
    page = ElementTree.fromstring(sketch.svg('bytes "by part"'))
    assert page.attrib["aria-label"] == 'bytes "by part"'
    area, line = page.findall(f"{SVG}path")
    assert (area.attrib["d"], area.attrib["fill-opacity"]) == ("M0.0 0.0L20.0 0.0L20.0 10.0Z", "0.5")
    assert (line.attrib["fill"], line.attrib["stroke-dasharray"]) == ("none", "6 4")
    assert line.attrib["stroke"] == THEME["limit"][0]
    (text,) = page.findall(f"{SVG}text")
    assert text.text == "a < b & c"
    ax = Figure(dpi=100).add_axes((0, 0, 1, 1))
    sketch.draw_on(ax)
    assert ax.patches[0].get_path().vertices[:3].tolist() == [[0, 0], [20, 0], [20, 10]]  # type: ignore[union-attr]
    assert ax.lines[0].get_xydata().tolist() == [[5, 5], [50, 60]]
    assert ax.lines[0].get_color() == THEME["limit"][1]
    assert ax.texts[0].get_text() == "a < b & c"
    assert ax.get_ylim() == (80, 0)  # from the top down, as in the page


def test_a_circle_and_a_star_stand_around_their_centers() -> None:
    center = np.array([3.0, 4.0])
    assert np.allclose(np.linalg.norm(circle(center, 2) - center, axis=1), 2)
    corners = star(center, 2)
    assert np.allclose(corners[0], [3, 2])  # a point at the top
    assert np.allclose(np.linalg.norm(corners - center, axis=1), [2, 0.84] * 5)
