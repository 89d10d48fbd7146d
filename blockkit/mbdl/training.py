"""Training: fit a model to scans, keep the best weights, stop and resume without loss."""

from collections.abc import Sequence
from math import prod
from pathlib import Path

from blockkit.checks import Shape3, check_count
from blockkit.data.scan import Scan
from blockkit.mbdl.checkpoint import Checkpoint
from blockkit.mbdl.determinism import repeatable
from blockkit.mbdl.interrupt import interruptible
from blockkit.mbdl.prepared import PreparedScans
from blockkit.mbdl.progress import History, Watch
from blockkit.mbdl.room import USUAL_BLOCK, check_room, largest_fitting
from blockkit.mbdl.run import Run
from blockkit.mbdl.splitting import SplitScans
from blockkit.mbdl.unrolled import UnrolledNetwork

TARGETS = ("reference", "self")


def fit(
    model: UnrolledNetwork,
    scans: Sequence[Scan],
    *,
    target: str = "reference",
    validation: Sequence[Scan] = (),
    n_steps: int = 1000,
    learning_rate: float = 1e-3,
    augment: bool = False,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    check_memory: bool = True,
    skip_bad: bool = False,
    deterministic: bool = False,
    scans_per_step: int | None = None,
    spread: bool = False,
    watch: Watch | None = None,
) -> History:
    r"""Train ``model`` in place on the relative L2 loss, one scan a step and process.

    The image of the last unroll counts fully, and those of the earlier ones 0.3 each, so that every unroll learns from
    the first step on. Kernels are trained by Muon and the rest by Adam (:mod:`blockkit.mbdl.optimizer`). The learning
    rate rises over the first twentieth and then falls to a hundredth by half a cosine. Scans are taken in an order
    drawn from ``seed`` anew for each pass. With validation scans, the weights with the best score are the ones in
    ``model`` at the end, also if the run fails.

    ``target="self"`` needs no reference [1]_: the samples of a scan, half of them as whole readouts, are dealt into
    four folds, drawn from ``seed``. Each pass holds another fold out of the data term, and the loss is the relative L2
    error of what the image gives there, weighted by the density compensation (:mod:`blockkit.mbdl.splitting` says why).
    Noise cannot be predicted, so a good image does not bring the loss near 0. A scan is prepared four times, once a
    fold. To reconstruct, use all of it.

    Under ``torchrun`` each of its processes takes its part of the scans of every step and of those of the validation,
    and all end with the same weights (``docs/several_gpus.md``). That needs Lightning Fabric, the extra ``scale``. With
    ``spread`` all take the same scans together instead, each its coils and its windows: for volumes too large for one.

    Gradients are clipped to norm 1, after they are averaged. Inside ``torch.autocast("cpu", dtype=torch.bfloat16)`` the
    regularizer computes in half precision; the data consistency and the weights stay in single precision.

    Ctrl-C or SIGTERM ends the run after the step under way. With ``checkpoint`` the same call goes on where the last
    one stopped, and after a crash or a power cut from at most five minutes and a step before. On several threads the
    resumed run differs from a whole one by rounding (about 1e-7 of the loss at first), unless ``deterministic``.

    If memory runs out in a step, scans that were kept ready are given back and the step is tried again. With
    ``model.block_shape = "auto"`` the largest block is taken that fits into four fifths of the free memory, and a
    smaller one, with a warning, whenever it runs out; the last one stays in ``model``.

    Parameters
    ----------
    model
        Trained on the device where its weights are.
    scans
        Scans with a ``reference``, unless ``target`` is ``"self"``; a lazy sequence is read as it is indexed.
    target
        What to train towards: ``"reference"``, the scans' references, or ``"self"``, their own held-out samples.
    validation
        Scans like ``scans``, never trained on. With ``target="self"`` a fold that does not depend on ``seed`` is held
        out, and references are not looked at.
    n_steps
        Steps in all, those of a resumed run included.
    learning_rate
        The highest one.
    augment
        Mirror each scan along axes drawn anew at each step, conjugate it or not, and turn its phase: more scans than
        there are, for a network that is to know no direction.
    checkpoint
        File to write after every pass, every five minutes and at the end, and to resume from if it exists. The old file
        stays until the new one is whole on the disk. ``load_model`` takes the best weights out of it, at any time. If
        it cannot be written during the run, there is a warning and the run goes on.
    seed
        Draws the order of the scans, the folds, and the augmentation.
    check_memory
        Refuse to start if a step is predicted to take more memory than is free.
    skip_bad
        Pass over scans that turn out bad: a file that cannot be read any more, no finite loss. There is a warning for
        each, and ``history.skipped`` lists them; a validation with a bad scan is left out. False stops the run, with
        the scan named and all that was learned kept. If a whole pass has no good scan, the run stops in either case.
    deterministic
        Two runs from the same weights, scans and ``seed``, one of them resumed or not, give the same bits: on the CPU,
        with one number of threads, one machine and one version of each library. finufft then takes one thread, and
        torch no algorithm whose bits differ from run to run. On other processors or numbers of threads or of processes
        results differ by rounding.
    scans_per_step
        Scans whose gradients are averaged in a step, one after another, and shared out to the processes if there are
        several: a multiple of their number, and that number if None. A step takes as many times longer as a process has
        scans in it, not more memory. With ``skip_bad`` a step averages over those that are good.
    spread
        Share out each scan, not the scans of a step: each process has its coils of k-space and maps alone, and runs
        its part of the windows of every unroll, as :meth:`~blockkit.data.scan.Scan.spread` says. ``scans_per_step`` is
        then any number, 1 if None. Of files in the project's HDF5 a :class:`ScanFolder` reads these coils alone.
    watch
        Called with a :class:`~blockkit.mbdl.progress.Progress` as the run goes on, such as a
        :class:`~blockkit.show.training_view.TrainingView`. It changes nothing in the run. None: a progress bar. Of
        several processes the first alone calls it.

    Raises
    ------
    ValueError
        If a scan cannot be read, has no reference or a reference of zeros; with ``target="self"``, if it has fewer than
        eight readouts or no signal; if a loss is not finite; if ``checkpoint`` is damaged, belongs to another model or
        run, or is where nothing can be written; if ``deterministic`` is asked for on a GPU; if ``scans_per_step`` is no
        multiple of the number of processes, or these were called with different arguments.
    TypeError
        If ``model`` or a scan is something else.
    ImportError
        If there are several processes and no Lightning Fabric.
    MemoryError
        If a step will not fit, or did not: the message names the block with which it would.

    References
    ----------
    .. [1] Yaman et al., "Self-supervised learning of physics-guided reconstruction neural networks without fully
       sampled reference data", MRM 84:3172-3191, 2020, doi:10.1002/mrm.28378.

    Examples
    --------
    >>> model = bk.UnrolledNetwork(bk.ResidualCNN(4, 2), n_unrolls=2, block_shape=(8, 8, 8))
    >>> history = bk.fit(model, [scan], n_steps=2, check_memory=False, watch=lambda progress: None)
    >>> len(history.losses)
    2
    """
    check_count(n_steps, "n_steps")
    _check_arguments(model, scans, target, checkpoint)
    if deterministic:
        _check_deterministic(model)
    run = Run(model, n_steps, learning_rate, seed, len(scans), augment, target, spread=spread)
    ranks, run.skip_bad = run.ranks, skip_bad
    run.scans_per_step = _checked_scans_per_step(scans_per_step, ranks.n_dealt)
    run.watch = (watch or run.watch) if ranks.is_first else (lambda progress: None)
    with ranks.leaving_together(), repeatable(deterministic):
        file = ranks.all_or_none(lambda: Checkpoint(run, checkpoint))
        ranks.begin_alike(model, run.identity() | {"step": run.step, "n_validation": len(validation)})
        _train(run, *_made_ready(run, scans, validation, check_memory=check_memory), file)
    return run.history


