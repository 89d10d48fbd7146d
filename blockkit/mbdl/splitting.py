r"""Self-supervised training: a scan is split in two, one part for the data term and one that only the loss sees.

A network that never sees some samples can be asked to predict them: their noise is new to it, so it can do no better
than the image behind them [1]_. Here the samples of a scan are dealt into four folds, and each pass over the scans
holds another one out of the data term [2]_.

Half of the readouts are dealt as a whole, and the samples of the other half one by one. The first ask for what lies
between the readouts that are left, the second for what lies on them. With whole readouts alone, nothing asks for the
latter: a network that makes detail too strong predicts the gaps better, and the image gets worse. With single samples
alone, nothing asks for the gaps. As all folds are dealt alike, each is sampled like the scan, which is what theory asks
for [3]_; and each has the center of k-space.

The loss weighs a held-out sample by its density compensation, since samples crowd at the center: unweighted, nearly
all of the loss is there. Weighted, :math:`A_\Lambda^H W A_\Lambda` is on average over the folds about the identity on
smooth images, and less for details, where the readouts lie further apart than the weights reach. So the squared loss is
on average a squared error of the image, plus a constant for the noise [3]_. This holds for L2 alone, so no L1 norm is
added as in [1]_.

References
----------
.. [1] Yaman, Hosseini, Moeller, Ellermann, Ugurbil and Akcakaya, "Self-supervised learning of physics-guided
   reconstruction neural networks without fully sampled reference data", MRM 84:3172-3191, 2020,
   doi:10.1002/mrm.28378.
.. [2] Yaman et al., "Multi-mask self-supervised learning for physics-guided neural networks in highly accelerated
   magnetic resonance imaging", NMR Biomed. 35:e4798, 2022.
.. [3] Millard and Chiew, "A theoretical framework for self-supervised MR image reconstruction using sub-sampling via
   variable density Noisier2Noise", IEEE Trans. Comput. Imaging 9:707-720, 2023.
"""

from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from blockkit.checks import check_image
from blockkit.data.scan import Scan
from blockkit.mbdl.held_out import HeldOut
from blockkit.mbdl.prepared import Prepared, PreparedScans

N_FOLDS = 4
LEAST_READOUTS = 2 * N_FOLDS
JUMP = 5.0  # times the usual step from sample to sample: there one readout ends and the next begins


def number_readouts(scan: Scan) -> Tensor:
    """Return the number of the readout that each sample belongs to: int64, shape ``(sample,)``, from 0 on.

    Samples follow each other along a readout, and one ends where the next sample is more than :data:`JUMP` times as far
    away as is usual, in cycles per voxel. So readouts may be spokes, from edge to edge or from the center out, lines or
    the arms of a spiral, and of any length.
    """
    sizes = torch.tensor([n if n > 1 else torch.inf for n in scan.image_shape], device=scan.trajectory.device)
    steps = torch.linalg.vector_norm((scan.trajectory / sizes).diff(dim=0), dim=1)
    ends = steps > JUMP * steps.median() if len(steps) else steps > 0
    return torch.nn.functional.pad(ends.cumsum(0), (1, 0))


def folds(scan: Scan, seed: int, name: str = "scan") -> Tensor:
    """Return the fold, 0 to ``N_FOLDS - 1``, of each sample: int64, shape ``(sample,)``.

    Of two readouts in a row, one is dealt as a whole and the other sample by sample. Of :data:`N_FOLDS` readouts that
    are dealt as a whole in a row, and of as many single samples, every fold gets one. So the folds cover k-space alike,
    and also the time of a scan during which the signal decays. What goes where is drawn from ``seed``.

    Raises
    ------
    ValueError
        If there are fewer than :data:`LEAST_READOUTS` readouts.
    """
    numbers = number_readouts(scan)
    n_readouts = int(numbers[-1]) + 1
    if n_readouts < LEAST_READOUTS:
        raise ValueError(
            f"{name} has {n_readouts} readouts, expected at least {LEAST_READOUTS} to hold some out. "
            "Are the samples in the order in which they were taken, readout after readout?"
        )
    generator = torch.Generator().manual_seed(seed)
    whole = _deal(n_readouts, 2, generator) == 0
    of_readout = torch.zeros(n_readouts, dtype=torch.int64)
    of_readout[whole] = _deal(int(whole.sum()), N_FOLDS, generator)
    numbers = numbers.cpu()
    dealt = torch.where(whole[numbers], of_readout[numbers], _deal(len(numbers), N_FOLDS, generator))
    return dealt.to(scan.kspace.device)


