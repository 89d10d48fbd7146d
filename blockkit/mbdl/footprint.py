"""What a training step or a reconstruction takes, from a trace: everything from nothing, by part."""

import copy
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from blockkit.blockwise.blocks import Block, cut_blocks, windows_at_once
from blockkit.blockwise.memory import Peak, measure_peak, predict
from blockkit.blockwise.reach import reach
from blockkit.blockwise.resident import give_back_heap
from blockkit.blockwise.together import round_up
from blockkit.checks import Shape3
from blockkit.group import ALONE, Group
from blockkit.ledger import part
from blockkit.mbdl.data_consistency import DataTerm
from blockkit.mbdl.held_out import HeldOut
from blockkit.mbdl.loss import training_loss
from blockkit.mbdl.networks import n_inputs
from blockkit.mbdl.optimizer import KernelOptimizer
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.physics.fourier import Toeplitz
from blockkit.physics.maps import InterpolatedMaps
from blockkit.physics.sense import Encoding
from blockkit.physics.toeplitz import padded_shape

MAP_SPACING = 8  # voxels between the values of interpolated maps
CALIBRATED = (40, 24, 16)  # voxels on a side of the windows that are run
MOST_CALIBRATING = 2**28  # bytes
PLAN_BYTES = 20  # that finufft's plan keeps for a sample between calls
PARTS = {
    "weights": "weights, gradients, optimizer state",
    "images": "images of the unrolls, right-hand side, reference",
    "windows": "one batch of windows with its activations",
    "maps": "coil maps",
    "kspace": "k-space, trajectory, density compensation",
    "nufft": "NUFFT workspace, Toeplitz kernel, the coil under way",
    "scratch": "what the convolutions take for themselves, calibrated",
}


@dataclass(frozen=True)
class Case:
    """What a step is to be traced on: sizes, and where things are kept."""

    image_shape: Shape3
    n_coils: int
    n_samples: int
    training: bool = True
    interpolated_maps: bool = False
    coils_at_once: int = 1
    tolerance: float = 1e-4
    normal: str = "auto"
    dtype: torch.dtype = torch.complex64
    n_held_out: int = 0
    """Samples of the ``n_samples`` that only the loss sees; 0: the loss compares with a reference."""
    off_resonance: bool = False
    """Whether the operator is off resonance: then ``normal`` is that of ``"nufft"``."""
    group: Group = ALONE
    """The processes that share the scan: ``n_coils`` are those of this one, and the windows are dealt out."""
    scratch_rate: float = 0.0
    """Bytes a voxel of the windows that kernels take for themselves, from :func:`scratch_rate`."""


def predict_run(model: UnrolledNetwork, case: Case) -> Peak:
    """Return the peak of a training step or a reconstruction and its parts, from a trace: everything, from nothing.

    The scratch of ``case.scratch_rate`` is added to the peak wherever that is, also if no window runs there.
    """
    n_weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    peak = predict(run_from_nothing, model, case)
    parts = {**peak.parts, "weights": peak.parts.get("weights", 0) + n_weights}
    parts["scratch"] = int(case.scratch_rate * _voxels_at_once(model, case))
    peak.bytes += n_weights + parts["scratch"]
    peak.parts = {name: parts[name] for name in (*PARTS, *parts) if parts.get(name)}
    return peak


def blocks_of(network: nn.Module, image_shape: Shape3, block_shape: Shape3) -> list[Block]:
    """Return the blocks into which an unroll cuts the image, padded to the network's stride."""
    seen = reach(network, n_channels=n_inputs(network))
    z, y, x = (round_up(n, s) for n, s in zip(image_shape, seen.stride, strict=True))
    return cut_blocks((z, y, x), block_shape, seen.halo, seen.stride)


def _voxels_at_once(model: UnrolledNetwork, case: Case) -> int:
    """Return the voxels of the windows that run together."""
    if model.block_shape is None:
        return prod(case.image_shape)
    blocks = blocks_of(model.regularizers[0], case.image_shape, model.block_shape)
    n_voxels: int = prod(side.stop - side.start for side in blocks[0].window)
    return n_voxels * min(len(blocks), windows_at_once(model.step_size.device.type))


def scratch_rate(network: nn.Module, device: torch.device, *, training: bool) -> float:
    """Return the bytes a voxel that kernels take for themselves: measured by running one batch of small windows.

    It is what the process grows by (on CUDA, what the allocator gives out), less the tensors that are counted. The
    windows are as large as :data:`MOST_CALIBRATING` bytes allow, which a trace tells beforehand; 0 if none are. What
    runs is a copy of ``network``.
    """
    network, stride = copy.deepcopy(network), _stride(network)
    kinds = [p.dtype.to_real() for p in network.parameters() if p.is_floating_point() or p.is_complex()]
    for side in CALIBRATED:
        shape = (windows_at_once(device.type), n_inputs(network), *(round_up(side, s) for s in stride))
        windows = torch.zeros(shape, dtype=kinds[0] if kinds else torch.float32, device=device, requires_grad=training)
        if predict(_run_windows, network, windows).bytes <= MOST_CALIBRATING:
            return _beyond_tensors(network, windows) / (prod(shape) / shape[1])
    return 0.0


