"""Training: fit a model to scans, keep the best weights, stop and resume without loss."""

import json
import math
import signal
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from blockkit.checks import check_count
from blockkit.data.scan import Scan
from blockkit.mbdl.data_consistency import DataTerm, prepare
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import describe, read_tensors, write_tensors
from blockkit.metrics import psnr
from blockkit.physics.sense import Encoding

CACHE_BYTES = 3 * 2**30
_FORMAT = "blockkit-training-1"


@dataclass
class History:
    """What a training run went through.

    Attributes
    ----------
    losses
        Relative L2 error of each step's scan.
    validation
        ``(step, mean PSNR in dB over the validation scans)``, once every pass over the scans.
    interrupted
        True if the run was stopped before its last step.
    """

    losses: list[float] = field(default_factory=list)
    validation: list[tuple[int, float]] = field(default_factory=list)
    interrupted: bool = False


def fit(
    model: UnrolledNetwork,
    scans: Sequence[Scan],
    *,
    validation: Sequence[Scan] = (),
    n_steps: int = 1000,
    learning_rate: float = 1e-3,
    checkpoint: str | Path | None = None,
    seed: int = 0,
) -> History:
    r"""Train ``model`` in place with Adam on the relative L2 loss, one scan a step.

    The learning rate rises over the first twentieth and then falls to a hundredth by half a cosine. Scans are taken in
    an order drawn from ``seed`` anew for each pass. With validation scans, the weights with the best mean PSNR are the
    ones in ``model`` at the end.

    Gradients are clipped to norm 1. Ctrl-C ends the run after the step under way; with ``checkpoint`` nothing is lost,
    and the same call goes on where the last one stopped.

    Parameters
    ----------
    model
        Trained on the device where its weights are.
    scans
        Scans with a ``reference``; a lazy sequence is read as it is indexed.
    validation
        Scans with a ``reference``, never trained on.
    n_steps
        Steps in all, those of a resumed run included.
    learning_rate
        Adam's, at the start.
    checkpoint
        File to write after every pass and at the end, and to resume from if it exists.
    seed
        Draws the order of the scans.

    Raises
    ------
    ValueError
        If a scan has no reference, a loss is not finite, or ``checkpoint`` belongs to another model or run.

    References
    ----------
    .. [1] Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    """
    check_count(n_steps, "n_steps")
    if not len(scans):
        raise ValueError("scans is empty, expected at least one scan with a reference.")
    run = _Run(model, n_steps, learning_rate, seed, len(scans))
    if checkpoint is not None and Path(checkpoint).exists():
        run.load(checkpoint)
    terms, held_out = _PreparedScans(scans, model), _PreparedScans(validation, model)
    with _interruptible() as interrupt, tqdm(total=n_steps, initial=run.step, unit="step") as bar:
        while run.step < n_steps and not interrupt.is_set():
            loss = run.train_step(*terms[run.next_scan()])
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            if run.step % len(scans) == 0 or run.step == n_steps:
                run.validate(held_out)
                if checkpoint is not None:
                    run.save(checkpoint)
    run.history.interrupted = run.step < n_steps
    if run.history.interrupted and checkpoint is not None:
        run.save(checkpoint)
    run.keep_best()
    return run.history


