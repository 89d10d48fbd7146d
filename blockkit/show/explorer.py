"""The memory explorer: what a training step takes, naive and in blocks, as controls are moved."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from html import escape
from typing import Any

import ipywidgets as widgets
import torch
from matplotlib.figure import Figure
from torch import nn

from blockkit.blockwise.resident import free_bytes
from blockkit.checks import Shape3, check_count, check_number, check_shape3
from blockkit.ledger import GIB
from blockkit.mbdl.footprint import Case
from blockkit.mbdl.own_process import MOST_BYTES, ROOM, run_in_own_process, scaled_down
from blockkit.show.explorer_controls import BUDGETS, Controls
from blockkit.show.memory_plots import HEIGHT, blocks_sketch, checks_sketch, curve_sketch, parts_sketch
from blockkit.show.pictures import pictures
from blockkit.show.setting import Setting, by, nearest
from blockkit.show.sketch import DPI, Sketch

PICTURES = {  # width in a page, and what a screen reader hears
    "parts": (520, "Peak memory by part, naive and in blocks, and the budget"),
    "blocks": (430, "The volume cut into blocks, one of them with its halo"),
    "curve": (500, "Peak memory and extra work over the size of the block"),
    "checks": (500, "Peak memory as predicted and as found"),
}
STYLE = """<style>
.blockkit-said { margin: 0; max-width: 1100px; font-size: 14px; line-height: 1.5;
  color: var(--jp-ui-font-color1, inherit); }
