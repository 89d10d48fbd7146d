"""Training: fit a model to scans, keep the best weights, stop and resume without loss."""

import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from blockkit.checks import check_count
from blockkit.data.scan import Scan
from blockkit.mbdl.augmentation import mirrored
from blockkit.mbdl.data_consistency import DataTerm
from blockkit.mbdl.held_out import HeldOut
from blockkit.mbdl.interrupt import interruptible
from blockkit.mbdl.loss import training_loss
from blockkit.mbdl.optimizer import KernelOptimizer
from blockkit.mbdl.prepared import PreparedScans
from blockkit.mbdl.progress import History, Progress, ProgressBar, Watch
from blockkit.mbdl.room import check_room
from blockkit.mbdl.splitting import SplitScans
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import describe, read_tensors, write_tensors
from blockkit.metrics import psnr

TARGETS = ("reference", "self")
_FORMAT = "blockkit-training-1"


def fit(
    model: UnrolledNetwork,
    scans: Sequence[Scan],
    *,
    target: str = "reference",
    validation: Sequence[Scan] = (),
    n_steps: int = 1000,
    learning_rate: float = 1e-3,
    augment: bool = False,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    check_memory: bool = True,
    watch: Watch | None = None,
) -> History:
    r"""Train ``model`` in place on the relative L2 loss, one scan a step.

    The image of the last unroll counts fully, and those of the earlier ones 0.3 each, so that every unroll learns from
    the first step on. Kernels are trained by Muon and the rest by Adam (:mod:`blockkit.mbdl.optimizer`). The learning
    rate rises over the first twentieth and then falls to a hundredth by half a cosine. Scans are taken in an order
    drawn from ``seed`` anew for each pass. With validation scans, the weights with the best score are the ones in
    ``model`` at the end, also if the run fails.

    ``target="self"`` needs no reference [1]_: the samples of a scan, half of them as whole readouts, are dealt into
    four folds, drawn from ``seed``. Each pass holds another fold out of the data term, and the loss is the relative L2
    error of what the image gives there, weighted by the density compensation (:mod:`blockkit.mbdl.splitting` says why).
    Noise cannot be predicted, so a good image does not bring the loss near 0. A scan is prepared four times, once a
    fold. To reconstruct, use all of it.

    Gradients are clipped to norm 1. Inside ``torch.autocast("cpu", dtype=torch.bfloat16)`` the regularizer computes in
    half precision; the data consistency and the weights stay in single precision. Ctrl-C ends the run after the step
    under way; with ``checkpoint`` nothing is lost, and the same call goes on where the last one stopped.

    Parameters
    ----------
    model
        Trained on the device where its weights are.
    scans
        Scans with a ``reference``, unless ``target`` is ``"self"``; a lazy sequence is read as it is indexed.
    target
        What to train towards: ``"reference"``, the scans' references, or ``"self"``, their own held-out samples.
    validation
        Scans like ``scans``, never trained on. With ``target="self"`` a fold that does not depend on ``seed`` is held
        out, and references are not looked at.
    n_steps
        Steps in all, those of a resumed run included.
    learning_rate
        The highest one.
    augment
        Mirror each scan along axes drawn anew at each step, conjugate it or not, and turn its phase: more scans than
        there are, for a network that is to know no direction.
    checkpoint
        File to write after every pass and at the end, and to resume from if it exists.
    seed
        Draws the order of the scans, the folds, and the augmentation.
    check_memory
        Refuse to start if a step is predicted to take more memory than is free.
    watch
        Called with a :class:`~blockkit.mbdl.progress.Progress` as the run goes on, such as a
        :class:`~blockkit.show.training_view.TrainingView`. It changes nothing in the run. None: a progress bar.

    Raises
    ------
    ValueError
        If a scan has no reference or a reference of zeros; with ``target="self"``, if it has fewer than eight readouts
        or no signal; if a loss is not finite, or ``checkpoint`` belongs to another model or run or cannot be written.
    TypeError
        If ``model`` or a scan is something else.
    MemoryError
        If a step will not fit: the message names the block with which it would.

    References
    ----------
    .. [1] Yaman et al., "Self-supervised learning of physics-guided reconstruction neural networks without fully
       sampled reference data", MRM 84:3172-3191, 2020, doi:10.1002/mrm.28378.

    Examples
    --------
    >>> model = bk.UnrolledNetwork(bk.ResidualCNN(4, 2), n_unrolls=2, block_shape=(8, 8, 8))
    >>> history = bk.fit(model, [scan], n_steps=2, check_memory=False, watch=lambda progress: None)
    >>> len(history.losses)
    2
    """
    check_count(n_steps, "n_steps")
    _check_arguments(model, scans, target, checkpoint)
    run = _Run(model, n_steps, learning_rate, seed, len(scans), augment, target)
    if checkpoint is not None and Path(checkpoint).exists():
        run.load(checkpoint)
    terms, held_out = _made_ready(model, scans, validation, run, check_memory=check_memory)
    run.watch = watch or run.watch
    try:
        with interruptible() as interrupt:
            for data_and_target in held_out if run.step == 0 else ():
                del data_and_target  # looked at before the first step: a bad one is named now
            run.tell()
            while run.step < n_steps and not interrupt.is_set():
                run.train_step(*terms.get(*run.next_scan()))
                run.tell()
                if run.step % len(scans) == 0 or run.step == n_steps:
                    run.validate(held_out)
                    if checkpoint is not None:
                        run.save(checkpoint)
        run.history.interrupted = run.step < n_steps
        if run.history.interrupted and checkpoint is not None:
            run.save(checkpoint)
    finally:
        run.keep_best()
        run.tell(ended=True)
    return run.history


