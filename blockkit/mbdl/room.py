"""Refuse to start what will not fit into the memory that is free, and find the block with which it would."""

import copy
import math
from math import prod

import torch

from blockkit.blockwise.reach import reach
from blockkit.blockwise.resident import free_bytes, resident
from blockkit.checks import Shape3, check_shape3
from blockkit.data.scan import Scan
from blockkit.ledger import GIB
from blockkit.mbdl.footprint import Case, predict_run, scratch_rate
from blockkit.mbdl.networks import n_inputs
from blockkit.mbdl.planner import candidates, largest_block
from blockkit.mbdl.ranks import n_sharing
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.physics.maps import InterpolatedMaps
from blockkit.physics.off_resonance import OffResonance
from blockkit.physics.sense import Encoding

TENSORS_A_CHANNEL = 16  # of 4 bytes, that naive backprop keeps at most for an output channel of a kernel, in a voxel
SHARE_TO_TAKE = 0.8  # of the free memory, by a block that is chosen here: beyond it a system may end the process
USUAL_BLOCK = (64, 64, 64)  # where it is not known how much is free
_part: list[int] = []  # of the CPU's memory that this process may hold in all, if others have theirs


class NoRoomError(MemoryError):
    """A run is predicted to take more memory than is free: nothing was taken yet."""


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
    NoRoomError
        With what is needed, what is free, and the block with which it would fit.
    """
    device = model.step_size.device
    free = _free_share(device)
    if free is None or _is_small(model, scan, free, training=training):
        return  # no need of a trace, which takes seconds
    case = _case(model, scan, training=training, share_held_out=share_held_out)
    loaded = _loaded(model, case)
    needed = predict_run(model, case).bytes - loaded
    if needed <= free:
        return
    what = "A training step" if training else "The reconstruction"
    raise NoRoomError(
        f"{what} by {blocks_in_words(model)} takes {needed / GIB:.3g} GiB beside scan and weights, and "
        f"{free / GIB:.3g} GiB are free on {device}. {_what_would_fit(model, case, free + loaded)}"
        f"To start all the same: {unless}."
    )


def count_on(n_bytes: int) -> None:
    """Judge from now on by so many bytes of the CPU's memory beyond what this process holds now: others have theirs."""
    held = resident()
    _part[:] = [] if held is None else [held + n_bytes]


def largest_fitting(
    model: UnrolledNetwork, scan: Scan | Encoding, share_held_out: float = 0.0, *, training: bool = True
) -> Shape3:
    """Return the largest block with which a run fits into :data:`SHARE_TO_TAKE` of what is free.

    If none does, the smallest. The model's own block does not count. Raises ValueError if its network cannot be run in
    exact blocks.
    """
    free = _free_share(model.step_size.device)
    whole = _candidates(model, _image_shape(scan))[0]
    if free is None:
        return USUAL_BLOCK
    if _is_small(model, scan, SHARE_TO_TAKE * free, training=training):
        return whole
    case = _case(model, scan, training=training, share_held_out=share_held_out)
    return largest_block(model, case, SHARE_TO_TAKE * free + _loaded(model, case))[0]


def smaller_block(model: UnrolledNetwork, image_shape: Shape3) -> Shape3 | None:
    """Return the largest block with at most half the voxels of the model's, or None if there is none."""
    now = image_shape if model.block_shape is None else map(min, model.block_shape, image_shape)
    most = prod(now) / 2
    return next((block for block in _candidates(model, image_shape) if prod(block) <= most), None)


def say_what_would_fit(
    model: UnrolledNetwork, scan: Scan | Encoding, share_held_out: float = 0.0, *, training: bool = True
) -> str:
    """Return a sentence with the block to take after a run ran out of memory; empty if nothing is known."""
    free = _free_share(model.step_size.device)
    if free is None:
        return ""
    case = _case(model, scan, training=training, share_held_out=share_held_out)
    return _what_would_fit(model, case, free + _loaded(model, case), failed=True)


def blocks_in_words(model: UnrolledNetwork) -> str:
    """Return what a message calls the model's blocks."""
    return "whole volumes" if model.block_shape is None else f"blocks of {model.block_shape}"


def _free_share(device: torch.device) -> int | None:
    """Return the bytes that are free for this process, of those that share a device."""
    free = free_bytes(device)
    if free is None:
        return None
    if device.type == "cpu" and _part:
        free = max(0, min(free, _part[0] - (resident() or 0)))
    return free // n_sharing(device)


def _candidates(model: UnrolledNetwork, image_shape: Shape3) -> list[Shape3]:
    network = model.regularizers[0]
    return candidates(image_shape, reach(network, n_channels=n_inputs(network)).stride)


def _image_shape(scan: Scan | Encoding) -> Shape3:
    return check_shape3(scan.in_shape) if isinstance(scan, Encoding) else scan.image_shape


def _is_small(model: UnrolledNetwork, scan: Scan | Encoding, free: float, *, training: bool) -> bool:
    """Tell by a bound from above that a run fits."""
    bounded = model.recompute or model.block_shape is None or not training  # else each halo is kept too
    return bounded and prod(_image_shape(scan)) * _most_bytes_a_voxel(model) < free


def _case(model: UnrolledNetwork, scan: Scan | Encoding, *, training: bool, share_held_out: float) -> Case:
    rate = _scratch_rate(model, model.step_size.device, training=training)
    if isinstance(scan, Encoding):
        on_resonance = not isinstance(scan.fourier, OffResonance)
        n_coils, n_samples = scan.out_shape
        return Case(
            _image_shape(scan),
            n_coils,
            n_samples,
            training,
            interpolated_maps=isinstance(scan.maps, InterpolatedMaps),
            coils_at_once=scan.coils_at_once,
            normal=scan.normal_kind if on_resonance else "auto",
            off_resonance=not on_resonance,
            group=scan.group,
            scratch_rate=rate,
        )
    n_samples = scan.kspace.shape[1]
    return Case(
        scan.image_shape,
        scan.n_coils,
        n_samples,
        training,
        n_held_out=math.ceil(share_held_out * n_samples),
        group=scan.group,
        off_resonance=scan.field_map is not None,
        scratch_rate=rate,
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
    maps = 0 if case.interpolated_maps else 8 * case.n_coils * prod(case.image_shape)
    kspace = (8 * case.n_coils + 12) * case.n_samples
    return maps + kspace + sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def _what_would_fit(model: UnrolledNetwork, case: Case, budget: float, *, failed: bool = False) -> str:
    """Say which block would fit; ``failed``: with at most half the voxels of the model's, which did not."""
    keeps = case.training and not model.recompute
    model, before = copy.copy(model), model
    model.recompute = model.recompute or keeps
    try:
        block, peak = largest_block(model, case, budget)
        below = smaller_block(before, case.image_shape) if failed and not keeps else block
    except ValueError:  # a network that cannot be run in exact blocks
        return ""
    if below is not None and prod(below) < prod(block):
        model.block_shape = block = below
        peak = predict_run(model, case)
    if peak.bytes > budget or below is None:
        return "No block is small enough. " + ('Try offload="disk". ' if case.training and not model.offload else "")
    needed = (peak.bytes - _loaded(model, case)) / GIB
    first = "model.recompute = True and " if keeps else ""
    return f"With {first}model.block_shape = {block} it takes {needed:.3g} GiB. "
