"""Which block fits a budget, and what each byte is for: told before anything is allocated."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import nn

from blockkit.blockwise.memory import Peak
from blockkit.blockwise.reach import reach
from blockkit.blockwise.together import round_up
from blockkit.checks import Shape3, check_count, check_number, check_shape3
from blockkit.group import Group
from blockkit.ledger import GIB
from blockkit.mbdl.footprint import PARTS, Case, blocks_of, predict_run, scratch_rate
from blockkit.mbdl.networks import n_inputs
from blockkit.mbdl.unrolled import UnrolledNetwork

LEAST_BLOCK = 16  # voxels on a side: below, a network computes little but halo


@dataclass(frozen=True)
class Plan:
    """The largest block that fits, or that of a model, and what a run with it takes.

    Attributes
    ----------
    block_shape
        ``(z, y, x)``, for :class:`~blockkit.mbdl.unrolled.UnrolledNetwork`; the whole image for a model without blocks.
    n_blocks
        Blocks in each unroll.
    n_bytes
        Peak of one training step, or of one reconstruction: everything that is alive then. On several devices, that of
        the one with the most coils and windows.
    parts
        ``n_bytes`` by what they are for; the keys are those of ``PARTS``.
    work
        The regularizer's work, on all devices together, over that of naive backprop (training) or of the whole volume
        (reconstruction): halo and recomputation.
    budget_gib
        What it had to fit into, on each device, GiB = 2^30 bytes.
    n_devices
        Devices that share the volume.
    """

    block_shape: Shape3
    n_blocks: int
    n_bytes: int
    parts: dict[str, int]
    work: float
    budget_gib: float
    n_devices: int = 1

    def __str__(self) -> str:
        """Return a table."""
        rows = [f"{_gib(n):>10} GiB  {PARTS.get(name, name)}" for name, n in self.parts.items()]
        total = f"{_gib(self.n_bytes):>10} GiB  of {self.budget_gib:g}"
        block = " x ".join(map(str, self.block_shape))
        head = f"blocks of {block} voxels, {self.n_blocks} an unroll, {self.work:.2f} x the regularizer's work"
        if self.n_devices > 1:
            head = f"on each of {self.n_devices} devices: {head} in all"
        return "\n".join([head, *rows, total])


def plan(
    image_shape: Sequence[int],
    *,
    n_coils: int,
    n_samples: int,
    network: nn.Module,
    budget_gib: float,
    n_unrolls: int | None = None,
    training: bool = True,
    offload: str | None = None,
    interpolated_maps: bool = False,
    coils_at_once: int = 1,
    off_resonance: bool = False,
    calibrate: bool = False,
    n_devices: int = 1,
) -> Plan:
    """Find the largest block with which a run fits into a budget, and say what the bytes are for.

    A whole model is taken as it is: nothing is sought, and the plan says what a run of it takes.

    Counted is everything alive at the peak: the scan, the operator, the model with gradients and the state of
    :func:`~blockkit.mbdl.training.fit`'s optimizer, and all that the step takes. It comes from a trace of the very
    step, in the precision of the weights (inside autocast: in that). Not counted: Python and its libraries, the reading
    of files, and the preparation of the scan (density compensation, bound of L); and, unless ``calibrate``, scratch
    that kernels take for themselves: then the plan is the same on every machine.

    Parameters
    ----------
    image_shape
        ``(z, y, x)``.
    n_coils, n_samples
        Coils in all, k-space samples of a coil.
    network
        Regularizer, shared by all unrolls: takes and gives ``(window, 2, z, y, x)``. Or a whole
        :class:`~blockkit.mbdl.unrolled.UnrolledNetwork`, with its own unrolls, block, recomputation and offload.
    budget_gib
        GiB (2^30 bytes) that the run may take, on each device.
    n_unrolls, offload
        As in :class:`~blockkit.mbdl.unrolled.UnrolledNetwork`; not for a whole model, which has them.
    training
        True: a training step. False: a reconstruction.
    interpolated_maps
        Whether the maps are :class:`~blockkit.physics.maps.InterpolatedMaps`, one value every 8 voxels.
    coils_at_once
        As in :class:`~blockkit.physics.sense.Encoding`.
    off_resonance
        Whether the operator is off resonance (:meth:`~blockkit.physics.sense.Encoding.off_resonant`).
    calibrate
        Run one batch of small windows here, and count the scratch that it takes, scaled to the windows.
    n_devices
        Devices over which the volume is spread, one process each (:meth:`~blockkit.data.scan.Scan.spread`): coils and
        windows are dealt out, and volumes, trajectory and weights whole on each. Sums over the devices are made in
        place, so they count nothing, except for up to 2 MiB that gloo takes for itself, and what NCCL does.

    Returns
    -------
    Plan
        ``print`` it for a table.

    Raises
    ------
    ValueError
        If no block fits, or the model does not: the message says what is missing, and which option would save how
        much. If the network cannot be run in exact blocks, or an argument does not fit.

    Examples
    --------
    >>> sizes = {"n_coils": 8, "n_samples": 100_000, "n_unrolls": 2}
    >>> bk.plan((32, 24, 32), network=bk.ResidualCNN(8, 2), budget_gib=1, training=False, **sizes).block_shape
    (32, 24, 32)
    """
    shape, budget = check_shape3(image_shape), check_number(budget_gib, "budget_gib") * GIB
    coils, samples = check_count(n_coils, "n_coils"), check_count(n_samples, "n_samples")
    group = Group(0, check_count(n_devices, "n_devices"))
    coils = -(-coils // group.size)
    model = _model_of(network, n_unrolls, offload)
    regularizer, weights = model.regularizers[0], [*model.regularizers.parameters()]
    rate = scratch_rate(regularizer, model.step_size.device, training=training) if calibrate else 0.0
    double = any(weight.dtype in (torch.float64, torch.complex128) for weight in weights)
    dtype, at_once = torch.complex128 if double else torch.complex64, check_count(coils_at_once, "coils_at_once")
    case = Case(shape, coils, samples, training, interpolated_maps, min(at_once, coils), dtype=dtype, scratch_rate=rate)
    case = replace(case, off_resonance=off_resonance, group=group)
    if model is not network:
        return plan_run(model, case, budget)
    return _report(_checked(predict_run(model, case), model, budget, case, sought=False), model, case, budget)


def plan_run(model: UnrolledNetwork, case: Case, budget: float) -> Plan:
    """Find the block for a model as :func:`plan` does for a regularizer; its own block does not count.

    Raises
    ------
    ValueError
        As :func:`plan`.
    """
    block, peak = largest_block(model, case, budget)
    found = _in_blocks(model, block)
    return _report(_checked(peak, found, budget, case, sought=True), found, case, budget)


def _checked(peak: Peak, model: UnrolledNetwork, budget: float, case: Case, *, sought: bool) -> Peak:
    """Return what a run takes if it fits, or raise."""
    if peak.bytes > budget:
        raise ValueError(_what_is_missing(peak, model, budget, case, sought=sought))
    return peak


def _model_of(network: nn.Module, n_unrolls: int | None, offload: str | None) -> UnrolledNetwork:
    """Return the model to plan for: ``network`` itself where it is one."""
    if not isinstance(network, UnrolledNetwork):
        if n_unrolls is None:
            raise ValueError(
                "n_unrolls is None, expected a whole number: network is a regularizer, and no whole model."
            )
        return UnrolledNetwork(network, n_unrolls, offload=offload)
    for name, value in (("n_unrolls", n_unrolls), ("offload", offload)):
        if value is not None:
            raise ValueError(
                f"{name} is {value!r}, but network is a whole model, whose {name} is {getattr(network, name)!r}: leave "
                f"{name} out, or pass the regularizer alone."
            )
    return network


def largest_block(model: UnrolledNetwork, case: Case, budget: float) -> tuple[Shape3, Peak]:
    """Return the largest block with which a run takes at most ``budget`` bytes, or the smallest, and what it takes.

    The model is one with ``recompute``, if it is to be trained.
    """
    network = model.regularizers[0]
    few = UnrolledNetwork(network, min(model.n_unrolls, 2), data_term=model.data_term, offload=model.offload)
    blocks = candidates(case.image_shape, _stride_of(model))
    found = _with_block(model, blocks[-1], case)
    more_unrolls = found.bytes - _with_block(few, blocks[-1], case).bytes
    too_large, fits = -1, len(blocks) - 1
    while fits - too_large > 1:
        middle = (fits + too_large) // 2
        if _with_block(few, blocks[middle], case).bytes + more_unrolls <= budget:
            fits = middle
        else:
            too_large = middle
    if fits < len(blocks) - 1:
        found = _with_block(model, blocks[fits], case)
    while found.bytes > budget and fits < len(blocks) - 1:  # the unrolls did not add up to the byte
        fits += 1
        found = _with_block(model, blocks[fits], case)
    return blocks[fits], found


def _stride_of(model: UnrolledNetwork) -> Shape3:
    network = model.regularizers[0]
    return reach(network, n_channels=n_inputs(network)).stride


def candidates(image_shape: Shape3, stride: Shape3) -> list[Shape3]:
    """Return blocks (z, y, x) from the whole image down: one more cut each time, across the longest side."""
    z, y, x = (round_up(n, s) for n, s in zip(image_shape, stride, strict=True))
    block, n_cuts = [z, y, x], [1, 1, 1]
    found = [(z, y, x)]
    while True:
        axis = max(range(3), key=lambda i: block[i] if block[i] > stride[i] else 0)
        if block[axis] <= max(LEAST_BLOCK, stride[axis]):
            return found
        n_cuts[axis] += 1
        size = round_up(-(-found[0][axis] // n_cuts[axis]), stride[axis])
        if size < block[axis]:
            block[axis] = size
            found.append((block[0], block[1], block[2]))


def _in_blocks(model: UnrolledNetwork, block: Shape3) -> UnrolledNetwork:
    model = copy.copy(model)
    model.block_shape = block
    return model


def _with_block(model: UnrolledNetwork, block: Shape3, case: Case) -> Peak:
    return predict_run(_in_blocks(model, block), case)


def _report(found: Peak, model: UnrolledNetwork, case: Case, budget: float) -> Plan:
    block = model.block_shape or case.image_shape
    blocks = blocks_of(model.regularizers[0], case.image_shape, block)
    whole = prod(side.stop for side in blocks[-1].place)
    computed = sum(prod(side.stop - side.start for side in cut.window) for cut in blocks) / whole
    again = case.training and model.recompute and model.block_shape is not None
    work = computed * 4 / 3 if again else computed
    return Plan(block, len(blocks), found.bytes, found.parts, work, budget / GIB, case.group.size)


def _what_is_missing(peak: Peak, model: UnrolledNetwork, budget: float, case: Case, *, sought: bool) -> str:
    """Say by how much a model misses the budget, what takes the bytes, and what would save how many."""
    parts = ", ".join(f"{name} {_gib(n)}" for name, n in peak.parts.items())
    savings = {}
    if not sought:
        in_blocks = copy.copy(model)
        in_blocks.block_shape, in_blocks.recompute = candidates(case.image_shape, _stride_of(model))[-1], True
        savings["the smallest block, recomputed in backward,"] = peak.bytes - predict_run(in_blocks, case).bytes
    if model.offload is None and case.training and model.recompute:
        other = copy.copy(model)
        other.offload = "disk"
        savings['offload="disk"'] = peak.bytes - predict_run(other, case).bytes
    if not case.interpolated_maps:
        savings["interpolated_maps=True"] = peak.bytes - predict_run(model, replace(case, interpolated_maps=True)).bytes
    if case.training:
        without = predict_run(model, replace(case, training=False)).bytes
        savings["training=False (reconstruction only)"] = peak.bytes - without
    taker = "even the smallest block" if sought else "the model"
    saved = "; ".join(f"{name} saves {_gib(n)} GiB" for name, n in savings.items() if n > 0)
    return (
        f"budget_gib is {budget / GIB:g}, and {taker} takes {_gib(peak.bytes)} GiB ({parts}): "
        f"{_gib(peak.bytes - budget)} GiB are missing. " + (f"What helps: {saved}." if saved else "")
    )


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / GIB:.3g}" if n_bytes < 100 * GIB else f"{n_bytes / GIB:.0f}"
