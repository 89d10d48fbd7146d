"""Where k-space is sampled: radial, stack of stars, cones, phyllotaxis."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blockkit.checks import Shape3, check_count, check_number, check_shape3

GOLDEN_MEANS = (0.465571231876768, 0.682327803828019)
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def radial_3d(n_spokes: int, n_readout: int, image_shape: Sequence[int]) -> Tensor:
    r"""Return diametrical spokes through the center of k-space, spread evenly by the 3D golden means.

    Spoke m points along :math:`u_z = \{m \varphi_1\}` (a half sphere suffices: a spoke has two ends) at the azimuth
    :math:`2\pi \{m \varphi_2\}`, with :math:`\varphi_1 = 0.4656, \varphi_2 = 0.6823` and braces for the fractional
    part, so any number of spokes in a row covers k-space evenly. Sample j lies at
    :math:`k_a = n_a u_a (j - \lfloor R/2 \rfloor)/R` for R samples: the spokes fill an ellipsoid that reaches n/2 on
    each axis, which is a sphere in 1/mm if the voxels are cubes. Where one axis is one voxel thick, k is 0 along it
    and the angles advance by the 2D golden angle of 111.25 degrees.

    Parameters
    ----------
    n_spokes, n_readout
        How many spokes, and samples on each. Twice the largest axis samples the readout without aliasing in a
        doubled FOV.
    image_shape
        ``(z, y, x)``.

    Returns
    -------
    Tensor
        Real, float32, shape ``(n_spokes * n_readout, 3)``, spoke after spoke, columns kz ky kx, cycles/FOV. The
        sample at k = 0 is number ``n_readout // 2`` of each spoke.

    References
    ----------
    .. [1] Chan, Ramsay, Cunningham and Plewes, "Temporal stability of adaptive 3D radial MRI using multidimensional
       golden means", MRM 61:354-363, 2009.
    .. [2] Winkelmann, Schaeffter, Koehler, Eggers and Doessel, "An optimal radial profile order based on the golden
       ratio for time-resolved MRI", IEEE Trans. Med. Imaging 26:68-76, 2007.

    Examples
    --------
    >>> k = bk.radial_3d(n_spokes=50, n_readout=32, image_shape=(16, 12, 16))
    >>> k.shape, k[16]
    (torch.Size([1600, 3]), tensor([0., 0., 0.]))
    """
    shape = check_shape3(image_shape)
    check_count(n_spokes, "n_spokes")
    check_count(n_readout, "n_readout")
    return _spokes(_directions(n_spokes, shape), n_readout, shape)


def spiral_phyllotaxis(n_spokes: int, n_readout: int, image_shape: Sequence[int], *, n_interleaves: int = 1) -> Tensor:
    r"""Return diametrical spokes in the order of a spiral phyllotaxis: each interleaf a spiral from pole to equator.

    Of S spokes, number m points along the polar angle :math:`\theta_m = \frac{\pi}{2} \sqrt{m / S}` from the kz axis
    and the azimuth :math:`m` times 137.51 degrees, the golden angle of leaves and sunflower seeds. Interleaf i of I
    has the spokes i, i + I, i + 2 I, ...: it starts near the pole, at it if i = 0, and covers the half sphere alone.
    If I is a Fibonacci number, such as 21, 34 or 55, spokes in a row are close to each other, so that gradients change
    little and eddy currents with them. The density of directions goes with :math:`\theta / \sin\theta`, 1.57 times as
    much at the equator as at the pole. Samples along a spoke are those of :func:`radial_3d`, and where an axis is one
    voxel thick, so are the spokes.

    Parameters
    ----------
    n_spokes, n_readout
        How many spokes in all, and samples on each.
    image_shape
        ``(z, y, x)``.
    n_interleaves
        How many interleaves; with 1, the azimuth advances by the golden angle from each spoke to the next. If it does
        not divide ``n_spokes``, the first ones have a spoke more.

    Returns
    -------
    Tensor
        Real, float32, shape ``(n_spokes * n_readout, 3)``, interleaf after interleaf, spoke after spoke, columns
        kz ky kx, cycles/FOV. The sample at k = 0 is number ``n_readout // 2`` of each spoke.

    Raises
    ------
    ValueError
        If there are fewer spokes than interleaves, or a count is below 1.

    References
    ----------
    .. [1] Piccini, Littmann, Nielles-Vallespin and Zenge, "Spiral phyllotaxis: the natural way to construct a 3D radial
       trajectory in MRI", MRM 66:1049-1056, 2011, doi:10.1002/mrm.22898.

    Examples
    --------
    >>> bk.spiral_phyllotaxis(55, 32, (16, 12, 16), n_interleaves=5).shape
    torch.Size([1760, 3])
    """
    shape = check_shape3(image_shape)
    check_count(n_spokes, "n_spokes")
    check_count(n_readout, "n_readout")
    if check_count(n_interleaves, "n_interleaves") > n_spokes:
        raise ValueError(f"n_interleaves is {n_interleaves}, expected at most n_spokes = {n_spokes}.")
    directions = _directions(n_spokes, shape)
    if min(shape) > 1:
        m = torch.arange(n_spokes, dtype=torch.float64)
        polar, azimuth = math.pi / 2 * (m / n_spokes).sqrt(), 2 * math.pi * ((m * (1 - GOLDEN_RATIO)) % 1)
        directions = torch.stack([polar.cos(), polar.sin() * azimuth.sin(), polar.sin() * azimuth.cos()], dim=1)
    order = torch.cat([torch.arange(first, n_spokes, n_interleaves) for first in range(n_interleaves)])
    return _spokes(directions[order], n_readout, shape)


def stack_of_stars(n_spokes: int, n_readout: int, image_shape: Sequence[int]) -> Tensor:
    r"""Return spokes within planes of constant kz: golden angles in the plane, whole numbers of kz across them.

    The spokes are shared out evenly: with P = nz planes and S spokes each plane gets S / P of them, rounded up or down;
    if there are fewer spokes than planes, the planes that get one are evenly spaced, and kz = 0 is always among them.
    Spokes go through one plane after another, and the angle advances by the 2D golden angle of 111.25 degrees from each
    spoke to the next, so each plane has its spokes evenly spread and turned against those of its neighbors. The samples
    fill an elliptic cylinder along z that reaches n/2 on each axis. Where nz is 1, this is :func:`radial_3d`.

    Parameters
    ----------
    n_spokes, n_readout
        How many spokes in all, and samples on each. ``nz * n * pi / 2`` spokes, with n the larger of ny and nx, leave
        at most one cycle/FOV between neighbors.
    image_shape
        ``(z, y, x)``.

    Returns
    -------
    Tensor
        Real, float32, shape ``(n_spokes * n_readout, 3)``, spoke after spoke, columns kz ky kx, cycles/FOV. The
        sample at ky = kx = 0 is number ``n_readout // 2`` of each spoke.

    References
    ----------
    .. [1] Block et al., "Towards routine clinical use of radial stack-of-stars 3D gradient-echo sequences for reducing
       motion sensitivity", J. Korean Soc. Magn. Reson. Med. 18:87-106, 2014.
    .. [2] Winkelmann, Schaeffter, Koehler, Eggers and Doessel, "An optimal radial profile order based on the golden
       ratio for time-resolved MRI", IEEE Trans. Med. Imaging 26:68-76, 2007.

    Examples
    --------
    >>> k = bk.stack_of_stars(64, 32, (16, 12, 16))
    >>> k.shape, k[:, 0].unique().tolist() == list(range(-8, 8))
    (torch.Size([2048, 3]), True)
    """
    n_planes, n_rows, n_columns = check_shape3(image_shape)
    k = radial_3d(n_spokes, n_readout, (1, n_rows, n_columns))
    from_middle = torch.arange(n_spokes) - n_spokes // 2
    plane = (n_planes // 2 + torch.div(from_middle * n_planes, n_spokes, rounding_mode="floor")) % n_planes
    k[:, 0] = (plane - n_planes // 2).repeat_interleave(n_readout)
    return k


def cones(n_interleaves: int, n_readout: int, image_shape: Sequence[int], *, n_turns: float = 0.25) -> Tensor:
    r"""Return readouts that wind through the center of k-space, each on a double cone around the kz axis.

    Interleaf m starts from the center in the direction of spoke m of :func:`radial_3d`, at the angle
    :math:`\theta_m` to the kz axis, and turns about that axis in proportion to its distance from the center, by
    ``n_turns`` / :math:`\sin \theta_m` turns at the edge: an Archimedean spiral on a cone, with another on the opposite
    cone, point by point at minus k. All interleaves are equally long and their samples equally spaced, so a sample's
    number says its distance from the center, and at each distance the directions are as even as those of the spokes,
    whatever the number of interleaves. They fill the ellipsoid of :func:`radial_3d`. Gradients of a scanner are not
    looked at. Where one axis is one voxel thick, the readouts are spirals in the plane of the other two.

    Parameters
    ----------
    n_interleaves, n_readout
        How many interleaves, and samples on each, from edge to edge.
    image_shape
        ``(z, y, x)``.
    n_turns
        Turns of an interleaf on the equator from the center to the edge. With a quarter and twice as many samples as
        the largest axis n has voxels, neighbors along the path are 0.66 cycles/FOV apart, for 0.5 on a spoke. Wind
        more, and a longer readout is needed to keep that. With 0 the interleaves are the spokes of :func:`radial_3d`.

    Returns
    -------
    Tensor
        Real, float32, shape ``(n_interleaves * n_readout, 3)``, interleaf after interleaf, columns kz ky kx,
        cycles/FOV. The sample at k = 0 is number ``n_readout // 2`` of each interleaf.

    Raises
    ------
    ValueError
        If ``n_turns`` is negative or not finite, or a count is below 1.

    References
    ----------
    .. [1] Gurney, Hargreaves and Nishimura, "Design and analysis of a practical 3D cones trajectory",
       MRM 55:575-582, 2006.

    Examples
    --------
    >>> bk.cones(50, 32, (16, 12, 16)).shape
    torch.Size([1600, 3])
    """
    shape = check_shape3(image_shape)
    check_count(n_interleaves, "n_interleaves")
    check_count(n_readout, "n_readout")
    if not 0 <= check_number(n_turns, "n_turns") < math.inf:
        raise ValueError(f"n_turns is {n_turns}, expected a number of at least 0, such as 0.25.")
    radius = _spiral_radii(n_readout, n_turns)
    directions = _directions(n_interleaves, shape)[:, None].repeat(1, n_readout, 1)
    thick = [axis for axis in range(3) if shape[axis] > 1]
    if len(thick) > 1:
        a, b = directions[..., thick[-2]].clone(), directions[..., thick[-1]].clone()
        angle = 2 * math.pi * n_turns * 2 * radius.abs() / torch.hypot(a, b)
        directions[..., thick[-2]] = a * angle.cos() + b * angle.sin()
        directions[..., thick[-1]] = b * angle.cos() - a * angle.sin()
    sizes = torch.tensor([n if n > 1 else 0 for n in shape], dtype=torch.float64)
    return (radius[:, None] * directions * sizes).reshape(-1, 3).float()


def _spiral_radii(n_readout: int, n_turns: float) -> Tensor:
    """Return the signed distances from the center, -0.5 to 0.5, of samples equally spaced along a spiral."""
    fine = np.linspace(0, 0.5, 2**14)
    speed = np.sqrt(1 + (4 * np.pi * n_turns * fine) ** 2)
    length = np.concatenate([[0], np.cumsum(speed[1:] + speed[:-1])])
    places = (np.arange(n_readout) - n_readout // 2) / n_readout
    return torch.from_numpy(np.sign(places) * np.interp(2 * np.abs(places), length / length[-1], fine))


def _spokes(directions: Tensor, n_readout: int, shape: Shape3) -> Tensor:
    """Return straight readouts through the center along unit vectors, shape ``(spoke * sample, 3)``."""
    sizes = torch.tensor([n if n > 1 else 0 for n in shape], dtype=torch.float64)
    radius = (torch.arange(n_readout, dtype=torch.float64) - n_readout // 2) / n_readout
    return (radius[None, :, None] * (directions * sizes)[:, None, :]).reshape(-1, 3).float()


def _directions(n_spokes: int, shape: Shape3) -> Tensor:
    m = torch.arange(n_spokes, dtype=torch.float64)
    directions = torch.zeros(n_spokes, 3, dtype=torch.float64)
    thick = [axis for axis in range(3) if shape[axis] > 1]
    if len(thick) == 3:
        height = (m * GOLDEN_MEANS[0]) % 1
        angle = 2 * math.pi * ((m * GOLDEN_MEANS[1]) % 1)
        across = (1 - height**2).sqrt()
        return torch.stack([height, across * angle.sin(), across * angle.cos()], dim=1)
    if len(thick) == 2:
        angle = math.pi * ((m * GOLDEN_RATIO) % 1)
        directions[:, thick[0]], directions[:, thick[1]] = angle.sin(), angle.cos()
    elif len(thick) == 1:
        directions[:, thick[0]] = 1
    return directions
