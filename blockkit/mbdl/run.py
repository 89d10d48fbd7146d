"""A training run: which scan comes next, a step on it, validation, and what happens when one of them fails."""

import contextlib
import math
import time
import warnings
from collections import Counter
from functools import partial

import torch
from torch import Tensor

from blockkit.data.scan import Scan
from blockkit.group import ALONE
from blockkit.mbdl.augmentation import mirrored
from blockkit.mbdl.data_consistency import DataTerm
from blockkit.mbdl.determinism import drawn_from, generator
from blockkit.mbdl.held_out import HeldOut
from blockkit.mbdl.loss import training_loss
from blockkit.mbdl.optimizer import KernelOptimizer
from blockkit.mbdl.prepared import BadScanError, PreparedScans
from blockkit.mbdl.progress import History, Progress, ProgressBar, Watch
from blockkit.mbdl.ranks import Ranks
from blockkit.mbdl.room import NoRoomError, blocks_in_words, say_what_would_fit, smaller_block
from blockkit.mbdl.shortage import with_room
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import describe
from blockkit.metrics import psnr


class Run:
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
        *,
        spread: bool = False,
    ) -> None:
        self.model, self.n_steps, self.seed, self.n_scans = model, n_steps, seed, n_scans
        self.augment, self.target = augment, target
        self.optimizer = KernelOptimizer(model.parameters(), learning_rate, self._rate)
        self.best: dict[str, Tensor] = {}
        self.history = History()
        self.watch: Watch = ProgressBar()
        self.began: tuple[float, int] | None = None  # when this call's first step began, and the steps before it
        self.scans_per_step, self.ranks = 1, Ranks(model.step_size.device, spread=spread)
        self.skip_bad, self.n_bad = False, 0  # of this pass
        self.automatic_block = False  # whether a smaller block may be taken
        self.prepared: tuple[PreparedScans, ...] = ()  # that can be forgotten to make room

    def tell(self, image: Tensor | None = None, reference: Tensor | None = None, *, ended: bool = False) -> None:
        """Tell the watcher how the run stands."""
        self.began = self.began or (time.perf_counter(), self.step)
        seconds, n_new = time.perf_counter() - self.began[0], self.step - self.began[1]
        score = "relative L2 error, held out" if self.target == "self" else "PSNR (dB)"
        self.watch(Progress(self.step, self.n_steps, n_new, seconds, self.history, image, reference, score, ended))

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.history.losses)

    @property
    def position(self) -> int:
        """Scans that were had, those passed over included: a step with no good scan among them was none."""
        n_bad = Counter(step for step, _ in self.history.skipped).values()
        return self.scans_per_step * (self.step + sum(n // self.scans_per_step for n in n_bad))

    @property
    def ends_pass(self) -> bool:
        """Whether a pass over the scans, or the run, is complete."""
        return self.position % self.n_scans < self.scans_per_step or self.step == self.n_steps

    @property
    def lacks_validation(self) -> bool:
        """Whether the run was cut off after the last step of a pass, before its validation."""
        return self.step > 0 and self.ends_pass and self.step not in dict(self.history.validation)

    def _rate(self, step: int) -> float:
        """Rise over the first twentieth, then fall to a hundredth by half a cosine."""
        rise = min(1.0, (step + 1) / max(1, self.n_steps // 20))
        return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.n_steps))))

    def scan_of(self, j: int) -> tuple[int, int]:
        """Return the number of the next step's scan ``j``, and of the pass over the scans."""
        epoch, place = divmod(self.position + j, self.n_scans)
        return int(torch.randperm(self.n_scans, generator=generator(self.seed, epoch, 0))[place]), epoch

    def take_step(self, scans: PreparedScans) -> None:
        """Train on the next scans; or pass those over that are bad, if that was asked for.

        Gradients are averaged once all are there, and not by hooks within the backward pass, as DDP does: blocks are
        run forward again in it, and one scan's gradients must be looked at before they join those of the others.
        """
        gradients: list[Tensor | None] = []
        group, first_own = self.ranks.group, self.scan_of(self.ranks.rank % self.ranks.n_dealt)[0]

        def learn(j: int) -> float | BadScanError:
            i, epoch = self.scan_of(j)
            try:
                value, added = with_room(
                    lambda: group.together(
                        "a step", lambda: self.gradients_of(*scans.get(i, epoch), scans.called(i), j)
                    ),
                    partial(self.make_room, scans, i),
                )
            except BadScanError as error:
                if not self.skip_bad:
                    raise
                return error
            gradients[:] = added if not gradients else map(_sum, gradients, added)
            return value

        outcomes = self.ranks.map(learn, self.scans_per_step)
        values = [value for value in outcomes if isinstance(value, float)]
        bad = [error for error in outcomes if isinstance(error, BadScanError)]
        self.count_bad(outcomes)
        step = self.step
        if values:
            means = self.mean(gradients, len(values))
            self.clip(means)
            with_room(lambda: self.change_weights(means), partial(self.make_room, scans, first_own, alone=True))
            self.history.losses.append(sum(values) / len(values))
        for error in bad:
            self.warn(f"Passed over: {error}")
            self.history.skipped.append((step, str(error)))

    def count_bad(self, outcomes: list[float | BadScanError]) -> None:
        """Count the bad scans of this pass, and raise the last one's error if not one is good."""
        for position, outcome in enumerate(outcomes, self.position):
            if position % self.n_scans == 0:
                self.n_bad = 0
            if isinstance(outcome, BadScanError):
                self.n_bad += 1
                if self.n_bad == self.n_scans:
                    raise self.ranks.in_common(outcome)

    def gradients_of(
        self, data: DataTerm, target: Tensor | HeldOut, name: str, j: int
    ) -> tuple[float, list[Tensor | None]]:
        """Return the relative L2 error of the next step's scan ``j`` and the gradients of its loss, all finite."""
        position = self.step * self.scans_per_step + j
        if self.augment:
            data, target = mirrored(data, target, generator(self.seed, position, 1))
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        with drawn_from(self.seed, position, self.model.step_size.device):
            loss, error = training_loss(self.model, data, target)
            loss.backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in self.optimizer.trained]
        self.model.zero_grad(set_to_none=True)
        value, size = float(error), float(torch.nn.utils.get_total_norm([g for g in gradients if g is not None]))
        if not math.isfinite(value) or not math.isfinite(size):
            what = f"a loss of {value}" if not math.isfinite(value) else f"gradients of size {size}"
            raise BadScanError(
                f"{name} gives {what} at step {self.step + 1}, expected a finite number. The weights are those before "
                "this step. If every scan does so: lower learning_rate?"
            )
        return value, gradients

    def mean(self, gradients: list[Tensor | None], n: int) -> list[Tensor | None]:
        """Return the mean of the gradients of ``n`` scans, of which this process has the sum of its own."""
        if self.ranks.size == 1:
            return gradients if n == 1 else [None if g is None else g.div_(n) for g in gradients]
        n *= self.ranks.group.size  # where all have the whole gradients: their mean is the same on all to the bit
        mine = gradients or [None] * len(self.optimizer.trained)  # all of its scans are bad
        pairs = zip(mine, self.optimizer.trained, strict=True)
        return [g / n for g in self.ranks.sum([torch.zeros_like(p) if g is None else g for g, p in pairs])]

    def clip(self, gradients: list[Tensor | None]) -> None:
        """Clip gradients to norm 1 where they are: a copy of them would be memory that no plan counts."""
        self.hand_over(gradients)
        torch.nn.utils.clip_grad_norm_(self.optimizer.trained, 1.0)

    def hand_over(self, gradients: list[Tensor | None]) -> None:
        """Give the parameters their gradients, the tensors themselves."""
        for parameter, gradient in zip(self.optimizer.trained, gradients, strict=True):
            parameter.grad = gradient

    def change_weights(self, gradients: list[Tensor | None]) -> None:
        """Change the weights by one step along gradients; if it fails, they are as before."""
        self.hand_over(gradients)
        self.optimizer.step()
        torch.clear_autocast_cache()  # or a surrounding autocast goes on with the weights of the step before

    @torch.no_grad()
    def validate(self, scans: PreparedScans) -> None:
        """Score the weights, and keep them if they are the best."""
        self.model.eval()
        first: list[tuple[Tensor, Tensor | HeldOut]] = []

        def score(i: int) -> float:
            image, data, target = with_room(partial(self._image, scans, i), partial(self.make_room, scans, i))
            first.extend([(image, target)] if i == 0 else [])
            return self.score(image, data, target)

        try:
            scores = self.ranks.map(score, len(scans))
        except BadScanError as error:
            if not self.skip_bad:
                raise
            self.warn(f"The validation after step {self.step} is left out: {error}")
            return
        if not scores:
            return
        mean = sum(scores) / len(scores)
        sign = -1 if self.target == "self" else 1
        if sign * mean > max((sign * value for _, value in self.history.validation), default=-math.inf):
            self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.history.validation.append((self.step, mean))
        for image, target in first:  # which the first process has
            self.tell(image, None if isinstance(target, HeldOut) else target)

    def warn(self, said: str) -> None:
        """Warn, once for all processes, where :func:`~blockkit.mbdl.training.fit` was called."""
        if self.ranks.is_first:
            warnings.warn(said, RuntimeWarning, stacklevel=5)

    def _image(self, scans: PreparedScans, i: int) -> tuple[Tensor, DataTerm, Tensor | HeldOut]:
        def image() -> tuple[Tensor, DataTerm, Tensor | HeldOut]:
            data, target = scans[i]
            return self.model.unroll(data), data, target

        return self.ranks.group.together("an image", image)

    def score(self, image: Tensor, data: DataTerm, target: Tensor | HeldOut) -> float:
        """Return the error on held-out samples, which is to be low, or the PSNR, which is to be high."""
        if isinstance(target, HeldOut):
            return float(target.relative_error(image / data.scale))
        return psnr(image, target)

    def make_room(self, scans: PreparedScans, i: int, said: str, foreseen: bool, *, alone: bool = False) -> None:
        """Make room after memory ran out on a scan, or raise: forget prepared scans first, then take smaller blocks.

        Processes that share a scan do so together, unless memory ran out on one ``alone``: that can only forget.
        """
        group = ALONE if alone else self.ranks.group
        self.model.zero_grad(set_to_none=True)
        where = f"Out of memory after step {self.step}, on {scans.called(i)}, by {blocks_in_words(self.model)}"
        if group.any("prepared scans", any(prepared.kept for prepared in self.prepared)):
            for prepared in self.prepared:
                prepared.forget()
            return
        if foreseen:
            raise NoRoomError(said)
        scan: Scan | None = None
        with contextlib.suppress(OSError, ValueError):
            scan = group.together("a scan", lambda: scans.part_of(scans.scans[i], scans.called(i)))
        may_shrink = self.automatic_block and (not alone or self.ranks.group.size == 1)
        block = smaller_block(self.model, scan.image_shape) if scan is not None and may_shrink else None
        if block is not None:
            warnings.warn(f"{where}: going on by blocks of {block}.", RuntimeWarning, stacklevel=8)
            self.model.block_shape = block
            return
        advice = "" if scan is None else say_what_would_fit(self.model, scan, scans.share_held_out)
        if not self.automatic_block:
            advice += 'Or write model.block_shape = "auto", and smaller blocks are taken when memory runs out. '
        raise MemoryError(f"{where} ({said}). {advice}The weights are those of step {self.step}.")

    def keep_best(self) -> None:
        """Put the weights with the best score into the model, if any were scored."""
        if self.best:
            self.model.load_state_dict(self.best)
        self.model.eval()

    def identity(self) -> dict[str, object]:
        """Say what must be alike for a run to go on from a checkpoint, in plain JSON types."""
        rates = {"learning_rate": self.optimizer.learning_rate, "n_steps": self.n_steps}
        drawn = {"seed": self.seed, "n_scans": self.n_scans, "augment": self.augment}
        return describe(self.model) | rates | drawn | {"target": self.target, "scans_per_step": self.scans_per_step}


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b
