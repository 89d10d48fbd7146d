"""The weights that ship, on phantoms never trained on."""

from importlib.resources import files

import pytest
import torch

from blockkit.classic.compressed_sensing import compressed_sensing
from blockkit.data.phantom import pulmonary_phantom
from blockkit.data.simulate import simulate_scan
from blockkit.mbdl.weights import SHIPPED, pretrained, save_weights
from blockkit.metrics import psnr, ssim
from blockkit.physics.sense import Encoding


def make_scan(seed, image_shape=(48, 40, 48)):
    volume = pulmonary_phantom(tuple(3 * n // 2 for n in image_shape), seed=seed)
    n_spokes = round(torch.pi / 2 * max(image_shape) ** 2 / 8)
    return simulate_scan(volume, image_shape, n_coils=4, n_spokes=n_spokes, noise=0.02, seed=seed)


@torch.no_grad()
def reconstruct(scan, block_shape=None):
    model = pretrained()
    model.block_shape = block_shape
    return model(Encoding(scan.trajectory, scan.maps), scan.kspace)


def test_it_is_better_than_gridding_by_decibels():
    scan = make_scan(3100)
    A = Encoding(scan.trajectory, scan.maps)
    gridding, image = A.adjoint(A.dcf * scan.kspace), reconstruct(scan)
    assert psnr(image, scan.reference) > psnr(gridding, scan.reference) + 6
    assert ssim(image, scan.reference) > ssim(gridding, scan.reference) + 0.08


def test_the_file_is_the_one_that_its_weights_give(tmp_path):
    save_weights(pretrained(), tmp_path / SHIPPED, compact=True)
    assert (tmp_path / SHIPPED).read_bytes() == (files("blockkit_samples") / SHIPPED).read_bytes()


def test_blocks_give_the_whole_volume_s_image():
    scan = make_scan(3101)
    whole, blocks = reconstruct(scan), reconstruct(scan, (16, 16, 16))
    assert torch.linalg.vector_norm(blocks - whole) < 1e-4 * torch.linalg.vector_norm(whole)


@pytest.mark.slow
def test_it_is_better_than_converged_compressed_sensing_at_its_tuned_weight():
    scan = make_scan(3003)
    A, image = Encoding(scan.trajectory, scan.maps), reconstruct(scan)
    rival = compressed_sensing(A, scan.kspace, reg_weight=4e-5, n_iterations=400)  # benchmarks/quality.py tunes it
    assert psnr(image, scan.reference) > psnr(rival, scan.reference) + 3.5
    assert ssim(image, scan.reference) > ssim(rival, scan.reference) + 0.03
