"""One reconstruction by SigPy, in SigPy's own environment: without blockkit and without torch.

``python sigpy_recon.py INPUT.npz OUTPUT.npy APP WEIGHT N_ITERATIONS``: the input holds kspace (coil, sample), maps
(coil, z, y, x), trajectory (sample, 3) in cycles/FOV, columns in the order of the image's axes, and, if the samples
do not all count the same, weights (sample,) of the squared errors. The regularisation weight is a fraction of the
largest magnitude of the adjoint of the weighted data. Prints the seconds from arrays in memory to the image,
after a small reconstruction that lets numba compile.
"""

import sys
import time

import numpy as np
import sigpy.mri


def main(source: str, target: str, app: str, weight: str, n_iterations: str) -> None:
    """Reconstruct and write the image, complex64 (z, y, x)."""
    arrays = np.load(source)
    kspace, maps, trajectory = arrays["kspace"], arrays["maps"], arrays["trajectory"]
    weights = arrays.get("weights")
    few = None if weights is None else weights[:500]
    reconstruct(kspace[:1, :500], maps[:1], trajectory[:500], few, app, 0.1, 2)
    began = time.perf_counter()
    image = reconstruct(kspace, maps, trajectory, weights, app, float(weight), int(n_iterations))
    print(time.perf_counter() - began)
    np.save(target, image)


def reconstruct(
    kspace: np.ndarray,
    maps: np.ndarray,
    trajectory: np.ndarray,
    weights: np.ndarray | None,
    app: str,
    weight: float,
    n_iterations: int,
) -> np.ndarray:
    """Return the image."""
    np.random.seed(0)  # noqa: NPY002, SigPy's power iteration starts from it
    weighted = kspace if weights is None else weights * kspace
    largest = np.abs(sigpy.mri.linop.Sense(maps, coord=trajectory).H(weighted)).max()
    reconstruction = getattr(sigpy.mri.app, app)(
        kspace, maps, weight * largest, weights=weights, coord=trajectory, max_iter=n_iterations, show_pbar=False
    )
    image: np.ndarray = reconstruction.run().astype(np.complex64)
    return image


if __name__ == "__main__":
    main(*sys.argv[1:])
