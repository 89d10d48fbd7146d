"""Training over a folder of files is training over the scans in them."""

from pathlib import Path

import pytest
import torch

from blockkit.data.folder import ScanFolder
from blockkit.data.scan import Scan
from blockkit.data.simulate import simulate_scan
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.training import fit
from blockkit.mbdl.unrolled import UnrolledNetwork


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("scans")
    for seed, subject in enumerate(("ann", "bob", "cid")):
        volume = torch.randn(12, 15, 18, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
        simulate_scan(volume, (8, 10, 12), n_coils=2, n_spokes=16, seed=seed).save(place / f"{subject}_1.h5")
    return place


@pytest.mark.parametrize("target", ["reference", pytest.param("self", marks=pytest.mark.slow)])
def test_it_takes_the_same_steps_whether_the_scans_are_kept_or_not(folder: Path, target: str) -> None:
    training, validation = ScanFolder(folder, cache_gib=0).split(0.2)
    losses = []
    for scans, aside in ((training, validation), (list(training), list(validation))):
        torch.manual_seed(0)
        model = UnrolledNetwork(ResidualCNN(4, 2), 1, block_shape=(8, 5, 12))
        history = fit(model, scans, target=target, validation=aside, n_steps=4, augment=True)
        losses.append(history.losses)
        assert [step for step, _ in history.validation] == [2, 4]
    assert losses[0] == losses[1]


def test_a_scan_that_cannot_be_trained_on_is_named_by_its_file(folder: Path, tmp_path: Path) -> None:
    scan = ScanFolder(folder)[0]
    Scan(scan.kspace, scan.trajectory, scan.maps, scan.voxel_size).save(tmp_path / "eve.h5")
    model = UnrolledNetwork(ResidualCNN(4, 2), 1)
    with pytest.raises(ValueError, match=r"scans\[0\] \('.*eve\.h5'\) has no reference"):
        fit(model, ScanFolder(tmp_path), n_steps=1)
