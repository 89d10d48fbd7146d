"""The training view: loss, score, the validation image as it improves, memory and time left, while ``fit`` runs."""

import sys
import time
from typing import Any

import numpy as np
import torch
from IPython.core.getipython import get_ipython
from IPython.display import DisplayHandle, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from blockkit.blockwise.resident import free_bytes
from blockkit.ledger import GIB
from blockkit.mbdl.progress import Progress
from blockkit.show.pictures import pictures
from blockkit.show.plots import MARKERS, PALETTE
from blockkit.show.render import check_axis, take_part, take_plane

SMALL = 9
SMOOTHED = 20  # steps over which the bold curve is a mean, at most


class TrainingView:
    """Watch a training run: pass it to :func:`~blockkit.mbdl.training.fit` as ``watch=bk.TrainingView()``.

    In a notebook it is one picture that is drawn anew: the loss, the score of the validation scans, the middle slice of
    the first of them as it was and as it is, the memory of the process, and the time left. The last picture stays in
    the saved page. In a terminal it prints lines.

    Parameters
    ----------
    axis
        Across which to cut the image: ``"z"``, ``"y"`` or ``"x"``.
    every
        Seconds between two pictures or lines at least, beside the last one. None: 2 for pictures, 10 for lines.

    Examples
    --------
    >>> view = bk.TrainingView(axis="y")
    >>> model = bk.UnrolledNetwork(bk.ResidualCNN(4, 2), n_unrolls=2)
    >>> history = bk.fit(model, [scan], n_steps=2, watch=view)  # doctest: +SKIP
    """

    def __init__(self, *, axis: str = "y", every: float | None = None) -> None:
        self._axis = check_axis(axis)
        self._in_notebook = _in_notebook()
        self._every = every if every is not None else (2.0 if self._in_notebook else 10.0)
        self._slices: dict[str, NDArray[np.float64]] = {}
        self._progress: Progress | None = None
        self._shown_at = -np.inf
        self._handle: DisplayHandle | None = None

    def __call__(self, progress: Progress) -> None:
        """Take in how the run stands, and show it if it is time. An error in drawing is printed: the run goes on."""
        self._progress = progress
        try:
            if progress.image is not None:
                self._take_slices(progress, progress.image)
            now = time.perf_counter()
            if progress.ended or now - self._shown_at >= self._every:
                self._shown_at = now
                self._show()
        except Exception as error:
            print(f"The training goes on, but its view failed: {error!r}", flush=True)

    def figure(self) -> Figure:
        """Return the picture of now.

        Raises
        ------
        ValueError
            If no training has begun.
        """
        if self._progress is None:
            raise ValueError("The view has seen no training yet. Write bk.fit(..., watch=view) first.")
        progress, n_slices = self._progress, len(self._slices)
        scored = bool(progress.history.validation)
        widths = [3.9, *([3.4] if scored else []), *[2.3] * n_slices]
        figure = Figure(figsize=(round(sum(widths) + 0.4, 2), 3.3), layout="constrained")
        axes = figure.subplots(1, len(widths), squeeze=False, gridspec_kw={"width_ratios": widths})[0]
        _draw_losses(axes[0], progress)
        if scored:
            _draw_scores(axes[1], progress)
        top = max((float(image.max()) for image in self._slices.values()), default=1.0)
        for ax, (name, image) in zip(axes[len(axes) - n_slices :], self._slices.items(), strict=True):
            ax.imshow(image, cmap="gray", vmin=0, vmax=self._white or top)
            ax.set_title(name, fontsize=SMALL + 1)
            ax.set_axis_off()
        figure.suptitle(self.describe(), fontsize=SMALL + 1)
        figure.blockkit_values = False  # type: ignore[attr-defined]  # times and bytes differ from run to run
        return figure

    def describe(self) -> str:
        """Return in one line how the run stands: step, loss, score, memory, time left."""
        progress = self._progress
        if progress is None:
            return "no training yet"
        said = [f"step {progress.step} of {progress.n_steps}"]
        history = progress.history
        said += [f"loss {history.losses[-1]:.4f}"] if history.losses else []
        if history.validation:
            step, score = history.validation[-1]
            said.append(f"{progress.score} {score:.4g} at step {step}")
        free = free_bytes(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
        most = _memory()
        said += [f"memory {most / GIB:.2f} GiB at most"] if most else []
        said += [f"{free / GIB:.3g} GiB free"] if free is not None else []
        if progress.ended:
            said.append(f"{_duration(progress.seconds)} in all")
        elif progress.seconds_left is not None:
            said.append(f"{_duration(progress.seconds_left)} left")
        return ", ".join(said)

    def __repr__(self) -> str:
        return f"TrainingView({self.describe()})"

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        if self._progress is None:
            return {"text/plain": repr(self)}, {}
        shown = {"text/plain": repr(self), **pictures(self.figure())}
        return shown, {"image/png": {"alt": self.describe()}}

    def _show(self) -> None:
        if not self._in_notebook:
            print(self.describe(), flush=True)
        elif self._handle is None:
            self._handle = display(self, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update(self)  # type: ignore[no-untyped-call]

    def _take_slices(self, progress: Progress, image: Tensor) -> None:
        """Keep the middle slice of the first image, of this one, and of the reference."""
        mine = self._middle(image)
        before = list(self._slices.items())[:1] or [(f"first, step {progress.step}", mine)]
        kept = {**dict(before), f"now, step {progress.step}": mine}
        if progress.reference is not None:
            kept["reference"] = self._middle(progress.reference)
        self._slices = kept

    def _middle(self, image: Tensor) -> NDArray[np.float64]:
        return take_part(take_plane(image, self._axis, image.shape[self._axis] // 2), "magnitude")

    @property
    def _white(self) -> float:
        return float(self._slices["reference"].max()) if "reference" in self._slices else 0.0


def _draw_losses(ax: Axes, progress: Progress) -> None:
    losses = np.asarray(progress.history.losses)
    steps = np.arange(1, len(losses) + 1)
    ax.plot(steps, losses, color=PALETTE[0], linewidth=0.8, alpha=0.5)
    n = min(SMOOTHED, max(1, len(losses) // 4))
    if len(losses):
        means = np.convolve(losses, np.ones(n) / n, mode="valid")
        ax.plot(steps[n - 1 :], means, color=PALETTE[0], linewidth=2.0)
    ax.set_title("relative L2 loss", fontsize=SMALL + 1)
    _dress(ax, progress)


def _draw_scores(ax: Axes, progress: Progress) -> None:
    steps, scores = zip(*progress.history.validation, strict=True)
    ax.plot(steps, scores, color=PALETTE[2], linewidth=1.6, marker=MARKERS[0], markersize=4)
    ax.set_title(f"validation: {progress.score}", fontsize=SMALL + 1)
    _dress(ax, progress)


def _dress(ax: Axes, progress: Progress) -> None:
    ax.set_xlim(0, progress.n_steps)
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.set_xlabel("step", fontsize=SMALL + 1)
    ax.tick_params(labelsize=SMALL)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(visible=True, color="0.9", linewidth=0.8)


def _in_notebook() -> bool:
    """Say whether pictures can be shown: a kernel, and not IPython in a terminal."""
    shell = get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _memory() -> int:
    """Return the most bytes that the process has had: on the GPU where there is one; 0 if it is not known."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
