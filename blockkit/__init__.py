"""Block-wise model-based deep learning for 3D non-Cartesian MRI.

Follow one volume: a scan, its encoding operator A, the unrolled network, blocks, an image, slices.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from blockkit.blockwise.blocks import apply_blockwise
from blockkit.blockwise.memory import measure_peak, predict_peak
from blockkit.blockwise.reach import reach
from blockkit.classic.compressed_sensing import compressed_sensing, tune_reg_weight
from blockkit.data.arrays import load_arrays
from blockkit.data.cfl import load_cfl, save_cfl
from blockkit.data.dicom import save_dicom
from blockkit.data.folder import ScanFolder
from blockkit.data.formats import save_nifti
from blockkit.data.ismrmrd import load_ismrmrd
from blockkit.data.ismrmrd_write import save_ismrmrd
from blockkit.data.opening import make_scan, open_scan
from blockkit.data.phantom import pulmonary_phantom
from blockkit.data.raw import RawScan
from blockkit.data.scan import Scan, load_scan
from blockkit.data.simulate import simulate_scan
from blockkit.folders.folder_recon import reconstruct_folder
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.planner import plan
from blockkit.mbdl.training import fit
from blockkit.mbdl.unrolled import UnrolledNetwork
from blockkit.mbdl.weights import load_model, pretrained, save_weights
from blockkit.metrics import nrmse, psnr, ssim
from blockkit.physics.calibration import estimate_maps
from blockkit.physics.channels import compress_coils, mix_coils, outer_samples, prewhiten, whitening_matrix
from blockkit.physics.coils import simulate_maps
from blockkit.physics.delays import estimate_delays
from blockkit.physics.density import density_compensation
from blockkit.physics.fourier import NUFFT, DirectFourier, Toeplitz
from blockkit.physics.generators import floret, from_mrinufft
from blockkit.physics.linop import LinearOperator, adjoint_error
from blockkit.physics.maps import InterpolatedMaps
from blockkit.physics.off_resonance import OffResonance
from blockkit.physics.readouts import crop_kspace, delay_gradients, select_readouts, shift_fov
from blockkit.physics.sense import Encoding
from blockkit.physics.trajectory import cones, radial_3d, spiral_phyllotaxis, stack_of_stars

if TYPE_CHECKING:
    from blockkit.show.explorer import MemoryExplorer as MemoryExplorer
    from blockkit.show.slices import SliceViewer as SliceViewer
    from blockkit.show.training_view import TrainingView as TrainingView

__version__ = "0.1.0"

__all__ = [
    "NUFFT",
    "DirectFourier",
    "Encoding",
    "InterpolatedMaps",
    "LinearOperator",
    "OffResonance",
    "RawScan",
    "ResidualCNN",
    "Scan",
    "ScanFolder",
    "Toeplitz",
    "UnrolledNetwork",
    "adjoint_error",
    "apply_blockwise",
    "compress_coils",
    "compressed_sensing",
    "cones",
    "crop_kspace",
    "delay_gradients",
    "density_compensation",
    "estimate_delays",
    "estimate_maps",
    "fit",
    "floret",
    "from_mrinufft",
    "load_arrays",
    "load_cfl",
    "load_ismrmrd",
    "load_model",
    "load_scan",
    "make_scan",
    "measure_peak",
    "mix_coils",
    "nrmse",
    "open_scan",
    "outer_samples",
    "plan",
    "predict_peak",
    "pretrained",
    "prewhiten",
    "psnr",
    "pulmonary_phantom",
    "radial_3d",
    "reach",
    "reconstruct_folder",
    "save_cfl",
    "save_dicom",
    "save_ismrmrd",
    "save_nifti",
    "save_weights",
    "select_readouts",
    "shift_fov",
    "simulate_maps",
    "simulate_scan",
    "spiral_phyllotaxis",
    "ssim",
    "stack_of_stars",
    "tune_reg_weight",
    "whitening_matrix",
]


def __getattr__(name: str) -> Any:
    """Load the drawing wing, with matplotlib and ipywidgets, only when someone asks for it."""
    if name == "show":
        return import_module("blockkit.show")
    if name in ("MemoryExplorer", "SliceViewer", "TrainingView"):
        return getattr(import_module("blockkit.show"), name)
    raise AttributeError(f"module 'blockkit' has no attribute {name!r}")
