"""The public face changes only when somebody means it to."""

import difflib
import subprocess
import sys
from pathlib import Path

import blockkit as bk
from tools.public_api import LOADED_WHEN_ASKED_FOR, STORED, public_api

ROOT = Path(__file__).parents[1]


def test_the_public_face_is_the_one_that_was_written_down() -> None:
    stored = STORED.read_text(encoding="utf-8").splitlines()
    changes = list(difflib.unified_diff(stored, public_api().splitlines(), "written down", "now", lineterm="", n=0))
    assert not changes, (
        "If this was meant: python tools/public_api.py --write, and a line in CHANGELOG.md\n" + "\n".join(changes)
    )


def test_a_parameter_more_or_another_default_is_seen() -> None:
    assert "bk.psnr(image, reference, *, mask=None)" in public_api()
    assert "class bk.SliceViewer(" in public_api()
    assert "0x" not in public_api()


def test_every_public_name_is_there_and_documented() -> None:
    for name in [*bk.__all__, *LOADED_WHEN_ASKED_FOR]:
        assert (getattr(bk, name).__doc__ or "").strip(), name


def test_importing_blockkit_loads_nothing_that_only_pictures_and_notebooks_need() -> None:
    unwanted = ["IPython", "anywidget", "finufft", "ipywidgets", "jupyterlab", "matplotlib", "torchkbnufft"]
    code = f"import sys, blockkit; print([name for name in {unwanted} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_blockkit_reconstructs_where_nothing_to_draw_with_and_no_torchkbnufft_is_installed() -> None:
    absent = ["IPython", "anywidget", "ipywidgets", "jupyterlab", "matplotlib", "torchkbnufft", "traitlets"]
    code = f"""
import sys
sys.modules.update(dict.fromkeys({absent}))  # importing one of them fails from here on
import blockkit as bk
volume = bk.pulmonary_phantom((18, 15, 21))
scan = bk.simulate_scan(volume, (12, 10, 14), n_coils=2, n_spokes=40)
A = bk.Encoding(scan.trajectory, scan.maps)
image = bk.compressed_sensing(A, scan.kspace, n_iterations=2, wavelet="haar")
print(tuple(image.shape))
try:
    bk.NUFFT(scan.trajectory, scan.image_shape, engine="torchkbnufft")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "(12, 10, 14)"
    assert "torchkbnufft" in second
