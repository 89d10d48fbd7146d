import itertools
import math

import numpy as np
import pytest
import torch

from blockkit.metrics import nrmse, psnr, ssim

SHAPES = [(9, 12, 7), (1, 16, 15), (5, 30, 8), (2, 3, 11), (1, 1, 8), (20, 17)]


def complex_image(shape, seed=0):
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_images_score_perfectly(shape):
    x = complex_image(shape)
    assert nrmse(x, x) == 0
    assert psnr(x, x) == math.inf
    assert ssim(x, x) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("metric", [nrmse, psnr, ssim])
@pytest.mark.parametrize("shape", SHAPES)
def test_only_magnitude_counts_and_both_units_scale_together(metric, shape):
    x, r = complex_image(shape), complex_image(shape, 1)
    score = metric(x, r)
    assert isinstance(score, float)
    assert metric(x * 1j, r * torch.exp(torch.tensor(0.3j))) == pytest.approx(score, rel=1e-5)
    assert metric(1e-6 * x, 1e-6 * r) == pytest.approx(score, rel=1e-5)
    assert metric(x.numpy(), r.conj()) == pytest.approx(score, rel=1e-5)
    assert metric(2 * x, r) != pytest.approx(score, rel=1e-3)


def test_figures_computed_by_hand():
    r = np.array([[[3.0, 4j], [0, 0]]])
    x = np.array([[[0.0, 4.0], [0, 0]]])
    assert nrmse(x, r) == pytest.approx(3 / 5)
    assert psnr(x, r) == pytest.approx(10 * math.log10(16 / (9 / 4)))
    mask = np.array([[[True, False], [True, False]]])
    assert nrmse(x, r, mask=mask) == pytest.approx(1)
    assert psnr(x, r, mask=torch.from_numpy(mask)) == pytest.approx(10 * math.log10(16 / (9 / 2)))


@pytest.mark.parametrize("shape", [(9, 12, 7), (1, 16, 15), (2, 9, 11), (4, 20, 20)])
def test_ssim_falls_with_noise_and_is_that_of_the_formula(shape):
    r = complex_image(shape).abs().double().numpy()
    noise = complex_image(shape, 1).abs().double().numpy()
    scores = [ssim(r + s * noise, r) for s in (0, 0.1, 0.3, 1)]
    assert all(a > b for a, b in itertools.pairwise(scores))
    x = r + noise
    side = 3 if shape[0] == 4 else 7
    window = [1 if n < 3 else side for n in shape]
    windows = np.lib.stride_tricks.sliding_window_view(np.stack([x, r]), window, axis=(1, 2, 3)).reshape(
        2, -1, math.prod(window)
    )
    (mx, mr), (vx, vr) = windows.mean(-1), windows.var(-1, ddof=1)
    n = math.prod(window)
    covariance = ((windows[0] - mx[:, None]) * (windows[1] - mr[:, None])).sum(-1) / (n - 1)
    c1, c2 = (0.01 * r.max()) ** 2, (0.03 * r.max()) ** 2
    by_hand = (2 * mx * mr + c1) * (2 * covariance + c2) / ((mx**2 + mr**2 + c1) * (vx + vr + c2))
    assert ssim(x, r) == pytest.approx(by_hand.mean(), rel=1e-6)


@pytest.mark.parametrize("shape", [(9, 12, 10), (1, 16, 16), (16, 2, 16)])
def test_ssim_in_a_mask_sees_only_the_mask(shape):
    r = complex_image(shape)
    x = r.clone()
    x[..., shape[-1] // 2 + 4 :] += 1
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[..., : shape[-1] // 2] = True
    assert ssim(x, r, mask=mask) == pytest.approx(1, abs=1e-12)
    assert ssim(x, r, mask=~mask) < 0.95


@pytest.mark.parametrize("metric", [nrmse, psnr, ssim])
def test_wrong_input_is_refused_with_a_helpful_message(metric):
    r = complex_image((4, 5, 6))
    with pytest.raises(ValueError, match=r"image has shape \(6, 5, 4\), expected .* \(4, 5, 6\)"):
        metric(r.permute(2, 1, 0), r)
    with pytest.raises(ValueError, match=r"pass image\[0\]|Pass image\[0\]"):
        metric(r[None], r)
    with pytest.raises(ValueError, match="swapped"):
        metric(r, torch.zeros_like(r))
    bad = r.clone()
    bad[0, 0, 0] = complex(0, math.nan)
    with pytest.raises(ValueError, match="image has 1 values that are NaN"):
        metric(bad, r)
    with pytest.raises(ValueError, match="reference has 1 values that are NaN"):
        metric(r, bad)
    with pytest.raises(TypeError, match="mask > 0"):
        metric(r, r, mask=torch.ones(4, 5, 6))
    with pytest.raises(ValueError, match="no True voxel"):
        metric(r, r, mask=torch.zeros(4, 5, 6, dtype=torch.bool))
    with pytest.raises(ValueError, match="mask has shape"):
        metric(r, r, mask=torch.ones(4, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="at least one voxel"):
        metric(r[:0], r[:0])


@pytest.mark.parametrize("metric", [nrmse, psnr, ssim])
def test_a_scan_without_a_reference_is_said(metric):
    with pytest.raises(TypeError, match=r"reference is None, .* no image to compare with"):
        metric(complex_image((4, 5, 6)), None)


@pytest.mark.parametrize("metric", [nrmse, psnr, ssim])
def test_an_image_that_is_missing_or_infinite_is_said_without_a_word_about_the_scan(metric):
    r = complex_image((4, 5, 6))
    with pytest.raises(TypeError, match=r"^image is None, expected a tensor or an array\.$"):
        metric(None, r)
    bad = r.numpy().copy()
    bad[1:, 0, 0] = np.inf
    with pytest.raises(ValueError, match="image has 3 values that are NaN or infinite"):
        metric(bad, r)
    with pytest.raises(TypeError, match="mask has dtype uint8, expected bool"):
        metric(r, r, mask=np.ones((4, 5, 6), np.uint8))


@pytest.mark.parametrize("metric", [nrmse, psnr, ssim])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_as_it_is(metric, half):
    x, r = (complex_image((4, 5, 6), seed).abs().to(half) for seed in (0, 1))
    assert metric(x, r) == metric(x.double(), r.double())


def test_nrmse_in_a_mask_where_the_reference_is_zero_is_refused():
    r = torch.ones(2, 2, 2)
    r[0] = 0
    with pytest.raises(ValueError, match="all zero inside the mask"):
        nrmse(r + 1, r, mask=r == 0)


def test_ssim_of_a_single_voxel_is_refused():
    with pytest.raises(ValueError, match="at least one axis of 3"):
        ssim(torch.ones(1, 2, 1), torch.ones(1, 2, 1))


def test_images_that_need_gradients_are_taken_as_they_are():
    x = complex_image((4, 5, 6)).requires_grad_()
    assert psnr(x, x.detach() + 1) > 0
