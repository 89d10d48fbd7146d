"""Ways to fit a training step into memory, on the same step: peak, time, and the error of the gradients.

Naive backprop; PyTorch's checkpoint around each unroll; slicing, checkpointing and assigning block by block; blockkit.
Against block size, unrolls and coils. Then the time of the regularizer alone at 128^3, block-wise over naive, beside
the work that it must do; and what half precision costs the shipped model. Prints tables as they come and writes them to
benchmarks/results/methods.md. Takes about ten minutes.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from common import ROOT, machine, seconds
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import blockkit as bk
from blockkit.blockwise.blocks import cut_blocks
from blockkit.group import ALONE, Group
from blockkit.mbdl.data_consistency import DataTerm, prepare
from blockkit.mbdl.loss import training_loss

SHAPE, BLOCK, N_COILS, N_UNROLLS, CHANNELS = (64, 56, 64), 32, 4, 2, 16
SWEEPS = {"block": (16, 32, 48), "unrolls": (1, 4), "coils": (1, 12)}
TRAINED = 128, 64  # voxels on a side of the volume and of the block of the second table


class CheckpointPerUnroll(bk.UnrolledNetwork):
    """PyTorch's checkpoint around each unroll."""

    def iterates(self, data: DataTerm) -> Iterator[Tensor]:
        """Give the images after each unroll."""
        x = data.start.clone().requires_grad_()
        for k in range(self.n_unrolls):
            x = checkpoint(lambda x, k=k: self.regularize(self.data_consistency(x, k, data), k), x, use_reentrant=False)
            yield x


class SliceCheckpointAssign(bk.UnrolledNetwork):
    """The loop that comes to mind first, with a halo that is large enough."""

    side = BLOCK

    def regularize(self, z: Tensor, k: int, group: Group = ALONE) -> Tensor:
        """Run the network block by block."""
        network = self.regularizers[0]
        x = torch.view_as_real(z).movedim(-1, 0).contiguous()
        y = torch.zeros_like(x)
        halo = bk.reach(network).halo
        for block in cut_blocks(tuple(z.shape), (self.side,) * 3, halo):
            y[:, *block.place] = checkpoint(network, x[None][:, :, *block.window], use_reentrant=False)[0][
                :, *block.kept
            ]
        return torch.view_as_complex(y.movedim(0, -1).contiguous())


def sliced(network: torch.nn.Module, side: int, n_unrolls: int) -> bk.UnrolledNetwork:
    """Make the model of :class:`SliceCheckpointAssign`."""
    model = SliceCheckpointAssign(network, n_unrolls)
    model.side = side
    return model


WAYS: dict[str, Callable[[torch.nn.Module, int, int], bk.UnrolledNetwork]] = {
    "naive": lambda network, _, n: bk.UnrolledNetwork(network, n),
    "checkpoint per unroll": lambda network, _, n: CheckpointPerUnroll(network, n),
    "slice, checkpoint, assign": sliced,
    "blockkit": lambda network, side, n: bk.UnrolledNetwork(network, n, block_shape=(side,) * 3),
    'blockkit, offload="disk"': lambda network, side, n: bk.UnrolledNetwork(
        network, n, block_shape=(side,) * 3, offload="disk"
    ),
}


