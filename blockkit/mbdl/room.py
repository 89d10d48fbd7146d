"""Refuse to start what will not fit into the memory that is free."""

import copy
import math
from math import prod

import torch

from blockkit.blockwise.resident import free_bytes
from blockkit.data.scan import Scan
from blockkit.ledger import GIB
from blockkit.mbdl.footprint import Case, predict_run, scratch_rate
from blockkit.mbdl.planner import largest_block
from blockkit.mbdl.unrolled import UnrolledNetwork

TENSORS_A_CHANNEL = 16  # of 4 bytes, that naive backprop keeps at most for an output channel of a kernel, in a voxel


def check_room(model: UnrolledNetwork, scan: Scan, *, training: bool, unless: str, share_held_out: float = 0.0) -> None:
    """Raise if a training step or a reconstruction takes more memory than is free on the model's device.

    What it takes comes from a trace, without what is loaded already, the scan and the weights, and with the scratch of
    kernels, measured on a batch of small windows.

    Parameters
    ----------
    model, scan
        What is to run, on what.
    training
        True: a training step. False: a reconstruction.
    unless
        What to type to start all the same; part of the message.
    share_held_out
        The share of the samples that only the loss sees, in self-supervised training.

    Raises
    ------
    MemoryError
        With what is needed, what is free, and the block with which it would fit.
    """
    device = model.step_size.device
    free = free_bytes(device)
    bounded = model.recompute or model.block_shape is None or not training  # else each halo is kept too
    if free is None or (bounded and prod(scan.image_shape) * _most_bytes_a_voxel(model) < free):
        return  # no need of a trace, which takes seconds
    rate = _scratch_rate(model, device, training=training)
    n_samples = scan.kspace.shape[1]
    n_held_out = math.ceil(share_held_out * n_samples)
    case = Case(
        scan.image_shape,
        scan.n_coils,
        n_samples,
        training,
        n_held_out=n_held_out,
        off_resonance=scan.field_map is not None,
        scratch_rate=rate,
    )
    loaded = _loaded(model, case)
    needed = predict_run(model, case).bytes - loaded
    if needed <= free:
        return
    what = "A training step" if training else "The reconstruction"
    blocks = "whole volumes" if model.block_shape is None else f"blocks of {model.block_shape}"
    raise MemoryError(
        f"{what} by {blocks} takes {needed / GIB:.3g} GiB beside scan and weights, and {free / GIB:.3g} GiB are free "
        f"on {device}. {_what_would_fit(model, case, free + loaded)}To start all the same: {unless}."
    )


def _scratch_rate(model: UnrolledNetwork, device: torch.device, *, training: bool) -> float:
    try:
        return scratch_rate(model.regularizers[0], device, training=training)
    except (RuntimeError, TypeError, ValueError):  # cannot be copied, or wants other volumes: its own run will tell
        return 0.0


def _most_bytes_a_voxel(model: UnrolledNetwork) -> int:
    """Bound the bytes of naive backprop from above, for plain networks by a wide margin."""
    n_channels = sum(p.shape[0] for p in model.regularizers[0].parameters() if p.ndim > 1)
    return (n_channels + 64) * model.n_unrolls * 4 * TENSORS_A_CHANNEL


def _loaded(model: UnrolledNetwork, case: Case) -> int:
    """Return the bytes of what is in memory already: maps, k-space, trajectory, weights of the model."""
    maps, kspace = 8 * case.n_coils * prod(case.image_shape), (8 * case.n_coils + 12) * case.n_samples
    return maps + kspace + sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _what_would_fit(model: UnrolledNetwork, case: Case, budget: float) -> str:
    keeps = case.training and not model.recompute
    if keeps:
        model = copy.copy(model)
        model.recompute = True
    try:
        block, peak = largest_block(model, case, budget)
    except ValueError:  # a network that cannot be run in exact blocks
        return ""
    if peak.bytes > budget:
        return "No block is small enough. " + ('Try offload="disk". ' if case.training and not model.offload else "")
    needed = (peak.bytes - _loaded(model, case)) / GIB
    first = "model.recompute = True and " if keeps else ""
    return f"With {first}model.block_shape = {block} it takes {needed:.3g} GiB. "
