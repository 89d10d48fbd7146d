"""Weights files: safetensors with the model's description inside. Nothing in such a file is ever executed."""

import contextlib
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from blockkit.checks import check_finite
from blockkit.mbdl.compact import packed, unpacked
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.unrolled import UnrolledNetwork

SHIPPED = "pulmonary_mbdl.safetensors"
TRAINING_FORMAT = "blockkit-training-1"  # of a checkpoint of fit: its best weights are those of a model
_FORMAT = "blockkit-model-1"
_RESIDUAL_CNN = ("n_channels", "n_layers", "downsample", "sees_gradient")


def save_weights(model: UnrolledNetwork, path: str | Path, *, compact: bool = False) -> None:
    """Write the model's weights and description to ``path``, complete or not at all.

    Parameters
    ----------
    model
        Of any precision, on any device.
    path
        The file; an old one stays until the new one is whole.
    compact
        Store kernels in 8 bits, with a step for each pair of output and input, or for each output where a pair has
        fewer than 8 weights: about a third of the file. Every weight stays within half a step, 0.4 % of the largest
        that shares it. They are read as float32. To go on training, store all bits.

    Raises
    ------
    TypeError
        If ``model`` is not an :class:`UnrolledNetwork`.
    ValueError
        If ``compact`` and a kernel holds NaN or infinity.

    Examples
    --------
    >>> model = bk.UnrolledNetwork(bk.ResidualCNN(4, 2), n_unrolls=2)
    >>> bk.save_weights(model, "mine.safetensors")
    >>> bk.load_model("mine.safetensors").n_unrolls
    2
    """
    if not isinstance(model, UnrolledNetwork):
        raise TypeError(f"model is a {type(model).__name__}, expected a blockkit.UnrolledNetwork.")
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    tensors = packed(tensors) if compact else tensors
    write_tensors(path, tensors, {"model": json.dumps(describe(model)), "format": _FORMAT})


def load_model(path: str | Path, *, regularizer: nn.Module | None = None) -> UnrolledNetwork:
    """Build the model that a weights file describes and fill it.

    Parameters
    ----------
    path
        A file written by :func:`save_weights`; or a checkpoint of :func:`~blockkit.mbdl.training.fit`, also of a run
        that goes on or was cut off: then the weights with the best score so far, or the last ones if none were scored.
    regularizer
        Needed if the file's regularizer is not a :class:`ResidualCNN`: an instance of the same architecture.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, is no weights file of this library, holds NaN or infinity, or does not fit its
        description or ``regularizer``.

    Examples
    --------
    >>> bk.save_weights(bk.UnrolledNetwork(bk.ResidualCNN(4, 2), n_unrolls=3), "mine.safetensors")
    >>> bk.load_model("mine.safetensors").n_unrolls
    3
    """
    tensors, metadata = read_tensors(path)
    key = {_FORMAT: "model", TRAINING_FORMAT: "run"}.get(metadata.get("format", ""))
    if key not in metadata:
        raise ValueError(f"{path} holds tensors but no blockkit model. Expected a file made by blockkit.save_weights.")
    if key == "run":
        tensors = below(tensors, "best.") or below(tensors, "model.")
    try:
        tensors = unpacked(tensors)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    for name, value in tensors.items():
        check_finite(value, f"{path}: {name}")
    n_values = sum(value.numel() for value in tensors.values())
    description = _read_description(metadata[key], n_values, path)
    with torch.device("meta"):  # first without memory, of which a damaged size could take any amount
        _check_fit(_build(description, regularizer, path), tensors, path)
    model = _build(description, regularizer, path)
    model.load_state_dict(tensors)
    return model.eval()


def pretrained() -> UnrolledNetwork:
    """Return the shipped model, trained on simulated pulmonary angiograms. Not for clinical use.

    Examples
    --------
    >>> model = bk.pretrained()
    >>> model.n_unrolls, model.shared_weights
    (5, False)
    """
    return load_model(Path(str(files("blockkit_samples") / SHIPPED)))


