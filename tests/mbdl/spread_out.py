"""What a user does with one volume on several processes, for ``test_spread``: alone, or by each of two and of three."""

import json
import os
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn

from blockkit.blockwise.memory import measure_peak
from blockkit.classic.compressed_sensing import compressed_sensing
from blockkit.data.folder import ScanFolder
from blockkit.data.scan import Scan, load_scan
from blockkit.group import Group, join
from blockkit.mbdl import automatic
from blockkit.mbdl.data_consistency import prepare
from blockkit.mbdl.footprint import Case, predict_run, run_from_nothing
from blockkit.mbdl.held_out import HeldOut
from blockkit.mbdl.loss import training_loss
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.splitting import held_out_error
from blockkit.mbdl.training import fit
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.physics.coils import simulate_maps
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import radial_3d
from tests.mbdl.small_scans import make_scan

SHAPE = (10, 9, 12)
MODELS = {  # the model, its precision, and the coils; coils and windows fewer than processes, as many, more and uneven
    "shared": ({"block_shape": (5, 9, 6)}, {}, torch.complex64, 4),
    "free": ({"block_shape": (4, 9, 5), "shared_weights": False}, {"sees_gradient": True}, torch.complex128, 1),
    "kept": ({"block_shape": (10, 5, 12), "recompute": False}, {"downsample": 2}, torch.complex64, 2),
    "cg": ({"block_shape": (10, 9, 6), "data_term": "cg"}, {}, torch.complex128, 4),
    "disk": ({"block_shape": SHAPE, "data_term": "unweighted", "offload": "disk"}, {}, torch.complex128, 3),
    "whole": ({}, {}, torch.complex128, 2),
}
CASES = {
    "training": Case((24, 20, 22), 3, 900, coils_at_once=2),
    "reconstruction": Case((24, 28, 22), 2, 900, training=False),
    "held out": Case((22, 26, 18), 3, 900, n_held_out=225, normal="nufft", tolerance=1e-3),
}
IN_THREE = ("shared", "free", "cg")


class Breaks(nn.Module):
    """A network that fails on one process: in its forward, or when it runs again in backward."""

    def __init__(self, rank: int, when: str) -> None:
        super().__init__()
        self.conv, self.rank, self.when = nn.Conv3d(2, 2, 3, padding=1), rank, when

    def forward(self, x: Tensor) -> Tensor:
        if self.rank == 1 and (self.when == "forward") is not torch.is_grad_enabled() and x.shape[-1] == 8:
            raise MemoryError("no room for it")
        y: Tensor = self.conv(x)
        return y


def make_model(name: str) -> UnrolledNetwork:
    options, of_network, dtype, _ = MODELS[name]
    torch.manual_seed(2)
    model = UnrolledNetwork(ResidualCNN(4, 2, **of_network), 2, **options)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)  # the last layer is zero, and so would be gradients
    return model.to(dtype.to_real())


def make_encoding(name: str, group: Group) -> tuple[Encoding, Tensor, Tensor]:
    """Return the operator of the coils of this process, their k-space, and the image behind it."""
    *_, dtype, n_coils = MODELS[name]
    generator, own = torch.Generator().manual_seed(3), group.share(n_coils)
    maps, image = simulate_maps(n_coils, SHAPE, seed=4).to(dtype), torch.randn(SHAPE, dtype=dtype, generator=generator)
    mine = maps[own] if own.stop > own.start else torch.zeros_like(maps[:1])
    A = Encoding(radial_3d(60, 20, SHAPE).to(dtype.to_real()), mine, tolerance=1e-10, normal="nufft")
    return A.spread_over(group), A(image), image


def reconstruct(name: str, group: Group) -> dict[str, Tensor]:
    """Return the image, the bound, and the gradients of all that has one."""
    model, (A, kspace, target) = make_model(name), make_encoding(name, group)
    with torch.no_grad():
        image = model(A, kspace)
    data = prepare(A, kspace, model.data_term)
    data = replace(data, b=data.b.requires_grad_(), start=data.start.requires_grad_())
    loss, _ = training_loss(model, data, target)
    loss.backward()
    error = HeldOut(A, kspace.conj()).relative_error(data.start)
    (to_start,) = torch.autograd.grad(error, data.start)
    found = {"image": image, "loss": loss.detach(), "dcf": A.dcf, "held out": error.detach(), "to start": to_start}
    found |= {"bound": torch.tensor(A.lipschitz), "b.grad": data.b.grad, "start.grad": data.start.grad}
    return found | {f"{key}.grad": p.grad for key, p in model.named_parameters() if p.grad is not None}


def from_a_file(place: Path) -> dict[str, Tensor]:
    """Reconstruct from a part that was read, and from one that was cut."""
    read, cut = load_scan(place / "scan.h5", spread=True), load_scan(place / "scan.h5").spread()
    model = make_model("shared")
    image = model(read.encoding(), read.kspace).detach()
    model.block_shape = "auto"
    with patch.object(automatic, "largest_fitting", lambda *_, **__: (5 + join().rank, 9, 6)):  # free: not alike
        in_blocks = model(read.encoding(), read.kspace).detach()
    sparse = compressed_sensing(cut.encoding(), cut.kspace, n_iterations=5, wavelet="haar")
    others = cut, ScanFolder(place, "scan.h5").spread()[0]
    alike = torch.tensor([[torch.equal(read.kspace, o.kspace), torch.equal(read.maps, o.maps)] for o in others])
    score = torch.tensor(held_out_error(image, read))
    return {
        "image": image,
        "auto": in_blocks,
        "sparse": sparse,
        "alike": alike,
        "score": score,
        "size": torch.tensor(read.kspace.shape),
    }


