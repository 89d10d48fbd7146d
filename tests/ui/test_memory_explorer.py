"""The memory explorer as someone uses it: a notebook in JupyterLab, its controls and its buttons."""

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

pytestmark = pytest.mark.ui

IMPORT = "import blockkit as bk"
EXPLORER = "bk.MemoryExplorer(image_shape=(64, 48, 64), n_coils=4, n_samples=50_000, n_unrolls=2)"
# Run all cells again and wait until the new output has taken the place of the old one.
AGAIN = """async () => {
  document.querySelectorAll('.blockkit-explorer').forEach(one => { one.dataset.old = 'yes'; });
  await window.jupyterapp.commands.execute('notebook:run-all-cells');
}"""
FRESH = """() => !document.querySelector('.blockkit-explorer[data-old]')
  && document.querySelector('.blockkit-explorer .blockkit-lines')"""
DEAF = """class Deaf(bk.MemoryExplorer):
    def _change(self, change=None):
        pass
Deaf(image_shape=(64, 48, 64), n_coils=4, n_samples=50_000, n_unrolls=2)"""
BREAK = """def fail(*args):
    raise MemoryError("no room for a line")
broken._sketches = fail"""
NAMES = ("parts", "blocks", "curve", "checks")
UNCHANGED_MS = 3000
# A busy machine is slow, and what does not come at all is found out all the same.
PATIENCE_MS, WORK_MS = 30_000, 240_000


class Explorer:
    """An explorer in a page: what it shows, and a hand on its controls."""

    def __init__(self, page: Any, number: int = 0) -> None:
        self.page, self.number, self.patience_ms = page, number, PATIENCE_MS
        self.root = page.locator(".blockkit-explorer").nth(number)
        self.root.locator(".blockkit-lines").wait_for()
        self.root.scroll_into_view_if_needed()

    def wait(self, condition: str, *, timeout: int = 0) -> None:
        """Wait until a condition on ``root`` holds."""
        where = f"document.querySelectorAll('.blockkit-explorer')[{self.number}]"
        self.page.wait_for_function(f"(root => {condition})({where})", timeout=timeout or self.patience_ms)

    def pictures(self) -> dict[str, str]:
        drawn = self.root.locator(".blockkit-plot").evaluate_all("all => all.map(one => one.innerHTML)")
        return dict(zip(NAMES, drawn, strict=True))

    def changed(self, act: Callable[[], object]) -> set[str]:
        """Return the pictures that an act changes. The code comes after them, and every setting has its own."""
        before, code = self.pictures(), self.code()
        act()
        self.wait(f"root.querySelector('.blockkit-lines').textContent !== {code!r}")
        after = self.pictures()
        return {name for name in NAMES if before[name] != after[name]}

    def code(self) -> str:
        said: str = self.root.locator(".blockkit-lines").inner_text()
        return said

    def said(self) -> str:
        text: str = self.root.locator("[role=status]").inner_text()
        return text

    def trouble(self) -> Any:
        return self.root.locator("[role=alert]")

    def field(self, name: str) -> Any:
        return self.root.get_by_label(name, exact=True)

    def slide(self, name: str, key: str) -> set[str]:
        handle = self.root.locator(".widget-inline-hbox").filter(has_text=name).locator(".noUi-handle")
        handle.focus()
        return self.changed(lambda: self.page.keyboard.press(key))

    def write(self, name: str, text: str) -> None:
        self.field(name).fill(text)
        self.page.keyboard.press("Enter")

    def choose(self, name: str, option: str) -> set[str]:
        return self.changed(lambda: self.field(name).select_option(option))

    def click(self, name: str) -> None:
        self.root.get_by_role("button", name=name).click()

    def texts(self, picture: str) -> list[str]:
        plot = self.root.locator(".blockkit-plot").nth(NAMES.index(picture))
        found: list[str] = plot.locator("text").all_text_contents()
        return found


@pytest.fixture(scope="module")
def page(lab: Any, browser: Any) -> Any:
    opened = lab.open(browser, [IMPORT, EXPLORER])
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    yield opened
    opened.close()