def describe(model: UnrolledNetwork) -> dict[str, object]:
    """Say what a model is made of, in plain JSON types."""
    network = model.regularizers[0]
    regularizer: dict[str, object] = {"name": type(network).__name__}
    if isinstance(network, ResidualCNN):
        sizes = {name: int(getattr(network, name)) for name in _RESIDUAL_CNN}
        regularizer |= {name: size for name, size in sizes.items() if size}  # sees_gradient only where it is true
    return {
        "n_unrolls": model.n_unrolls,
        "shared_weights": model.shared_weights,
        "data_term": model.data_term,
        "regularizer": regularizer,
    }


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file beside ``path`` and rename it, so that a crash leaves a whole file: old or new.

    The file is on the disk before it is renamed, so this holds for a power cut too. If ``path`` is a symbolic link, the
    file that it leads to is replaced, and the link stays. The same tensors and metadata give the same bytes.
    """
    target = Path(os.path.realpath(path))
    beside = target.with_name(target.name + ".part")
    try:
        with beside.open("wb") as file:
            content = memoryview(save(tensors, metadata))
            start = 8 + int.from_bytes(content[:8], "little")  # of the tensors; before it a JSON header and its length
            names = json.loads(bytes(content[8:start])) | {"__metadata__": metadata}  # in this order: save draws one
            header = json.dumps(names, ensure_ascii=False, separators=(",", ":")).encode()
            header += b" " * (-len(header) % 8)
            file.writelines([len(header).to_bytes(8, "little"), header, content[start:]])
            file.flush()
            os.fsync(file.fileno())
        beside.replace(target)
    finally:
        with contextlib.suppress(OSError):
            beside.unlink()
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, on systems that can."""
    with contextlib.suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors, on the CPU, and its metadata."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"No weights file at {path}.")
    try:
        with safe_open(str(path), framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}). Was it cut short, or is it another format?"
        ) from error


def _read_description(text: str, n_values: int, path: str | Path) -> dict[str, Any]:
    """Return what :func:`describe` gave for a model of ``n_values`` numbers in all, or raise."""
    try:
        description = json.loads(text)
        network = {"sees_gradient": 0} | description["regularizer"]
        sizes = {name: int(str(network[name])) for name in _RESIDUAL_CNN if network["name"] == ResidualCNN.__name__}
        n_unrolls = int(description["n_unrolls"])
        if max([n_unrolls, *sizes.values()]) > n_values:
            raise ValueError(f"sizes {n_unrolls, *sizes.values()} for {n_values} values")
        return {
            "n_unrolls": n_unrolls,
            "shared_weights": bool(description["shared_weights"]),
            "data_term": str(description["data_term"]),
            "regularizer": {"name": str(network["name"]), **sizes},
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} has a description that is damaged or incomplete ({error!r}). "
            "Expected a file made by blockkit.save_weights."
        ) from error


def _build(description: dict[str, Any], regularizer: nn.Module | None, path: str | Path) -> UnrolledNetwork:
    sizes = {name: size for name, size in description["regularizer"].items() if name != "name"}
    if regularizer is None and not sizes:
        raise ValueError(
            f"{path} was made with a regularizer of class {description['regularizer']['name']}. "
            "Pass an instance of it: load_model(path, regularizer=...)."
        )
    options = {name: description[name] for name in ("shared_weights", "data_term")}
    try:
        return UnrolledNetwork(regularizer or ResidualCNN(**sizes), description["n_unrolls"], **options)
    except ValueError as error:
        raise ValueError(f"{path} describes a model that cannot be built: {error}") from error


def _check_fit(model: UnrolledNetwork, tensors: dict[str, Tensor], path: str | Path) -> None:
    expected, found = (
        {name: (*value.shape, "real" if value.is_floating_point() else "other") for name, value in some.items()}
        for some in (model.state_dict(), tensors)
    )
    if expected != found:
        differing = sorted(set(expected.items()) ^ set(found.items()))[:3]
        raise ValueError(f"{path} does not fit the model it describes; among what differs: {differing}.")