def _stride(network: nn.Module) -> tuple[int, int, int]:
    """Return the network's stride, or 1 if it has none since it cannot run in blocks."""
    try:
        return reach(network, n_channels=n_inputs(network)).stride
    except ValueError:
        return 1, 1, 1


def _run_windows(network: nn.Module, windows: torch.Tensor) -> None:
    with torch.set_grad_enabled(windows.requires_grad):
        y = network(windows)
        if windows.requires_grad:
            y.sum().backward()


def _beyond_tensors(network: nn.Module, windows: torch.Tensor) -> int:
    """Run twice, and return the growth of the second time that no tensor explains: the first time, libraries load."""
    devices, beyond = [windows.device] if windows.device.type == "cuda" else [], 0
    with torch.random.fork_rng(devices):
        for _ in range(2):
            network.zero_grad(set_to_none=True)
            windows.grad = None
            give_back_heap()
            with measure_peak() as peak:
                _run_windows(network, windows)
            grown = peak.cuda_bytes if devices else peak.resident_bytes
            beyond = max(0, (grown or 0) - peak.bytes)
    return beyond


def run_from_nothing(model: UnrolledNetwork, case: Case) -> None:
    """Make a scan of zeros and go through one step: on fake tensors, nothing is computed."""
    shape, few = case.image_shape, tuple(max(3, -(-n // MAP_SPACING)) for n in case.image_shape)
    with part("maps"):
        values = torch.zeros(case.n_coils, *(few if case.interpolated_maps else shape), dtype=case.dtype)
        maps = InterpolatedMaps(values, shape) if case.interpolated_maps else values
    with part("kspace"):
        _kspace = torch.zeros(case.n_coils, case.n_samples, dtype=case.dtype)  # alive, as a scan's is
        trajectory, weights = torch.zeros(case.n_samples, 3), torch.zeros(case.n_samples)
    n_held_out = case.n_held_out if case.training else 0
    with part("nufft"):
        how = {"normal": case.normal, "tolerance": case.tolerance, "coils_at_once": case.coils_at_once}
        A = Encoding(trajectory[n_held_out:], maps, weights=weights[n_held_out:], **how)  # type: ignore[arg-type]
        if case.off_resonance:
            A = A.off_resonant(torch.zeros(shape), torch.zeros(A.out_shape[1]))
        A = A.spread_over(case.group)
        if A.normal_kind == "toeplitz":
            vars(A)["toeplitz"] = Toeplitz(torch.zeros(padded_shape(shape)), shape)
        else:
            _plan = _plan_of(A)
        if n_held_out:
            other = Encoding(trajectory[:n_held_out], maps, weights=weights[:n_held_out], tolerance=case.tolerance)
            if case.off_resonance:
                other = other.off_resonant(torch.zeros(shape), torch.zeros(n_held_out))
            other = other.spread_over(case.group)
            _other_plan = _plan_of(other)
    with part("images"):
        b, start = (torch.zeros(shape, dtype=case.dtype) for _ in range(2))
        one = torch.ones((), dtype=case.dtype.to_real())
        data = DataTerm(lambda x: A.normal(x).div_(1.0), b, start, one, case.group)
        if case.training:
            _train(model, data, _held_out(other, case) if n_held_out else torch.zeros(shape, dtype=case.dtype))
        else:
            with torch.no_grad():
                model.unroll(data)


def _plan_of(A: Encoding) -> torch.Tensor:
    """Stand for what the NUFFT keeps between calls."""
    return torch.zeros(PLAN_BYTES, A.out_shape[1], dtype=torch.uint8)


def _held_out(A: Encoding, case: Case) -> HeldOut:
    with part("kspace"):
        return HeldOut(A, torch.zeros(A.out_shape, dtype=case.dtype))


def _train(model: UnrolledNetwork, data: DataTerm, target: torch.Tensor | HeldOut) -> None:
    """Take the second step of a training run: the optimizer has its state from the first."""
    with part("weights"):
        optimizer = KernelOptimizer(model.parameters(), 1e-3, lambda _: 1.0)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        optimizer.step()
    model.zero_grad(set_to_none=True)
    training_loss(model, data, target)[0].backward()  # type: ignore[no-untyped-call]
    with part("weights"):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