class _Run:
    """A training run: model, optimizer, position and history, all of which a checkpoint holds."""

    def __init__(
        self,
        model: UnrolledNetwork,
        n_steps: int,
        learning_rate: float,
        seed: int,
        n_scans: int,
        augment: bool,
        target: str,
    ) -> None:
        self.model, self.n_steps, self.seed, self.n_scans = model, n_steps, seed, n_scans
        self.augment, self.target = augment, target
        self.optimizer = KernelOptimizer(model.parameters(), learning_rate, self._rate)
        self.best: dict[str, Tensor] = {}
        self.history = History()
        self.watch: Watch = ProgressBar()
        self.began: tuple[float, int] | None = None  # when this call's first step began, and the steps before it

    def tell(self, image: Tensor | None = None, reference: Tensor | None = None, *, ended: bool = False) -> None:
        """Tell the watcher how the run stands."""
        self.began = self.began or (time.perf_counter(), self.step)
        seconds, n_new = time.perf_counter() - self.began[0], self.step - self.began[1]
        score = "relative L2 error, held out" if self.target == "self" else "PSNR (dB)"
        self.watch(Progress(self.step, self.n_steps, n_new, seconds, self.history, image, reference, score, ended))

    @property
    def step(self) -> int:
        return len(self.history.losses)

    def _rate(self, step: int) -> float:
        """Rise over the first twentieth, then fall to a hundredth by half a cosine."""
        rise = min(1.0, (step + 1) / max(1, self.n_steps // 20))
        return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.n_steps))))

    def next_scan(self) -> tuple[int, int]:
        """Return the number of the next step's scan, and of the pass over the scans."""
        epoch, position = divmod(self.step, self.n_scans)
        return int(torch.randperm(self.n_scans, generator=_generator(self.seed, epoch, 0))[position]), epoch

    def train_step(self, data: DataTerm, target: Tensor | HeldOut) -> float:
        if self.augment:
            data, target = mirrored(data, target, _generator(self.seed, self.step, 1))
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        loss, error = training_loss(self.model, data, target)
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(error)
        if not math.isfinite(value):
            raise ValueError(
                f"The loss is {value} at step {self.step + 1}. Expected a finite number: lower learning_rate?"
            )
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        torch.clear_autocast_cache()  # or a surrounding autocast goes on with the weights of the step before
        self.history.losses.append(value)
        return value

    @torch.no_grad()
    def validate(self, scans: PreparedScans) -> None:
        if not len(scans):
            return
        self.model.eval()
        scores, first = [], None
        for data, target in scans:
            image = self.model.unroll(data)
            scores.append(self.score(image, data, target))
            first = (image, target) if first is None else first
        score = sum(scores) / len(scans)
        sign = -1 if self.target == "self" else 1
        if sign * score > max((sign * value for _, value in self.history.validation), default=-math.inf):
            self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.history.validation.append((self.step, score))
        if first is not None:
            self.tell(first[0], None if isinstance(first[1], HeldOut) else first[1])

    def score(self, image: Tensor, data: DataTerm, target: Tensor | HeldOut) -> float:
        """Return the error on held-out samples, which is to be low, or the PSNR, which is to be high."""
        if isinstance(target, HeldOut):
            return float(target.relative_error(image / data.scale))
        return psnr(image, target)

    def keep_best(self) -> None:
        if self.best:
            self.model.load_state_dict(self.best)
        self.model.eval()

    def save(self, path: str | Path) -> None:
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"optimizer.{name}": value for name, value in self.optimizer.state().items()}
        metadata = {"format": _FORMAT, "run": json.dumps(self._identity()), "history": json.dumps(asdict(self.history))}
        write_tensors(
            path, {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, metadata
        )

    def load(self, path: str | Path) -> None:
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path} is no training checkpoint of this library. Name another file for checkpoint.")
        found = {"target": "reference"} | json.loads(metadata["run"])  # older ones did not say, and knew no other
        expected = json.loads(json.dumps(self._identity()))
        if found != expected:
            raise ValueError(
                f"{path} belongs to another run: it has {found}, this call has {expected}. "
                "Call fit as before to resume, or name another checkpoint to start anew."
            )
        self.model.load_state_dict(_strip(tensors, "model."))
        self.best = _strip(tensors, "best.")
        history = json.loads(metadata["history"])
        self.history = History(history["losses"], [(int(step), value) for step, value in history["validation"]])
        self.optimizer.load(_strip(tensors, "optimizer."), self.step)

    def _identity(self) -> dict[str, object]:
        rates = {"learning_rate": self.optimizer.learning_rate, "n_steps": self.n_steps}
        drawn = {"seed": self.seed, "n_scans": self.n_scans, "augment": self.augment}
        return describe(self.model) | rates | drawn | {"target": self.target}


