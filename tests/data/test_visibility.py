import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from blockkit.data.centerlines import Centerlines, vessel_centerlines
from blockkit.data.phantom import pulmonary_phantom
from blockkit.data.render import Grid, draw_tubes, voxel_size_mm
from blockkit.data.visibility import background_mask, invented_vessels, vessel_scores

SHAPE = (40, 36, 38)
TUBES = {  # start and end in voxels, and radius: two of about 1 voxel in diameter, one of 2
    "thin": ((4, 10, 10), (35, 12, 9), 0.55),
    "slanted": ((6, 25, 6), (34, 26, 30), 0.6),
    "wide": ((20, 6, 5), (19, 8, 33), 1.1),
}


def draw(names, value=1.0):
    """Lung of 0.1 with vessels of ``value`` in it."""
    grid = Grid(*(np.arange(n, dtype=np.float32) for n in SHAPE), (1.0, 1.0, 1.0))
    part = np.zeros(SHAPE, np.float32)
    for start, end, radius in (TUBES[name] for name in names):
        draw_tubes(part, grid, np.array([start], np.float32), np.array([end], np.float32), np.array([radius]))
    return ndimage.gaussian_filter(0.1 + (value - 0.1) * part, 0.6)


def make_lines(names=tuple(TUBES)):
    """The centerlines of the vessels, in lungs that fill all but the rim; voxels of 5 mm."""
    points, directions, radii, lengths = [], [], [], []
    for start, end, radius in (TUBES[name] for name in names):
        along = np.subtract(end, start).astype(float)
        parts = (np.arange(30) + 0.5)[:, None] / 30
        points.append(start + parts * along)
        directions.append(np.tile(along / np.linalg.norm(along), (30, 1)))
        radii.append(np.full(30, radius))
        lengths.append(np.full(30, np.linalg.norm(along) / 30))
    lungs = np.zeros(SHAPE, bool)
    lungs[1:-1, 1:-1, 1:-1] = True
    stacked = (np.concatenate(values) for values in (points, directions, radii, lengths))
    return Centerlines(*stacked, lungs, (5.0, 5.0, 5.0))


def grain(size, seed=0):
    return size * np.random.default_rng(seed).normal(size=SHAPE)


def visible(image, reference, lines=None):
    """Visible part of the vessels of about 1 voxel, and of about 2."""
    return [score.visible for score in vessel_scores(image, reference, lines or make_lines())[1:3]]


REFERENCE = draw(TUBES) + grain(0.01)


def test_in_the_reference_every_counted_vessel_is_visible_and_none_is_invented():
    scores = vessel_scores(REFERENCE, REFERENCE, make_lines())
    assert [score.diameters for score in scores] == [(0.375, 0.75), (0.75, 1.5), (1.5, 3.0), (3.0, 6.0)]
    lengths = {name: np.linalg.norm(np.subtract(end, start)) for name, (start, end, _) in TUBES.items()}
    assert scores[1].length == pytest.approx(lengths["thin"] + lengths["slanted"], rel=0.1)
    assert scores[2].length == pytest.approx(lengths["wide"], rel=0.1)
    assert scores[1].visible == scores[2].visible == 1
    assert scores[2].cnr > scores[1].cnr > 10
    assert invented_vessels(REFERENCE, REFERENCE, make_lines()) == 0


def test_classes_without_a_vessel_have_no_score():
    empty = vessel_scores(REFERENCE, REFERENCE, make_lines())[3]
    assert empty.length == 0
    assert np.isnan(empty.cnr)
    assert np.isnan(empty.visible)


def test_a_vessel_that_is_missing_is_not_visible_and_the_others_are():
    without = draw(["thin", "wide"]) + grain(0.01)
    lengths = [np.linalg.norm(np.subtract(*TUBES[name][:2])) for name in ("thin", "slanted")]
    one, two = visible(without, REFERENCE)
    assert one == pytest.approx(lengths[0] / sum(lengths), abs=0.05)
    assert two == 1
    assert invented_vessels(without, REFERENCE, make_lines()) == 0


def test_a_blur_hides_thin_vessels_before_wide_ones():
    one, two = visible(ndimage.gaussian_filter(REFERENCE, 0.8), REFERENCE)
    assert one < 0.5 < two
    assert visible(ndimage.gaussian_filter(REFERENCE, 1.5), REFERENCE) == [0, 0]


@pytest.mark.parametrize(("left", "expected"), [(0.55, 1), (0.45, 0)])
def test_half_of_the_contrast_of_the_reference_is_the_limit(left, expected):
    faded = 0.1 + left * (draw(TUBES) - 0.1)
    assert visible(faded, draw(TUBES)) == [expected, expected]