def _train(run: Run, scans: PreparedScans, held_out: PreparedScans, file: Checkpoint) -> None:
    """Take the steps that are left; write the checkpoint and keep the best weights, also if the run fails."""

    def look_at(i: int) -> None:
        held_out[i]

    try:
        with interruptible() as interrupt:
            if run.step == 0:
                run.ranks.map(look_at, len(held_out))  # before the first step: a bad one is named now
            run.tell()
            if run.lacks_validation:
                run.validate(held_out)
            while run.step < run.n_steps and not run.ranks.any(interrupt.is_set()):
                run.take_step(scans)
                run.tell()
                if run.ends_pass:
                    run.validate(held_out)
                file.save_if_due(now=run.ends_pass)
        run.history.interrupted = run.step < run.n_steps
    finally:
        try:
            file.save_if_due(now=True)
        finally:
            run.keep_best()
            run.tell(ended=True)


def _made_ready(
    run: Run, scans: Sequence[Scan], validation: Sequence[Scan], *, check_memory: bool
) -> tuple[PreparedScans, PreparedScans]:
    """Return the scans and the validation scans with what the run's target asks for."""
    kind = SplitScans if run.target == "self" else PreparedScans
    unless, share, model = "fit(..., check_memory=False)", kind.share_held_out, run.model
    run.automatic_block = model.block_shape == "auto"
    settled: list[Shape3] = []
    if run.automatic_block:
        model.block_shape = USUAL_BLOCK  # until the first scan is seen

    def check(scan: Scan) -> None:
        if run.automatic_block:
            settled.extend(run.ranks.group.gather("blocks", largest_fitting(model, scan, share)))
            model.block_shape = min(settled, key=prod)
        if check_memory:
            check_room(model, scan, training=True, unless=unless, share_held_out=share)

    group = run.ranks.group
    held_out = kind("validation", validation, model, group=group)
    run.prepared = kind("scans", scans, model, check, run.seed, group), held_out
    return run.prepared


