"""The file of a training run: written whole or not at all, often enough, and read to go on from."""

import json
import os
import tempfile
import time
import warnings
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from blockkit.mbdl.progress import History
from blockkit.mbdl.run import Run
from blockkit.mbdl.weights import TRAINING_FORMAT, below, read_tensors, write_tensors

SAVE_SECONDS = 300.0  # between two writes within a pass: what a crash can cost at most


class Checkpoint:
    """The file of a run, or none. Making one resumes the run from the file, if it is there.

    In it are the weights and the best ones, the optimizer's state, the history, whose length is the position in the
    schedule and in the data, and what the run is. Random numbers are drawn from the seed and the position, so there is
    no other state. Of several processes all read the file, and the first one writes it.
    """

    def __init__(self, run: Run, path: str | Path | None) -> None:
        self.run, self.path = run, None if path is None else Path(path)
        if self.path is not None and self.path.exists():
            _load(run, self.path)
        if self.path is not None and run.ranks.is_first:
            _check_writable(self.path)
        self.saved, self.step = (run.position, len(run.history.validation)), run.step
        self.tried = time.monotonic()

    def save_if_due(self, *, now: bool) -> None:
        """Write the file if that is wanted ``now``, or :data:`SAVE_SECONDS` after it was last tried.

        Nothing is written if nothing has changed. A file that cannot be written is no reason to lose a run: there is a
        warning, the old file stays, and the run goes on.
        """
        state = self.run.position, len(self.run.history.validation)
        if self.path is None or state == self.saved or not self.run.ranks.is_first:
            return
        if not now and time.monotonic() - self.tried < SAVE_SECONDS:
            return
        self.tried = time.monotonic()
        try:
            _save(self.run, self.path)
        except (OSError, MemoryError) as error:
            old = f"that of step {self.step} stays" if self.step else "there is none yet"
            warnings.warn(
                f"The checkpoint '{self.path}' cannot be written ({error}): {old}. The run goes on.",
                RuntimeWarning,
                stacklevel=4,
            )
        else:
            self.saved, self.step = state, self.run.step


def _save(run: Run, path: Path) -> None:
    tensors = {f"model.{name}": value for name, value in run.model.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in run.best.items()}
    tensors |= {f"optimizer.{name}": value for name, value in run.optimizer.state().items()}
    metadata = {
        "format": TRAINING_FORMAT,
        "version": library_version(),
        "run": json.dumps(run.identity()),
        "history": json.dumps(asdict(run.history)),
    }
    write_tensors(path, {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}, metadata)


def _load(run: Run, path: Path) -> None:
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != TRAINING_FORMAT:
        raise ValueError(f"{path} is no training checkpoint of this library. Name another file for checkpoint.")
    try:
        older = {"target": "reference", "scans_per_step": 1}  # older ones did not say, and knew no other
        found = older | json.loads(metadata["run"])
        history = _history(json.loads(metadata["history"]))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    expected = json.loads(json.dumps(run.identity()))
    if found != expected:
        raise ValueError(
            f"{path} belongs to another run: it has {found}, this call has {expected}. It was written by "
            f"{metadata.get('version', 'an older blockkit')}, this is {library_version()}. "
            "Call fit as before to resume, or name another checkpoint to start anew."
        )
    weights, best = below(tensors, "model."), below(tensors, "best.")
    for part in (weights, best) if best else (weights,):
        if _shapes(part) != _shapes(run.model.state_dict()):
            raise _damaged(path, "its weights do not fit the model")
    try:
        run.optimizer.load(below(tensors, "optimizer."), len(history.losses))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error
    run.model.load_state_dict(weights)
    run.best, run.history = best, history


def _history(found: dict[str, list[list[float]]]) -> History:
    losses = [float(loss) for loss in found["losses"]]  # type: ignore[arg-type]
    validation = [(int(step), float(value)) for step, value in found["validation"]]
    return History(losses, validation, skipped=[(int(step), str(why)) for step, why in found.get("skipped", [])])


def _shapes(tensors: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in tensors.items()}


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"{path} is a training checkpoint that is damaged ({why!r}). Delete it, or name another file.")


def library_version() -> str:
    """Return the versions of this library and of torch."""
    try:
        return f"blockkit {version('blockkit')}, torch {torch.__version__}"
    except PackageNotFoundError:
        return f"blockkit, torch {torch.__version__}"


def _check_writable(path: Path) -> None:
    """Raise unless a file can be written beside ``path``: before the first step, not after hours."""
    folder = Path(os.path.realpath(path)).parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(
            f"checkpoint is '{path}', and nothing can be written into '{folder}' ({error.strerror}). "
            "Name a file in another folder."
        ) from error