def make_data(n_coils: int) -> tuple[DataTerm, Tensor]:
    """Simulate a scan and prepare it."""
    volume = bk.pulmonary_phantom(tuple(n * 3 // 2 for n in SHAPE))
    scan = bk.simulate_scan(volume, SHAPE, n_coils=n_coils, n_spokes=800)
    with torch.no_grad():
        data = prepare(bk.Encoding(scan.trajectory, scan.maps), scan.kspace)
        data.normal(data.start)
    return data, scan.reference


@dataclass
class Measured:
    """What a way took."""

    bytes: int
    seconds: float
    gradients: list[Tensor]


def measure(model: bk.UnrolledNetwork, data: DataTerm, reference: Tensor) -> Measured:
    """Run a step twice: to count, and to time."""
    with bk.measure_peak() as peak:
        training_loss(model, data, reference)[0].backward()
    model.zero_grad(set_to_none=True)
    start = time.perf_counter()
    training_loss(model, data, reference)[0].backward()
    took = time.perf_counter() - start
    return Measured(peak.bytes, took, [p.grad.clone() for p in model.parameters()])


def make_network() -> bk.ResidualCNN:
    """Return a network that does something, the same each time."""
    torch.manual_seed(0)
    network = bk.ResidualCNN(CHANNELS, 5)
    torch.nn.init.normal_(network.layers[-1].weight, std=0.02)
    return network


def row(name: str, found: Measured, naive: Measured) -> str:
    """Return a line of the table."""
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(found.gradients, naive.gradients, strict=True))
    cells = [name, f"{found.bytes / 2**20:.0f}", f"{naive.bytes / found.bytes:.1f}", f"{found.seconds:.1f}"]
    cells += [f"{found.seconds / naive.seconds:.2f}", f"{error:.0e}" if error else "0"]
    return f"| {' | '.join(cells)} |"


def compare(n_coils: int, side: int, n_unrolls: int) -> Iterator[str]:
    """Run a step each way and give the rows."""
    data, reference = make_data(n_coils)
    naive = None
    for name, make in WAYS.items():
        found = measure(make(make_network(), side, n_unrolls), data, reference)
        naive = naive or found
        yield row(name, found, naive)


def sweeps() -> Iterator[str]:
    """Give the table of the ways, as it comes."""
    size = " x ".join(map(str, SHAPE))
    yield f"## Ways to run a step: {size}, ResidualCNN({CHANNELS}, 5)"
    yield ""
    yield f"Unless varied: blocks of {BLOCK}, {N_UNROLLS} unrolls, {N_COILS} coils."
    yield ""
    yield "| varied | way | peak MiB | naive / peak | seconds | time / naive | largest gradient error |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for what, values in SWEEPS.items():
        for value in values:
            chosen = {"coils": N_COILS, "block": BLOCK, "unrolls": N_UNROLLS, what: value}
            for line in compare(chosen["coils"], chosen["block"], chosen["unrolls"]):
                yield f"| {what} {value} {line}"


def trained(x: Tensor, run: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """Return a training step of the regularizer alone."""

    def step() -> None:
        leaf = x.detach().requires_grad_()
        run(leaf).square().sum().backward()

    return step


def regularizer() -> Iterator[str]:
    """Time the regularizer, naive and block-wise, beside the work that each must do."""
    n, side = TRAINED
    network, x = bk.ResidualCNN(32, 5), torch.randn(2, n, n, n)
    halo = bk.reach(network).halo
    blocks = cut_blocks((n, n, n), (side,) * 3, halo)
    window = blocks[0].window
    halo_work = len(blocks) * (window[0].stop - window[0].start) ** 3 / n**3
    ways = {
        "float32": (lambda x: network(x[None])[0], lambda x: bk.apply_blockwise(network, x, side)),
        "bfloat16": (
            lambda x: torch.autocast("cpu", torch.bfloat16)(network)(x[None])[0].float(),
            lambda x: torch.autocast("cpu", torch.bfloat16)(bk.apply_blockwise)(network, x, side).float(),
        ),
    }
    yield f"## The regularizer's step at {n}^3, reach {halo[0]}, blocks of {side}"
    yield ""
    yield f"Work it must do: 4/3 (recompute) x {halo_work:.2f} (halo) = {4 / 3 * halo_work:.2f} x naive."
    yield ""
    yield "| precision | naive, s | block-wise, s | time / naive | time / work it must do |"
    yield "| --- | --- | --- | --- | --- |"
    for name, (naive, blockwise) in ways.items():
        pairs = [(seconds(trained(x, naive), 1), seconds(trained(x, blockwise), 1)) for _ in range(2)]
        whole, parts = (min(times) for times in zip(*pairs, strict=True))
        ratio = parts / whole
        yield f"| {name} | {whole:.1f} | {parts:.1f} | {ratio:.2f} | {ratio / (4 / 3 * halo_work):.2f} |"


@torch.no_grad()
def half_precision() -> Iterator[str]:
    """Say what half precision in the regularizer costs the shipped model."""
    scan, model = bk.load_scan(ROOT / "data_samples" / "phantom_scan.h5"), bk.pretrained()
    A = bk.Encoding(scan.trajectory, scan.maps)
    full = model(A, scan.kspace)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(A, scan.kspace)
    yield "## The shipped model on the sample scan, regularizer in bfloat16, data consistency in complex64"
    yield ""
    yield "| precision | PSNR dB |"
    yield "| --- | --- |"
    for name, image in (("float32", full), ("bfloat16", half)):
        yield f"| {name} | {bk.psnr(image, scan.reference):.3f} |"


def main() -> None:
    """Print the tables as they come, and write them."""
    lines = ["# Ways to fit a training step into memory", "", f"`python benchmarks/methods.py`, {machine()}"]
    for table in (half_precision, regularizer, sweeps):
        lines.append("")
        for line in table():
            print(line, flush=True)
            lines.append(line)
    (ROOT / "benchmarks" / "results" / "methods.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
