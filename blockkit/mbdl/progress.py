"""How a training run stands: its history, and who is told of it while it goes on."""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor
from tqdm.auto import tqdm


@dataclass
class History:
    """What a training run went through.

    Attributes
    ----------
    losses
        Relative L2 error of each step's scan, or the mean over its scans: of the image, or of the held-out samples.
    validation
        ``(step, score)``, once every pass over the scans. With ``target="reference"`` the score is the mean PSNR of the
        validation scans in dB, the highest is the best; with ``target="self"`` it is their mean relative L2 error on
        held-out samples, the lowest is the best.
    interrupted
        True if the run was stopped before its last step.
    skipped
        ``(step, why)`` of each scan that was passed over, with ``skip_bad``, and the steps done before.
    """

    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    interrupted: bool = False
    skipped: list[tuple[int, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Progress:
    """What a watcher of :func:`~blockkit.mbdl.training.fit` is told: at the start, after each step, at the end.

    After each validation it is told once more, with the image.

    Attributes
    ----------
    step, n_steps
        Steps done, those before a resumed run included, and steps in all.
    n_new
        Steps done by this call.
    seconds
        Since the first step of this call began.
    history
        The run's own, which goes on growing.
    image, reference
        Of the first validation scan, complex ``(z, y, x)``: what the model makes of it now, and what it should be, or
        None. Copy what is to be kept: both are the run's own.
    score
        What the validation's score is.
    ended
        True the last time, also if the run was stopped or failed.
    """

    step: int
    n_steps: int
    n_new: int
    seconds: float
    history: History
    image: Tensor | None = None
    reference: Tensor | None = None
    score: str = "PSNR (dB)"
    ended: bool = False

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the steps to come take at the pace so far; None before the first."""
        return self.seconds / self.n_new * (self.n_steps - self.step) if self.n_new else None


Watch = Callable[[Progress], None]


class ProgressBar:
    """The watcher that :func:`~blockkit.mbdl.training.fit` has unless asked: a bar with the loss."""

    def __init__(self) -> None:
        self.bar: tqdm | None = None

    def __call__(self, progress: Progress) -> None:
        """Move the bar on to where the run stands."""
        if self.bar is None:
            self.bar = tqdm(total=progress.n_steps, initial=progress.step, unit="step")
        if progress.n_new:
            self.bar.set_postfix(loss=f"{progress.history.losses[-1]:.4f}", refresh=False)
        self.bar.update(progress.step - self.bar.n)
        if progress.ended:
            self.bar.close()