@pytest.fixture
def explorer(page: Any, lab: Any) -> Any:
    """Return a new explorer in the page of before."""
    page.evaluate(AGAIN)
    page.wait_for_function(FRESH)
    lab.logged.clear()
    yield Explorer(page)
    assert lab.logged == []


def test_sliders_change_the_pictures_that_they_should(explorer: Explorer) -> None:
    assert explorer.slide("block", "ArrowLeft") == {"parts", "blocks", "curve"}
    assert explorer.slide("unrolls", "ArrowRight") == {"parts", "curve"}
    assert explorer.slide("channels", "ArrowLeft") == {"parts", "curve"}
    assert explorer.slide("layers", "ArrowRight") == {"parts", "blocks", "curve"}  # one voxel more of halo
    assert "bk.ResidualCNN(31, 6), 3," in explorer.code()


def test_numbers_and_boxes_change_the_bytes_and_not_the_blocks(explorer: Explorer) -> None:
    for name in ("coils", "samples, 10⁶"):
        assert explorer.changed(lambda name=name: explorer.field(name).press("ArrowUp")) == {"parts", "curve"}
    for name in ("offload images to disk", "interpolated coil maps"):
        assert explorer.changed(explorer.root.get_by_label(name).click) == {"parts", "curve"}
    assert explorer.choose("precision", "half in the network") == {"parts", "curve"}
    assert explorer.choose("run", "reconstruction") == {"parts", "curve"}
    assert explorer.root.get_by_label("offload images to disk").is_disabled()
    assert explorer.choose("run", "training step") == {"parts", "curve"}
    assert "n_coils=5, n_samples=500_000" in explorer.code()


def test_presets_and_typed_sizes_are_the_matrix(explorer: Explorer) -> None:
    assert explorer.choose("matrix preset", "450 x 300 x 450") == {"parts", "blocks", "curve"}
    assert explorer.field("matrix z y x").input_value() == "450 x 300 x 450"
    assert "bk.plan((450, 300, 450)," in explorer.code()
    assert explorer.changed(lambda: explorer.write("matrix z y x", "80, 60, 80")) == {"parts", "blocks", "curve"}
    assert explorer.field("matrix preset").input_value() == "another size"
    before = explorer.pictures()
    explorer.write("matrix z y x", "80 by 60")
    explorer.trouble().wait_for(timeout=PATIENCE_MS)
    assert "expected three whole numbers z, y, x" in explorer.trouble().inner_text()
    assert explorer.pictures() == before
    explorer.changed(lambda: explorer.write("matrix z y x", "64 x 48 x 64"))
    assert explorer.trouble().count() == 0


def test_the_budget_moves_its_line_and_fit_to_budget_finds_the_block(explorer: Explorer) -> None:
    explorer.choose("matrix preset", "350 x 250 x 350")
    assert explorer.changed(lambda: explorer.click("Fit to budget")) == {"parts", "blocks", "curve"}
    assert explorer.choose("budget", "8 GiB") == {"parts", "curve"}
    assert "does not fit into 8 GiB" in explorer.said()
    assert explorer.changed(lambda: explorer.click("Fit to budget")) == {"parts", "blocks", "curve"}
    assert "which fits into 8 GiB" in explorer.said()
    best = re.search(r"largest block that fits is ([\d x]+\d)", explorer.said())
    assert best is not None
    assert f"block_shape=({best[1].replace(' x', ',')})" in explorer.code()
    assert explorer.choose("budget", "141 GiB") == {"parts", "curve"}
    assert "budget 141 GiB" in " ".join(explorer.texts("parts"))