def _made_ready(
    model: UnrolledNetwork, scans: Sequence[Scan], validation: Sequence[Scan], run: _Run, *, check_memory: bool
) -> tuple[PreparedScans, PreparedScans]:
    """Return the scans and the validation scans with what the run's target asks for."""
    kind = SplitScans if run.target == "self" else PreparedScans
    unless, share = "fit(..., check_memory=False)", kind.share_held_out
    check = partial(check_room, model, training=True, unless=unless, share_held_out=share)
    return kind("scans", scans, model, check if check_memory else None, run.seed), kind("validation", validation, model)


def _check_arguments(model: object, scans: object, target: str, checkpoint: str | Path | None) -> None:
    if not isinstance(model, UnrolledNetwork):
        raise TypeError(f"model is a {type(model).__name__}, expected a blockkit.UnrolledNetwork.")
    if isinstance(scans, Scan) or not isinstance(scans, Sequence):
        raise TypeError(f"scans is a {type(scans).__name__}, expected a sequence of blockkit.Scan: write [scan].")
    if not len(scans):
        raise ValueError("scans is empty, expected at least one scan.")
    if target not in TARGETS:
        raise ValueError(f"target is {target!r}, expected one of {', '.join(map(repr, TARGETS))}.")
    if checkpoint is not None and (Path(checkpoint).is_dir() or not Path(checkpoint).parent.is_dir()):
        raise ValueError(f"checkpoint is '{checkpoint}', expected a file in a folder that exists. Make it first.")


def _generator(seed: int, position: int, use: int) -> torch.Generator:
    """Return a generator for one position of a run, so that a resumed run draws what the whole one did."""
    return torch.Generator().manual_seed(seed * 1_000_003 + 2 * position + use)


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