def _deal(n: int, n_hands: int, generator: torch.Generator) -> Tensor:
    """Deal ``n`` cards, one to each hand in every round, in an order drawn anew: return the hand of each card."""
    return torch.rand(-(-n // n_hands), n_hands, generator=generator).argsort(dim=1).flatten()[:n]


def split_scan(scan: Scan, fold: int = 0, *, seed: int = 0) -> tuple[Scan, Scan]:
    """Split a scan into two: three quarters of it to reconstruct from or train on, and one to compare with.

    Parameters
    ----------
    scan
        With or without a reference, which both parts get.
    fold
        Which quarter: 0 to 3. Each sample is in one of them.
    seed
        Draws the quarters.

    Returns
    -------
    tuple
        The larger part and the smaller one. Samples stay in order, and none is in both.

    Raises
    ------
    ValueError
        If there are too few readouts, or no such fold.
    """
    if fold not in range(N_FOLDS):
        raise ValueError(f"fold is {fold!r}, expected 0 to {N_FOLDS - 1}.")
    inside = folds(scan, seed) == fold
    return _part(scan, ~inside), _part(scan, inside)


def held_out_error(image: Tensor, held_out: Scan) -> float:
    """Return the relative L2 error that an image has on samples it was not made from, weighted by their density.

    Parameters
    ----------
    image
        Complex, shape ``(z, y, x)``, in the unit of the scan.
    held_out
        The smaller part of a :func:`split_scan`.

    Returns
    -------
    float
        No unit: 1 for an image of zeros. Noise alone keeps it above 0, so it compares images of one scan.

    Raises
    ------
    ValueError
        If the image has another shape than the scan's, or the samples are all zero.
    """
    check_image(image, held_out.image_shape)
    largest = held_out.kspace.abs().max()
    unit = held_out.group.largest("the unit of k-space", largest).to(image.device)  # so no square over- or underflows
    if not unit > 0:
        raise ValueError("held_out has k-space that is zero everywhere, so there is nothing to compare with.")
    with torch.no_grad():
        return float(_target(held_out, unit).relative_error(image / unit))


def _part(scan: Scan, chosen: Tensor) -> Scan:
    times = None if scan.times is None else scan.times[chosen]
    return replace(scan, kspace=scan.kspace[:, chosen], trajectory=scan.trajectory[chosen], times=times)


class SplitScans(PreparedScans):
    """The data terms of scans without a quarter of their samples, and that quarter: each pass another of the four."""

    share_held_out = 1 / N_FOLDS

    def variant(self, i: int, epoch: int) -> int:
        """Return the fold that is held out of scan ``i`` in a pass."""
        return (i + epoch) % N_FOLDS

    def look_at(self, scan: Scan, name: str) -> None:
        """Raise unless the scan has a signal."""
        if not scan.group.any("a signal", bool(scan.kspace.any())):
            raise ValueError(f"{name} has k-space that is zero everywhere. Leave it out of {self.name}.")

    def make(self, scan: Scan, i: int, variant: int) -> tuple[Prepared, int]:
        """Return the data term of three quarters, the fourth, and the bytes that they take."""
        name = self.called(i)
        inside = folds(scan, self.seed * 1_000_003 + i, name) == variant
        rest, held_out = _part(scan, ~inside), _part(scan, inside)
        if not scan.group.any("a held-out signal", bool(held_out.kspace.any())):
            raise ValueError(f"{name} has only zeros in a quarter of its samples. Leave it out of {self.name}.")
        data = self.data_of(rest)
        with torch.no_grad():
            target = _target(held_out, data.scale)
        n_rest, n_held_out = len(rest.trajectory), len(held_out.trajectory)
        size = scan.maps.nbytes + 64 * prod(scan.image_shape) + target.kspace.nbytes + 64 * n_held_out + 24 * n_rest
        return (data, target), size


def _target(scan: Scan, scale: Tensor) -> HeldOut:
    """Return all samples of a scan as held-out ones, on the device of ``scale``, the unit of the image."""
    A = scan.encoding(scale.device)
    A = A.weighted(A.dcf)
    return HeldOut(A, scan.kspace.to(scale.device) / scale * A.dcf.sqrt())