class _Run:
    """A training run: model, optimizer, position and history, all of which a checkpoint holds."""

    def __init__(self, model: UnrolledNetwork, n_steps: int, learning_rate: float, seed: int, n_scans: int) -> None:
        self.model, self.n_steps, self.seed, self.n_scans = model, n_steps, seed, n_scans
        self.optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.best: dict[str, Tensor] = {}
        self.history = History()

    @property
    def step(self) -> int:
        return len(self.history.losses)

    def _rate(self, step: int) -> float:
        """Rise over the first twentieth, then fall to a hundredth by half a cosine."""
        rise = min(1.0, (step + 1) / max(1, self.n_steps // 20))
        return rise * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.n_steps))))

    def next_scan(self) -> int:
        epoch, position = divmod(self.step, self.n_scans)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        return int(torch.randperm(self.n_scans, generator=generator)[position])

    def train_step(self, data: DataTerm, reference: Tensor) -> float:
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        loss = relative_error(self.model.unroll(data), reference)
        loss.backward()  # type: ignore[no-untyped-call]
        value = float(loss.detach())
        if not torch.isfinite(loss):
            raise ValueError(
                f"The loss is {value} at step {self.step + 1}. Expected a finite number: lower learning_rate?"
            )
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.history.losses.append(value)
        return value

    @torch.no_grad()
    def validate(self, scans: "_PreparedScans") -> None:
        if not len(scans):
            return
        self.model.eval()
        mean = sum(psnr(self.model.unroll(data), reference) for data, reference in scans) / len(scans)
        if mean > max((value for _, value in self.history.validation), default=-float("inf")):
            self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.history.validation.append((self.step, mean))

    def keep_best(self) -> None:
        if self.best:
            self.model.load_state_dict(self.best)
        self.model.eval()

    def save(self, path: str | Path) -> None:
        moments = self.optimizer.state_dict()["state"]
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"adam.{i}.{name}": value for i, state in moments.items() for name, value in state.items()}
        metadata = {"format": _FORMAT, "run": json.dumps(self._identity()), "history": json.dumps(asdict(self.history))}
        metadata["schedule"] = json.dumps(self.schedule.state_dict())
        write_tensors(
            path, {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, metadata
        )

    def load(self, path: str | Path) -> None:
        tensors, metadata = read_tensors(path)
        if metadata.get("format") != _FORMAT:
            raise ValueError(f"{path} is no training checkpoint of this library. Name another file for checkpoint.")
        found, expected = json.loads(metadata["run"]), json.loads(json.dumps(self._identity()))
        if found != expected:
            raise ValueError(
                f"{path} belongs to another run: it has {found}, this call has {expected}. "
                "Call fit as before to resume, or name another checkpoint to start anew."
            )
        self.model.load_state_dict(_strip(tensors, "model."))
        self.best = _strip(tensors, "best.")
        history = json.loads(metadata["history"])
        self.history = History(history["losses"], [(int(step), value) for step, value in history["validation"]])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in _strip(tensors, "adam.").items():
            i, key = name.split(".", 1)
            moments.setdefault(int(i), {})[key] = value
        self.schedule.load_state_dict(json.loads(metadata["schedule"]))
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate

    def _identity(self) -> dict[str, object]:
        rates = {"learning_rate": self.schedule.base_lrs[0], "n_steps": self.n_steps}
        return describe(self.model) | rates | {"seed": self.seed, "n_scans": self.n_scans}


def relative_error(image: Tensor, reference: Tensor) -> Tensor:
    """Return ``|image - reference| / |reference|`` (L2), a real tensor without axes."""
    difference = torch.linalg.vector_norm(torch.view_as_real(image - reference))
    error: Tensor = difference / torch.linalg.vector_norm(torch.view_as_real(reference))
    return error


class _PreparedScans(Sequence[tuple[DataTerm, Tensor]]):
    """The scans' data terms and references, made when first asked for and kept while they fit the cache."""

    def __init__(self, scans: Sequence[Scan], model: UnrolledNetwork) -> None:
        self.scans, self.data_term = scans, model.data_term
        self.device = model.step_size.device
        self.kept: OrderedDict[int, tuple[DataTerm, Tensor]] = OrderedDict()
        self.n_bytes = 0

    def __len__(self) -> int:
        return len(self.scans)

    def __iter__(self) -> Iterator[tuple[DataTerm, Tensor]]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> tuple[DataTerm, Tensor]:  # type: ignore[override]
        if i in self.kept:
            return self.kept[i]
        scan = self.scans[i]
        if scan.reference is None:
            raise ValueError(f"Scan {i} has no reference, expected an image to compare with. Leave it out of scans.")
        A = Encoding(scan.trajectory.to(self.device), scan.maps)
        with torch.no_grad():
            made = prepare(A, scan.kspace.to(self.device), self.data_term), scan.reference.to(self.device)
        size = scan.maps.nbytes + 20 * scan.reference.nbytes
        if self.n_bytes + size <= CACHE_BYTES:
            self.kept[i] = made
            self.n_bytes += size
        return made


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into an event to look at between steps; a second one interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def on_interrupt(*_: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
