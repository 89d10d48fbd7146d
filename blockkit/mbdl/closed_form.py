r"""Bytes of a step in closed form: microseconds where the trace of :mod:`~blockkit.mbdl.footprint` takes seconds.

What a step takes is what stays (scan, operator, weights) and what is alive at one of a few moments, of which the one
with the most bytes is the peak. With :math:`I` the bytes of an image and :math:`n` unrolls, a training step in blocks
has five images that stay or come at once, and two more an unroll; on top of that come either the activations of one
batch of windows, in backward of the last unroll's regularizer, or the coil under way, in backward of its data
consistency. Naive backprop has the activations of all unrolls in place of the windows. What the regularizer takes for a
voxel says :mod:`~blockkit.mbdl.network_bytes`. Tests hold the sums to within 3 % of the trace.
"""

from math import prod

from blockkit.blockwise.blocks import cut_axis, windows_at_once
from blockkit.blockwise.memory import Peak
from blockkit.blockwise.together import round_up
from blockkit.checks import Shape3
from blockkit.mbdl.footprint import MAP_SPACING, PARTS, Case
from blockkit.mbdl.network_bytes import NetworkBytes
from blockkit.physics.toeplitz import padded_shape, slab_rows

Parts = dict[str, float]


def step_bytes(
    network: NetworkBytes,
    case: Case,
    n_unrolls: int,
    *,
    block_shape: Shape3 | None = None,
    recompute: bool = True,
    offload: str | None = None,
) -> Peak:
    """Return what :func:`~blockkit.mbdl.footprint.predict_run` would trace, within 3 %: the peak and its parts.

    Parameters
    ----------
    network
        What the regularizer takes, in the precision of ``case.dtype`` or in half precision.
    case
        Sizes of the step. The normal operator is the Toeplitz one, and no samples are held out.
    n_unrolls, block_shape, recompute, offload
        As in :class:`~blockkit.mbdl.unrolled.UnrolledNetwork`, with one regularizer for all unrolls and gradient steps.

    Raises
    ------
    ValueError
        If ``case`` has held-out samples or another normal operator, or if activations are to be offloaded: naive
        backprop's, or those of blocks without ``recompute``.
    """
    keeps_all = case.training and (block_shape is None or not recompute)
    normal = "nufft" if case.off_resonance else case.normal
    if case.n_held_out or normal == "nufft" or (offload == "disk" and keeps_all):
        raise ValueError(
            f"n_held_out is {case.n_held_out}, normal {normal!r}, offload {offload!r}, recompute {recompute}: "
            "expected no held-out samples, the Toeplitz normal, and blocks with recompute if there is an offload. "
            "predict_run traces any step."
        )
    sizes = _Sizes(network, case, block_shape)
    if case.training:
        moments = _of_training(sizes, n_unrolls, recompute=recompute, away=offload == "disk")
    else:
        moments = _of_reconstruction(sizes, n_unrolls)
    highest = max(moments, key=lambda moment: sum(moment.values()))
    parts = _staying(sizes, n_unrolls)
    for name, n_bytes in highest.items():
        parts[name] += n_bytes
    rounded = {name: round(parts[name]) for name in PARTS if parts.get(name)}
    return Peak(sum(rounded.values()), parts=rounded)


def work_factor(network: NetworkBytes, case: Case, block_shape: Shape3 | None, *, recompute: bool = True) -> float:
    """Return the regularizer's work over that of naive backprop, or of the whole volume: halo and recomputation."""
    sizes = _Sizes(network, case, block_shape)
    again = 4 / 3 if case.training and recompute and block_shape is not None else 1.0
    return again * sizes.n_blocks * sizes.window / prod(sizes.padded)