.blockkit-trouble { padding: 2px 8px; border-left: 4px solid var(--jp-error-color1, #d32f2f); }
.blockkit-plot .widget-html-content { width: 100%; }
.blockkit-explorer .widget-readout { flex: 0 0 auto; min-width: 3em; max-width: none; }
.blockkit-explorer pre.blockkit-lines { margin: 0; padding: 6px 10px; overflow-x: auto; font-size: 13px;
  line-height: 1.5; font-family: var(--jp-code-font-family, monospace); color: var(--jp-ui-font-color1, inherit);
  background: var(--jp-layout-color2, transparent); border: 1px solid var(--jp-border-color2, #bbb); }
</style>"""
# The lines reach the clipboard at the click, in the page: where that is not allowed they are selected instead.
COPY = """const root = this.closest('.blockkit-explorer'), lines = root.querySelector('.blockkit-lines');
const say = (text) => { this.textContent = text; setTimeout(() => { this.textContent = 'Copy code'; }, 1500); };
const select = () => { getSelection().selectAllChildren(lines); say('Selected: press Ctrl C'); };
if (navigator.clipboard) navigator.clipboard.writeText(lines.textContent).then(() => say('Copied'), select);
else select();"""


class MemoryExplorer(widgets.VBox):  # type: ignore[misc]
    """See what a training step or a reconstruction takes, naive and in blocks, as sizes and options change.

    Every change shows at once, from sums that are within 3 % of the trace by which :func:`~blockkit.mbdl.planner.plan`
    counts (:mod:`blockkit.mbdl.closed_form`). One button traces the very step, to the byte; another runs a real step,
    scaled down, in a process of its own under a memory limit. In a page without a kernel the same pictures are there,
    standing still.

    Parameters
    ----------
    network
        The regularizer to explore, as :class:`~blockkit.mbdl.unrolled.UnrolledNetwork` takes it. None: a
        ``ResidualCNN``, whose channels and layers are controls too.
    image_shape, n_coils, n_samples, n_unrolls, budget_gib
        Where the controls start: ``(z, y, x)``, coils, k-space samples of a coil, unrolls, GiB = 2^30 bytes.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, or the network cannot be run in exact blocks: the message names the layer.

    Examples
    --------
    >>> explorer = bk.MemoryExplorer(bk.ResidualCNN(8, 3), image_shape=(64, 48, 64), n_samples=100_000, n_unrolls=2)
    >>> text = explorer.describe()  # as the last line of a cell, ``explorer`` shows itself
    """

    def __init__(
        self,
        network: nn.Module | None = None,
        *,
        image_shape: Shape3 = (300, 200, 300),
        n_coils: int = 8,
        n_samples: int = 9_000_000,
        n_unrolls: int = 6,
        budget_gib: float = 24.0,
    ) -> None:
        if network is not None and not isinstance(network, nn.Module):
            raise TypeError(f"network is a {type(network).__name__}, expected a torch.nn.Module, or None.")
        budget = check_number(budget_gib, "budget_gib")
        if not budget > 0:
            raise ValueError(f"budget_gib is {budget_gib}, expected more than 0 GiB.")
        coils, samples = check_count(n_coils, "n_coils"), check_count(n_samples, "n_samples")
        case = Case(check_shape3(image_shape), coils, samples)
        start = Setting(case, check_count(n_unrolls, "n_unrolls"), budget_gib=budget, network=network)
        blocks = start.blocks()
        self.setting = replace(start, block_shape=start.best_block() or nearest(blocks, 64**3))
        self._controls = Controls(self.setting, [*BUDGETS, *_this_machine()])
        self._checks: dict[str, dict[str, float]] = {}
        self._pictures = {name: _picture(width) for name, (width, _) in PICTURES.items()}
        self._said = widgets.HTML()
        self._trouble = widgets.HTML()
        self._progress = widgets.IntProgress(0, 0, 1, layout=widgets.Layout(width="220px", visibility="hidden"))
        self._code = widgets.HTML(layout=widgets.Layout(width="auto", max_width="1100px"))
        self._controls.observe(self._guarded(self._change))
        super().__init__(
            [
                widgets.HTML(STYLE), self._controls.box, self._trouble, self._said,
                widgets.Box([*self._pictures.values()], layout=_wrapped()),
                widgets.HBox([*self._buttons(), self._progress], layout=_wrapped()), self._code,
            ]
        )  # fmt: skip
        self.add_class("blockkit-explorer")
        self._show()

    def figure(self) -> Figure:
        """Return what is shown now as a matplotlib figure, for a saved page or a paper."""
        sketches = self._sketches()
        width = sum(sketch.width for sketch in sketches.values())
        figure = Figure(figsize=(round(width / DPI, 2), round(HEIGHT / DPI, 2)), dpi=DPI)
        left = 0.0
        for sketch in sketches.values():
            sketch.draw_on(figure.add_axes((left / width, 0, sketch.width / width, 1)))
            left += sketch.width
        figure.blockkit_values = getattr(self, "blockkit_values", True)  # type: ignore[attr-defined]
        return figure

    def describe(self) -> str:
        """Return in words what the pictures show: the sentence that stands under the controls."""
        return self.setting.describe(self._best)

    def fit_to_budget(self) -> None:
        """Choose the largest block that fits into the budget, by the closed form.

        Raises
        ------
        ValueError
            If none does: the message says what the smallest takes.
        """
        best = self.setting.best_block()
        if best is None:
            raise ValueError(self.describe())
        self._controls.choose(best)

    def trace(self) -> None:
        """Trace both steps of this setting to the byte, and draw the result beside the closed form."""
        setting, n = self.setting, self.setting.n_unrolls
        found = {}
        with _Progress(self._progress, 2 * n) as progress:
            for i, (name, naive) in enumerate((("naive", True), ("in blocks", False))):
                traced = setting.trace(naive=naive, tick=lambda k, i=i: progress.at(i * n + k))  # type: ignore[misc]
                said = setting.naive() if naive else setting.blockwise()
                found[name] = {"closed form": float(said.bytes), "traced": float(traced.bytes)}
        self._checks = found
        self._show_pictures()

    def measure(self) -> None:
        """Run a real step, scaled down until this machine can, naive and in blocks, and draw what it took."""
        setting = self.setting
        free = free_bytes(torch.device("cpu"))
        most = min(MOST_BYTES, free // 3) if free is not None else MOST_BYTES
        network = setting.network_bytes()
        case, block = scaled_down(network, setting.case, setting.n_unrolls, setting.block_shape, most_bytes=most)
        small = replace(setting, case=case, block_shape=block)
        found = {}
        with _Progress(self._progress, 2) as progress:
            for i, (name, naive) in enumerate((("naive", True), ("in blocks", False))):
                progress.at(i)
                predicted = small.naive().bytes if naive else small.blockwise().bytes
                taken = run_in_own_process(
                    small.model(naive=naive), case, precision=setting.precision, limit=3 * predicted // 2 + ROOM
                )
                found[name] = {"closed form": float(predicted), "counted": float(taken.n_bytes)}
                if taken.resident_bytes is not None:
                    found[name]["process took"] = float(taken.resident_bytes)
        self._checks = {f"{name}\n{by(case.image_shape)} voxels": bars for name, bars in found.items()}
        self._show_pictures()

    def __repr__(self) -> str:
        return f"MemoryExplorer({self.describe()})"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        shown = {"text/plain": repr(self), **pictures(self.figure())}
        return {**super()._repr_mimebundle_(**kwargs), **shown}, {"image/png": {"alt": self.describe()}}

    def _change(self, _change: object = None) -> None:
        before, self.setting = self.setting, self._controls.read(self.setting)
        if before == self.setting:
            return
        self._checks = {}
        try:
            self._show()
        except Exception:
            self.setting = before  # the pictures are still its own
            raise

    def _show(self) -> None:
        setting = self.setting
        self._blocks = setting.blocks()
        self._peaks = [float(setting.blockwise(block).bytes) for block in self._blocks]
        self._work = [setting.work(block) for block in self._blocks]
        fitting = (block for block, peak in zip(self._blocks, self._peaks, strict=True) if peak <= setting.budget)
        self._best = next(fitting, None)
        self._show_pictures()
        self._said.value = f'<p class="blockkit-said" role="status" aria-live="polite">{escape(self.describe())}</p>'
        self._code.value = f'<pre class="blockkit-lines">{escape(setting.code())}</pre>'
        self._trouble.value = ""

    def _show_pictures(self) -> None:
        drawn = {name: sketch.svg(PICTURES[name][1]) for name, sketch in self._sketches().items()}
        for name, picture in self._pictures.items():
            picture.value = drawn.get(name, "")
            picture.layout.display = None if name in drawn else "none"

    def _sketches(self) -> dict[str, Sketch]:
        """Return the pictures of now; the checks only where there are some."""
        setting, network = self.setting, self.setting.network_bytes()
        bars = {"naive": setting.naive().parts, "in blocks": setting.blockwise().parts}
        sizes = setting.case.image_shape, setting.block_shape, network.halo, network.stride
        marks = {"chosen": setting.block_shape, "best that fits": self._best}
        sketches = {
            "parts": parts_sketch(bars, setting.budget),
            "blocks": blocks_sketch(*sizes),
            "curve": curve_sketch(self._blocks, self._peaks, self._work, setting.budget, marks),
        }
        return sketches | ({"checks": checks_sketch(self._checks)} if self._checks else {})

    def _buttons(self) -> list[Any]:
        actions: dict[str, tuple[Callable[[], None], str]] = {
            "Fit to budget": (self.fit_to_budget, "choose the largest block that fits"),
            "Trace exactly": (self.trace, "go through this very step without computing: seconds"),
            "Measure here": (self.measure, "run a step, scaled down, in a process with a memory limit"),
        }
        buttons = []
        for name, (action, tip) in actions.items():
            button = widgets.Button(description=name, tooltip=tip, layout=widgets.Layout(width="130px"))
            button.on_click(self._guarded(partial(_without_argument, action)))
            buttons.append(button)
        kind = "lm-Widget jupyter-widgets jupyter-button widget-button"
        attributes = f'class="{kind}" style="width:130px" title="the lines below" onclick="{escape(COPY)}"'
        return [*buttons, widgets.HTML(f"<button {attributes}>Copy code</button>")]

    def _guarded(self, action: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return the action with errors shown in the widget."""

        def guarded(change: Any) -> None:
            try:
                self._trouble.value = ""
                action(change)
            except Exception as error:
                said = escape(str(error) or type(error).__name__)
                self._trouble.value = f'<p class="blockkit-said blockkit-trouble" role="alert">{said}</p>'

        return guarded


class _Progress:
    """Shows a bar while something runs."""

    def __init__(self, bar: Any, n_steps: int) -> None:
        self.bar, self.n_steps = bar, n_steps

    def __enter__(self) -> "_Progress":
        self.bar.max, self.bar.value, self.bar.layout.visibility = self.n_steps, 0, "visible"
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.layout.visibility = "hidden"

    def at(self, step: int) -> None:
        self.bar.value = step


def _without_argument(action: Callable[[], None], _: object) -> None:
    action()


def _picture(width: int) -> Any:
    """Return the place of a picture: as wide as there is room, between three and five quarters of its own width."""
    layout = widgets.Layout(flex=f"1 1 {3 * width // 4}px", max_width=f"{6 * width // 5}px")
    return widgets.HTML(layout=layout).add_class("blockkit-plot")


def _wrapped() -> Any:
    return widgets.Layout(display="flex", flex_flow="row wrap", align_items="center", width="100%")


def _this_machine() -> list[tuple[str, float]]:
    """Return what is free here, as a budget by name; nothing where the system does not say."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = free_bytes(device)
    return [] if free is None else [(f"this machine, {free / GIB:.3g} GiB free", free / GIB)]
