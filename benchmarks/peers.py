"""Other projects' tiling on the same training step, each in an environment of its own: peak, time, gradient error.

Makes build/peers/NAME with blockkit, torch as here, and the peer; runs the step there by naive backprop, by blockkit
and by the peer, and writes benchmarks/results/peers.md. deepinv [1] tiles with a halo and checkpoints its batches,
which needs ``max_batch_size`` set; MONAI [2] averages overlapping windows, so a weight map that is nearly zero in the
halo is what makes it exact, and a predictor that checkpoints is what makes it small.

[1] Tachella et al., "DeepInverse", https://deepinv.github.io. [2] Cardoso et al., "MONAI", arXiv 2211.02701.
"""

import os
import subprocess
import sys
import types
from collections.abc import Callable
from importlib import import_module

import torch
from common import ROOT, environment, machine
from methods import BLOCK, N_COILS, N_UNROLLS, SHAPE, WAYS, make_data, make_network, measure, row
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import blockkit as bk
from blockkit.group import ALONE, Group

PEERS = {"deepinv": "deepinv==0.5.0", "monai": "monai==1.6.1"}
HALO = 5
Run = Callable[[nn.Module, Tensor], Tensor]


class ByPeer(bk.UnrolledNetwork):
    """The unrolled network with its regularizer run by ``run(network, x)`` on ``(1, 2, z, y, x)``."""

    run: Run

    def regularize(self, z: Tensor, k: int, group: Group = ALONE) -> Tensor:
        """Pass the image through the peer's tiling."""
        y = self.run(self.regularizers[0], torch.view_as_real(z).movedim(-1, 0).contiguous()[None])[0]
        return torch.view_as_complex(y.movedim(0, -1).contiguous())


def installed(peer: str, module: str) -> types.ModuleType:
    """Import a module of a peer: there only in the peer's environment."""
    return import_module(f"{peer}.{module}")


def deepinv_ways() -> dict[str, Run]:
    """Return what deepinv offers. Only its tiling is used, so that torchvision need not have its compiled part."""
    sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")
    distributed = installed("deepinv", "distributed")
    tiling = installed("deepinv", "distributed.framework").DistributedProcessing
    context = distributed.DistributedContext(device_mode="cpu").__enter__()

    def tiled(**options: object) -> Run:
        known: dict[nn.Module, nn.Module] = {}
        tiles = {"patch_size": (BLOCK,) * 3, "overlap": (HALO,) * 3, "tiling_dims": (2, 3, 4)}

        def run(network: nn.Module, x: Tensor) -> Tensor:
            if network not in known:
                known[network] = tiling(context, network, strategy_kwargs={**tiles}, **options)
            return known[network](x)

        return run

    return {
        "deepinv, as it comes": tiled(),
        "deepinv, two at once, checkpoints": tiled(max_batch_size=2, checkpoint_batches="always"),
    }


def monai_ways() -> dict[str, Run]:
    """Return what MONAI offers."""
    sliding_window_inference = installed("monai", "inferers").sliding_window_inference

    def kept(network: nn.Module) -> Callable[[Tensor], Tensor]:
        return lambda windows: checkpoint(network, windows, use_reentrant=False)

    side = BLOCK + 2 * HALO
    line = torch.full((side,), 1e-6)
    line[HALO:-HALO] = 1
    weight = line[:, None, None] * line[:, None] * line

    def averaged(network: nn.Module, x: Tensor) -> Tensor:
        return sliding_window_inference(x, (side,) * 3, 2, kept(network))

    def weighted(network: nn.Module, x: Tensor) -> Tensor:
        options = {"overlap": 2 * HALO / side, "roi_weight_map": weight}
        return sliding_window_inference(x, (side,) * 3, 2, kept(network), **options)

    return {"MONAI, as it comes, checkpoints": averaged, "MONAI, halo by weights, checkpoints": weighted}


def in_environment(peer: str) -> None:
    """Run the step each way and print the rows."""
    data, reference = make_data(N_COILS)
    naive = measure(WAYS["naive"](make_network(), BLOCK, N_UNROLLS), data, reference)
    print(row("naive", naive, naive), flush=True)
    ours = measure(WAYS["blockkit"](make_network(), BLOCK, N_UNROLLS), data, reference)
    print(row("blockkit", ours, naive), flush=True)
    for name, run in {"deepinv": deepinv_ways, "monai": monai_ways}[peer]().items():
        model = ByPeer(make_network(), N_UNROLLS)
        model.run = run
        print(row(name, measure(model, data, reference), naive), flush=True)


def main() -> None:
    """Print the tables as they come, and write them."""
    size = " x ".join(map(str, SHAPE))
    lines = ["# Peers on the same step", "", f"`python benchmarks/peers.py`, {machine()}; {', '.join(PEERS.values())}."]
    lines += [f"{size}, {N_UNROLLS} unrolls, {N_COILS} coils, blocks of {BLOCK}, reach {HALO}."]
    for peer in PEERS:
        packages = [f"torch=={torch.__version__.split('+')[0]}", PEERS[peer], "-e", str(ROOT)]
        command = [environment(peer, packages), __file__, "--in-environment", peer]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
        lines += ["", f"## {PEERS[peer]}", ""]
        if done.returncode:
            lines.append(f"Did not run: {done.stderr.strip().splitlines()[-1]}")
        else:
            lines += ["| way | peak MiB | naive / peak | seconds | time / naive | largest gradient error |"]
            lines += ["| --- | --- | --- | --- | --- | --- |", done.stdout.strip()]
        print("\n".join(lines[-3:]), flush=True)
    (ROOT / "benchmarks" / "results" / "peers.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--in-environment"]:
        in_environment(sys.argv[2])
    else:
        main()
