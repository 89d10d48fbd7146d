"""A setting of the memory explorer: what it takes by the closed form, by the trace, and in Python."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from torch import Tensor, nn

from blockkit.blockwise.memory import Peak
from blockkit.checks import Shape3
from blockkit.group import Group
from blockkit.ledger import GIB
from blockkit.mbdl.closed_form import step_bytes, work_factor
from blockkit.mbdl.footprint import Case, predict_run
from blockkit.mbdl.network_bytes import NetworkBytes, computing_in, network_bytes, residual_cnn_bytes
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.planner import candidates
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.show.memory_plots import gib


@dataclass(frozen=True)
class Setting:
    """What the explorer's controls say.

    Attributes
    ----------
    case
        Sizes of the scan and of the step; its dtype is that of ``precision``.
    n_unrolls, block_shape, recompute, offload
        As in :class:`~blockkit.mbdl.unrolled.UnrolledNetwork`.
    precision
        ``"single"``, ``"half"`` or ``"double"``.
    budget_gib
        What it is to fit into, GiB = 2^30 bytes.
    network
        The user's own regularizer; None for ``ResidualCNN(n_channels, n_layers)``.
    """

    case: Case
    n_unrolls: int = 6
    block_shape: Shape3 = (100, 100, 100)
    recompute: bool = True
    offload: str | None = None
    precision: str = "single"
    budget_gib: float = 24.0
    network: nn.Module | None = None
    n_channels: int = 32
    n_layers: int = 5

    @property
    def budget(self) -> float:
        """The budget in bytes."""
        return self.budget_gib * GIB

    def network_bytes(self) -> NetworkBytes:
        """Return what the regularizer takes; an own network is traced once for each precision."""
        if self.network is None:
            return residual_cnn_bytes(self.n_channels, self.n_layers, self.precision)
        return _of_own(self.network, self.precision)

    def blocks(self) -> list[Shape3]:
        """Return the blocks to choose from, the whole image first."""
        return candidates(self.case.image_shape, self.network_bytes().stride)

    def blockwise(self, block_shape: Shape3 | None = None) -> Peak:
        """Return what a step takes in blocks, by the closed form."""
        options = {"recompute": self.recompute, "offload": self.offload}
        block = block_shape or self.block_shape
        return step_bytes(self.network_bytes(), self.case, self.n_unrolls, block_shape=block, **options)  # type: ignore[arg-type]

    def naive(self) -> Peak:
        """Return what the same step takes by naive backprop, all activations in memory."""
        return step_bytes(self.network_bytes(), self.case, self.n_unrolls)

    def work(self, block_shape: Shape3 | None = None) -> float:
        """Return the regularizer's work over that of naive backprop, or of the whole volume in a reconstruction."""
        block = block_shape or self.block_shape
        return work_factor(self.network_bytes(), self.case, block, recompute=self.recompute)

    def best_block(self) -> Shape3 | None:
        """Return the largest block that fits into the budget by the closed form, or None."""
        return next((block for block in self.blocks() if self.blockwise(block).bytes <= self.budget), None)

    def model(self, *, naive: bool = False) -> UnrolledNetwork:
        """Return the model, untrained."""
        network = ResidualCNN(self.n_channels, self.n_layers) if self.network is None else copy.deepcopy(self.network)
        block = None if naive else self.block_shape
        offload = None if naive else self.offload
        model = UnrolledNetwork(
            network, self.n_unrolls, block_shape=block, offload=offload, recompute=self.recompute or naive
        )
        return model.double() if self.precision == "double" else model

    def trace(self, *, naive: bool = False, tick: Callable[[int], None] | None = None) -> Peak:
        """Trace the very step, to the byte; ``tick`` is told the number of each unroll as forward enters it."""
        model = self.model(naive=naive)
        if tick is not None:
            _tell_unrolls(model, tick)
        with computing_in(self.precision):
            return predict_run(model, self.case)

    def code(self) -> str:
        """Return three lines of Python: they make this model and ask :func:`~blockkit.mbdl.planner.plan` about it.

        An own network is called ``network`` there.
        """
        case, half, double = self.case, self.precision == "half", self.precision == "double"
        options = [f"block_shape={self.block_shape}"]
        options += [f"offload={self.offload!r}"] if self.offload else []
        options += [] if self.recompute else ["recompute=False"]
        network = "network" if self.network is not None else f"bk.ResidualCNN({self.n_channels}, {self.n_layers})"
        asked = [f"{case.image_shape}, n_coils={case.n_coils}, n_samples={case.n_samples:_}"]
        asked += [f"network=model, budget_gib={self.budget_gib:.6g}"]
        asked += [] if case.training else ["training=False"]
        asked += ["interpolated_maps=True"] if case.interpolated_maps else []
        asked += [f"coils_at_once={case.coils_at_once}"] if case.coils_at_once > 1 else []
        context = 'with torch.autocast("cpu", dtype=torch.bfloat16): ' if half else ""
        return "\n".join(
            [
                f"{'import torch; ' if half else ''}import blockkit as bk",
                f"model = bk.UnrolledNetwork({network}, {self.n_unrolls}, {', '.join(options)}){'.double()' * double}",
                f"{context}plan = bk.plan({', '.join(asked)})",
            ]
        )

    def describe(self, best: Shape3 | None) -> str:
        """Say in words what the pictures show; ``best`` is :meth:`best_block`."""
        naive, mine = self.naive().bytes, self.blockwise().bytes
        fits = "fits into" if mine <= self.budget else "does not fit into"
        what = "Naive backprop" if self.case.training else "The whole volume at once"
        n_blocks = len_blocks(self)
        blocks = f"{n_blocks} block{'s' if n_blocks > 1 else ''} of {by(self.block_shape)} voxels"
        said = (
            f"{what} takes {gib(naive)} GiB. In {blocks} it is {gib(mine)} GiB, which {fits} {gib(self.budget)} GiB, "
            f"for {100 * (self.work() - 1):.0f} % more of the regularizer's work. "
        )
        if best is None:
            least = self.blockwise(self.blocks()[-1]).bytes
            return said + f"No block fits: the smallest takes {gib(least)} GiB."
        return said + f"The largest block that fits is {by(best)}."


def len_blocks(setting: Setting) -> int:
    """Return the number of blocks in an unroll."""
    stride = setting.network_bytes().stride
    padded = (-(-n // s) * s for n, s in zip(setting.case.image_shape, stride, strict=True))
    return prod(-(-n // b) for n, b in zip(padded, setting.block_shape, strict=True))


def by(shape: Shape3) -> str:
    """Return a shape as in 100 x 100 x 100."""
    return " x ".join(map(str, shape))


def nearest(blocks: list[Shape3], n_voxels: int) -> Shape3:
    """Return the block whose volume comes closest."""
    return min(blocks, key=lambda block: abs(prod(block) ** (1 / 3) - n_voxels ** (1 / 3)))


@lru_cache(maxsize=8)
def _of_own(network: nn.Module, precision: str) -> NetworkBytes:
    return network_bytes(network, precision)


def _tell_unrolls(model: UnrolledNetwork, tick: Callable[[int], None]) -> None:
    """Let ``tick`` know each unroll that forward enters."""
    regularize = model.regularize

    def told(z: Tensor, k: int, group: Group) -> Tensor:
        tick(k)
        return regularize(z, k, group)

    vars(model)["regularize"] = told