def test_a_trace_and_a_real_step_are_drawn_beside_the_sums(explorer: Explorer, screenshot: Any) -> None:
    explorer.changed(lambda: explorer.write("matrix z y x", "32 x 24 x 28"))
    for button, names in (("Trace exactly", ["closed form", "traced"]), ("Measure here", ["closed form", "counted"])):
        before = explorer.pictures()
        explorer.click(button)
        explorer.wait(f"root.innerText.includes({names[1]!r}) || root.querySelector('[role=alert]')", timeout=WORK_MS)
        assert explorer.trouble().count() == 0
        assert {name for name, drawn in explorer.pictures().items() if drawn != before[name]} == {"checks"}
        assert [text for text in explorer.texts("checks") if text in names] == names
        explorer.root.locator(".blockkit-plot").last.scroll_into_view_if_needed()
        screenshot(explorer.root, f"explorer-{names[1]}")
    checks = explorer.root.locator(".blockkit-plot").last
    assert explorer.slide("unrolls", "ArrowRight") == {"parts", "curve", "checks"}  # it was of another setting
    assert not checks.is_visible()


def test_copy_code_puts_the_lines_into_the_clipboard(explorer: Explorer) -> None:
    explorer.click("Copy code")
    explorer.root.get_by_role("button", name="Copied").wait_for(timeout=PATIENCE_MS)
    copied = explorer.page.evaluate("navigator.clipboard.readText()")
    assert copied == explorer.code()
    assert len(copied.splitlines()) == 3
    assert copied.startswith("import")


def test_where_the_clipboard_is_closed_the_lines_are_selected(explorer: Explorer) -> None:
    explorer.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('closed')); }")
    explorer.click("Copy code")
    explorer.root.get_by_role("button", name="Selected").wait_for(timeout=PATIENCE_MS)
    assert explorer.page.evaluate("getSelection().toString()").strip() == explorer.code()
    explorer.page.evaluate("() => { delete navigator.clipboard.writeText; }")


def test_a_screen_reader_hears_what_changed(explorer: Explorer) -> None:
    assert explorer.root.locator("[role=status]").get_attribute("aria-live") == "polite"
    labels = explorer.root.locator(".blockkit-plot svg").evaluate_all("all => all.map(one => one.ariaLabel)")
    assert len(labels) == len(set(labels)) == 3
    before = explorer.said()
    explorer.slide("unrolls", "ArrowRight")
    assert explorer.said() != before


def test_without_its_callback_the_explorer_is_found_out(notebook: Callable[..., Any]) -> None:
    from playwright.sync_api import TimeoutError as Unchanged

    opened = notebook(IMPORT, DEAF, f"broken = {EXPLORER}\nbroken", BREAK)
    deaf, broken = Explorer(opened, 0), Explorer(opened, 1)
    deaf.patience_ms = UNCHANGED_MS
    before = deaf.pictures(), deaf.said()
    with pytest.raises(Unchanged):
        deaf.slide("unrolls", "ArrowRight")
    assert (deaf.pictures(), deaf.said()) == before
    broken.field("coils").press("ArrowUp")
    broken.trouble().wait_for(timeout=PATIENCE_MS)
    assert broken.trouble().inner_text() == "no room for a line"


@pytest.mark.parametrize("width", [900, 1400, 2500])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_layout_holds(page: Any, explorer: Explorer, screenshot: Any, lab: Any, width: int, dark: bool) -> None:
    lab.paint(page, width=width, dark=dark)
    explorer.root.scroll_into_view_if_needed()
    screenshot(explorer.root, f"explorer-{width}-{'dark' if dark else 'light'}")
    visible = explorer.root.locator(".blockkit-plot:visible")
    boxes = [visible.nth(i).bounding_box() for i in range(visible.count())]
    assert len(boxes) == 3
    assert all(box["width"] >= 300 and box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    apart = [a["x"] + a["width"] <= b["x"] or a["y"] + a["height"] <= b["y"] for a, b in pairwise(boxes)]
    assert all(apart)
    cut_off = "all => all.filter(one => one.scrollWidth > one.clientWidth + 1).map(one => one.textContent)"
    assert explorer.root.locator(".widget-readout, .widget-label, button").evaluate_all(cut_off) == []
    colors = explorer.root.locator(".blockkit-plot text").evaluate_all(
        "all => all.map(one => getComputedStyle(one).fill)"
    )
    for color in set(colors):
        brightness = sum(map(float, re.findall(r"[\d.]+", color)[:3])) / 3
        assert brightness > 90 if dark else brightness < 165, color
    explorer.wait("root.scrollWidth <= root.clientWidth + 1")