class Scans(Sequence[Scan]):
    """Scans, one of which the last process alone cannot read; or memory runs out on it, at the second scan."""

    def __init__(self, harm: str) -> None:
        self.harm, self.group, self.n_asked = harm, join(), 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> Scan:  # type: ignore[override]
        self.n_asked += 1
        if self.group.rank == self.group.size - 1:
            if self.harm == "bad" and i == 2:
                raise OSError("a bad sector")
            if self.harm == "memory" and self.n_asked == 2:
                raise MemoryError("out of memory")
        return make_scan(i)


def train(place: Path, target: str) -> dict[str, Tensor]:
    """Train, and return the losses, the scores, the weights, and how many scans were passed over."""
    torch.manual_seed(join().rank)  # the weights of the first process are to count
    model = UnrolledNetwork(ResidualCNN(4, 2), 2, block_shape="auto" if target == "self" else (5, 4, 8))
    scans, how = Scans("bad" if target == "self" else "memory"), {"spread": True, "skip_bad": True, "n_steps": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the harm done here is told of by warnings
        history = fit(
            model,
            scans,
            validation=[make_scan(10), make_scan(11)],
            target=target,
            augment=True,
            checkpoint=place / f"{target}.run",
            watch=lambda progress: None,
            **how,
        )
    found = {"losses": history.losses, "scores": [score for _, score in history.validation]}
    found["skipped"] = [step for step, _ in history.skipped]
    return {name: torch.tensor(values).double() for name, values in found.items()} | dict(model.state_dict())


def count(case: Case) -> list[int]:
    """Return the bytes that this process is predicted to take, and those that are counted when it does."""
    torch.manual_seed(0)
    model, group = UnrolledNetwork(ResidualCNN(5, 3), 2, block_shape=(8, 10, 8)), join()
    coils = group.share(case.n_coils)
    case = replace(case, n_coils=max(1, coils.stop - coils.start), group=group)
    predicted = predict_run(model, case).bytes
    with measure_peak() as peak:
        run_from_nothing(model, case)
    return [predicted, peak.bytes + sum(p.nbytes for p in model.parameters())]


def failures(scan: Scan, rank: int) -> dict[str, str]:
    """Return what is said on this process of runs that cannot go well."""

    def run(network: nn.Module, n_unrolls: int = 1, side: int = 8, scan: Scan = scan) -> Callable[[], object]:
        model = UnrolledNetwork(network, n_unrolls, block_shape=(side,) * 3)
        return lambda: model(scan.encoding(), scan.kspace).abs().sum().backward()

    def network(seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return ResidualCNN(2, 2)

    runs = {
        "unrolls": run(network(), n_unrolls=1 + rank),
        "blocks": run(network(), side=4 + rank),
        "weights": run(network(seed=rank)),
        "images": run(network(), scan=make_scan(5, (8, 8, 8 + 2 * (rank == 1))).spread()),
        "scans": run(network(), scan=replace(scan, trajectory=scan.trajectory * (1 - 0.1 * rank))),
        "forward": run(Breaks(rank, "forward")),
        "backward": run(Breaks(rank, "backward")),
        "file": lambda: load_scan("nowhere.h5" if rank == 1 else "scan.h5", spread=True),
        "whole": lambda: scan.save("part.h5"),
        "not spread": lambda: fit(UnrolledNetwork(network(), 1), [scan], n_steps=1),
    }
    said = {}
    for name, function in runs.items():
        torch.manual_seed(1)
        try:
            function()
        except Exception as error:
            said[name] = f"{type(error).__name__}: {error}"
    return said


def everything(place: Path, fabric: bool) -> None:
    """Do it all, in three processes a part of it, and write what came of it to files named after the process."""
    group, said = join(), {}
    models = IN_THREE if group.size == 3 else tuple(MODELS)
    tensors = {f"{name}/{key}": t for name in models for key, t in reconstruct(name, group).items()}
    tensors |= {f"file/{key}": value for key, value in from_a_file(place.parent).items()}
    if fabric and group.size < 3:
        for target in ("reference", "self"):
            tensors |= {f"fit {target}/{key}": t for key, t in train(place, target).items()}
    if group.size == 2:
        said["bytes"] = {name: count(case) for name, case in CASES.items()}
        os.chdir(place.parent)
        said["failures"] = failures(make_scan(5).spread(), group.rank)
    (place / f"{group.rank}.json").write_text(json.dumps(said), encoding="utf-8")
    torch.save(tensors, place / f"{group.rank}.pt")


def as_process(rank: int, size: int, port: int) -> None:
    """Set what ``torchrun`` sets."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(number) for name, number in numbers.items()})
    os.environ.update({"MASTER_ADDR": "localhost", "TORCHELASTIC_RUN_ID": "test"})


def main(place: Path, fabric: bool) -> None:
    """Start two processes, then three, by fork: all that is to be imported is, and nothing has run yet."""
    if fabric:
        import lightning_fabric  # noqa: F401
    for size in (2, 3):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = free.getsockname()[1]
        (place / str(size)).mkdir()
        children = []
        for rank in range(size):
            if child := os.fork():
                children.append(child)
                continue
            as_process(rank, size, port)
            everything(place / str(size), fabric)
            sys.stdout.flush()
            os._exit(0)
        codes = [os.waitpid(child, 0)[1] for child in children]
        assert codes == [0] * size, codes


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] == "fabric")