def test_noise_lowers_the_contrast_to_noise_ratio_and_hides_vessels():
    clean = vessel_scores(REFERENCE, REFERENCE, make_lines())[1]
    noisy = [vessel_scores(REFERENCE + grain(size, 1), REFERENCE, make_lines())[1] for size in (0.03, 0.3)]
    assert noisy[0].cnr == pytest.approx(clean.cnr / 10**0.5, rel=0.15)
    assert noisy[0].visible == 1
    assert noisy[1].cnr < 2
    assert noisy[1].visible < 0.6


def test_vessels_that_the_reference_does_not_show_do_not_count():
    scores = vessel_scores(REFERENCE, draw(["wide"]) + grain(0.01), make_lines())
    assert scores[1].length < 4
    assert scores[2].length > 25


def test_vessels_that_are_not_in_the_reference_are_invented():
    lines, reference = make_lines(["thin"]), draw(["thin"]) + grain(0.01)
    shares = [
        invented_vessels(draw(["thin", *added]) + grain(0.01), reference, lines)
        for added in ([], ["slanted"], ["slanted", "wide"])
    ]
    assert shares[0] == 0
    assert 0.3 < shares[1] < 0.7  # of two vessels about as long and as wide, one
    assert shares[1] + 0.1 < shares[2] < 1


def test_a_vessel_that_moved_is_lost_in_one_place_and_invented_in_the_other():
    reference, image = draw(["thin", "wide"]), draw(["slanted", "wide"])
    lines = make_lines(["thin", "wide"])
    assert visible(image, reference, lines)[0] < 0.1
    assert invented_vessels(image, reference, lines) > 0


def test_strong_noise_looks_like_vessels_and_a_little_does_not():
    shares = [invented_vessels(REFERENCE + grain(size, 1), REFERENCE, make_lines()) for size in (0.03, 0.15, 0.3)]
    assert shares[0] == 0
    assert 0.1 < shares[1] < shares[2] < 1


def test_the_background_keeps_away_from_vessels_and_pleura():
    free = background_mask(make_lines())
    lines = make_lines()
    assert free.any()
    assert not free[[0, 1, -2, -1]].any()
    place = np.stack(np.nonzero(free), axis=1)
    for point, radius in zip(lines.points, lines.radii, strict=True):
        assert np.linalg.norm(place - point, axis=1).min() > radius + 0.2


def test_images_and_centerlines_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"Write vessel_centerlines\(\(5, 6, 7\), seed"):
        vessel_scores(np.ones((5, 6, 7)), np.ones((5, 6, 7)), make_lines())
    with pytest.raises(ValueError, match="expected the reference's shape"):
        invented_vessels(REFERENCE[1:], REFERENCE, make_lines())
    with pytest.raises(ValueError, match="no visible vessel"):
        invented_vessels(REFERENCE, np.ones(SHAPE), make_lines())
    nothing = dataclasses.replace(make_lines(), lungs=np.zeros(SHAPE, bool))
    with pytest.raises(ValueError, match="no voxel of the lungs is background"):
        vessel_scores(REFERENCE, REFERENCE, nothing)


def test_one_person_has_the_same_vessels_in_mm_on_every_grid():
    coarse, fine = (vessel_centerlines(shape, seed=4) for shape in ((32, 26, 30), (81, 60, 72)))
    places = []
    for lines in (coarse, fine):
        shape = np.array(lines.lungs.shape)
        places.append((lines.points - shape // 2) * voxel_size_mm(lines.lungs.shape))
        size = np.prod(lines.voxel_size)
        assert lines.lungs.sum() * size == pytest.approx(coarse.lungs.sum() * np.prod(coarse.voxel_size), rel=0.03)
        np.testing.assert_allclose(np.linalg.norm(lines.directions, axis=1), 1)
        assert (lines.radii * size ** (1 / 3)).max() == pytest.approx(
            coarse.radii.max() * np.prod(coarse.voxel_size) ** (1 / 3)
        )
    np.testing.assert_allclose(*places, atol=1e-9)


def test_another_seed_is_another_person():
    one, other = (vessel_centerlines((32, 26, 30), seed=seed) for seed in (4, 5))
    assert len(one.points) != len(other.points)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 3020])
def test_the_centerlines_run_along_the_vessels_of_the_phantom(seed):
    shape = (96, 72, 96)
    image = np.abs(pulmonary_phantom(shape, seed=seed).numpy())
    lines = vessel_centerlines(shape, seed=seed)
    scores = vessel_scores(image, image, lines)
    for score, least in zip(scores[1:3], (0.8, 0.75), strict=True):
        width = 2 * lines.radii
        drawn = lines.lengths[(width >= score.diameters[0]) & (width < score.diameters[1])].sum()
        assert score.length > least * drawn
    moved = dataclasses.replace(lines, points=np.clip(lines.points + 4, 0, np.array(shape) - 1))
    assert vessel_scores(image, image, moved)[1].length < 0.5 * scores[1].length