class _Sizes:
    """The sizes that the sums are made of: voxels of the windows, bytes of images and of the coil under way."""

    def __init__(self, network: NetworkBytes, case: Case, block_shape: Shape3 | None) -> None:
        self.network, self.case = network, case
        z, y, x = (round_up(n, s) for n, s in zip(case.image_shape, network.stride, strict=True))
        self.padded: Shape3 = (z, y, x)
        self.in_blocks = block_shape is not None
        self.n_blocks, self.window = 1, prod(self.padded)
        if block_shape is not None:
            axes = zip(self.padded, block_shape, network.halo, network.stride, strict=True)
            cuts = [cut_axis(*axis) for axis in axes]
            self.n_blocks = prod(map(len, cuts))
            self.window = prod(cut[0][0].stop - cut[0][0].start for cut in cuts)
        self.at_once = min(self.n_blocks, windows_at_once("cpu"))
        self.n_batches = -(-self.n_blocks // self.at_once)
        self.voxels = self.at_once * self.window  # of one batch
        self.complex = case.dtype.itemsize
        self.image = self.complex * prod(case.image_shape)
        self.output = self.complex * prod(self.padded)  # of the regularizer
        self.channels = self.output * network.n_inputs // 2  # its input
        self.sees = network.n_inputs == 4
        self.many = int(self.n_batches > 1)  # then the batch before is not yet all gone
        pads = self.padded != case.image_shape
        twice = pads and self.sees and self.in_blocks
        self.seen_again = 2 * self.image if twice else 0  # kept before it is padded, and after
        unpadded = self.image * network.n_inputs // 2 if pads else 0
        self.entering = self.channels + unpadded + (0 if self.sees else self.image)  # what goes into the regularizer

    def coil(self) -> int:
        """Return what the normal operator takes beside its result: the coils under way, and the padded grid."""
        shape, c = self.case.image_shape, self.case.dtype.itemsize
        pz, py, px = padded_shape(shape)
        _, ny, nx = shape
        rows = min(ny, slab_rows(pz * nx, "cpu")) * pz * nx
        planes = min(pz, slab_rows(py * px, "cpu")) * py * px
        coils = min(self.case.coils_at_once, self.case.n_coils) * self.image
        grid = c * (pz * ny * nx + 2 * max(rows, planes))
        return (coils if self.case.interpolated_maps else 0) + max(2 * coils + grid, 3 * coils)


def _staying(sizes: _Sizes, n_unrolls: int) -> Parts:
    """Return what is alive all the time: the scan, the operator, the model and its optimizer, the data term."""
    case, network = sizes.case, sizes.network
    shape, c, real = case.image_shape, case.dtype.itemsize, case.dtype.itemsize // 2
    few = [max(3, -(-n // MAP_SPACING)) for n in shape]
    between = sum(n * m for n, m in zip(shape, few, strict=True))
    maps = c * (case.n_coils * prod(few) + between) if case.interpolated_maps else case.n_coils * sizes.image
    trained = network.state + 2 * real * n_unrolls if case.training else 0
    return {
        "weights": network.weights + real * n_unrolls + trained,
        "images": 2.0 * sizes.image,
        "windows": 0.0,
        "maps": maps,
        "kspace": (c * case.n_coils + 16) * case.n_samples,
        "nufft": 4 * prod(padded_shape(shape)) + 12 * case.n_samples,
        "scratch": int(case.scratch_rate * sizes.voxels),
    }


def _of_training(sizes: _Sizes, n: int, *, recompute: bool, away: bool) -> list[Parts]:
    """Return the moments of the last unroll, and the optimizer's step."""
    network, image, sees = sizes.network, sizes.image, sizes.sees
    kept = image + sizes.seen_again  # by each unroll for backward, beside what the regularizer keeps
    inputs = sizes.channels if sizes.in_blocks else 2 * image if sees else 0  # that it keeps of its own
    before = min(n - 1, 1) * image if away else (n - 1) * (kept + inputs)
    loss = image if away or n == 1 else 2 * image  # the reference, and the same in the network's scale
    in_forward = 2 * image + before + sizes.entering + sizes.many * sizes.output
    in_backward = loss + (0 if away else before) + sizes.output + inputs
    graph = sizes.voxels * network.kept + network.casts
    result = sizes.voxels * sizes.complex
    gradients = sizes.many * sizes.voxels * network.n_inputs * sizes.complex / 2  # of the batch before
    if not sizes.in_blocks:
        graphs, backward = (n - 1) * graph, sizes.voxels * network.backward
        forward = graphs + sizes.voxels * network.forward + network.casts - sizes.channels
        moments = [
            _moment(in_forward, forward),
            _moment(in_forward + image, graphs + graph + result),
            _moment(in_backward + backward, graphs + graph),
        ]
    else:
        backward = result + (gradients if recompute else 0) + sizes.voxels * network.backward
        graphs = 0.0 if recompute else (n - 1) * sizes.n_batches * (graph + result)
        alive = 1 if recompute else sizes.n_batches
        forward = sizes.many * result + sizes.voxels * network.plain
        if not recompute:
            forward = graphs + (alive - 1) * (graph + result) + sizes.voxels * network.forward + network.casts
        again = sizes.many * network.weights if recompute else 0  # else the first batch of backward is the peak
        moments = [
            _moment(in_forward, forward),
            _moment(in_backward + sizes.channels, graphs + alive * (graph + result) + backward, again),
        ]
    moments.append(_moment(2 * image + before + (3 if sees else 1) * image, graphs, coil=sizes.coil()))
    if not (sees and n == 1):  # the start needs no gradient
        under_way = (6 if sees else 2) * image  # gradient and result; more, if the regularizer sees the gradient
        back = (0 if sees else image) if away else before
        moments.append(_moment(loss + back + under_way, graphs, coil=sizes.coil()))
    return [*moments, _moment(image, 0, 3 * network.weights)]


def _of_reconstruction(sizes: _Sizes, n: int) -> list[Parts]:
    """Return the moments of the last unroll: nothing is kept but the image before."""
    before = sizes.image if n > 1 else 0
    windows = sizes.voxels * (sizes.network.plain + sizes.many * sizes.complex)
    windows -= 0 if sizes.in_blocks else sizes.channels
    result = sizes.image + (2 * sizes.image if sizes.sees else 0)
    return [
        _moment(before + sizes.entering + sizes.many * sizes.output, windows),
        _moment(before + result, 0, coil=sizes.coil()),
    ]


def _moment(images: float, windows: float, weights: float = 0, *, coil: float = 0) -> Parts:
    return {"images": images, "windows": windows, "weights": weights, "nufft": coil}