def _checked_scans_per_step(wanted: int | None, n_processes: int) -> int:
    if wanted is None:
        return n_processes
    check_count(wanted, "scans_per_step")
    if wanted % n_processes:
        raise ValueError(
            f"scans_per_step is {wanted}, expected a multiple of the number of processes, {n_processes}: "
            f"each takes as many scans as the others. Write {-(-wanted // n_processes) * n_processes}, or leave it out."
        )
    return wanted


def _check_deterministic(model: UnrolledNetwork) -> None:
    device = model.step_size.device
    if device.type != "cpu":
        raise ValueError(
            f"deterministic=True is promised on the CPU alone, and the model is on {device}: there the last bits of a "
            "NUFFT differ from run to run. Write model.cpu(), or leave deterministic out."
        )
    if model.block_shape == "auto":
        raise ValueError(
            'model.block_shape is "auto", which depends on the memory that is free, and deterministic is True. '
            "Give the block, such as (64, 64, 64)."
        )


def _check_arguments(model: object, scans: object, target: str, checkpoint: str | Path | None) -> None:
    if not isinstance(model, UnrolledNetwork):
        raise TypeError(f"model is a {type(model).__name__}, expected a blockkit.UnrolledNetwork.")
    if isinstance(scans, Scan) or not isinstance(scans, Sequence):
        raise TypeError(f"scans is a {type(scans).__name__}, expected a sequence of blockkit.Scan: write [scan].")
    if not len(scans):
        raise ValueError("scans is empty, expected at least one scan.")
    if target not in TARGETS:
        raise ValueError(f"target is {target!r}, expected one of {', '.join(map(repr, TARGETS))}.")
    if checkpoint is not None and (Path(checkpoint).is_dir() or not Path(checkpoint).parent.is_dir()):
        raise ValueError(f"checkpoint is '{checkpoint}', expected a file in a folder that exists. Make it first.")
    if model.block_shape == "auto" and not model.recompute:
        raise ValueError('model.block_shape is "auto" and model.recompute False, which keeps what blocks are to save.')
