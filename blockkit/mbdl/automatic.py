"""Reconstruction in the largest blocks that fit, and in smaller ones when memory runs out all the same."""

import copy
import warnings
from collections.abc import Callable
from math import prod

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from blockkit.checks import check_shape3
from blockkit.data.scan import Scan
from blockkit.mbdl.data_consistency import DataTerm, prepare
from blockkit.mbdl.room import blocks_in_words, largest_fitting, say_what_would_fit, smaller_block
from blockkit.mbdl.shortage import with_room
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.physics.sense import Encoding

Unroll = Callable[[UnrolledNetwork, DataTerm], Tensor]


def settled(model: UnrolledNetwork, scan: Scan | Encoding, *, training: bool = False) -> UnrolledNetwork:
    """Return a model with the same weights and, in place of ``"auto"``, the largest block that fits now.

    Raises ValueError if its network cannot be run in exact blocks, or if it is to be trained without recomputation.
    """
    if training and not model.recompute:
        raise ValueError('model.block_shape is "auto" and model.recompute False, which keeps what blocks are to save.')
    model, before = copy.copy(model), model
    with _disable_current_modes():  # a prediction that runs this is not to count the choice
        found = largest_fitting(before, scan, training=training)
    model.block_shape = min(scan.group.gather("blocks", found), key=prod)  # what fits on all that share the scan
    return model


def in_fitting_blocks(
    model: UnrolledNetwork,
    A: Encoding,
    kspace: Tensor,
    *,
    unroll: Unroll = UnrolledNetwork.unroll,
    automatic: bool = True,
) -> Tensor:
    """Reconstruct; when memory runs out, take smaller blocks, or say which would fit.

    Parameters
    ----------
    model
        Its block is where to begin; ``"auto"`` is settled first. The model itself stays as it is.
    A, kspace
        As in :class:`UnrolledNetwork`.
    unroll
        What runs the unrolls.
    automatic
        Whether smaller blocks are taken, with a warning. If not, the error says which would fit.

    Raises
    ------
    MemoryError
        If memory ran out, and there is no smaller block or none is to be taken.
    """
    training = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in model.parameters())
    model = settled(model, A, training=training) if model.block_shape == "auto" else copy.copy(model)
    data = prepare(A, kspace, model.data_term)

    def make_room(said: str, foreseen: bool) -> None:
        where = f"Out of memory by {blocks_in_words(model)}"
        block = smaller_block(model, check_shape3(A.in_shape)) if automatic else None
        if block is None:
            other = (
                "" if automatic else 'Or write model.block_shape = "auto", and smaller blocks are taken by themselves.'
            )
            raise MemoryError(f"{where} ({said}). {say_what_would_fit(model, A, training=training)}{other}".rstrip())
        warnings.warn(f"{where}: going on by blocks of {block}.", RuntimeWarning, stacklevel=5)
        model.block_shape = block

    return with_room(lambda: unroll(model, data), make_room)
