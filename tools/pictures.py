"""Make the pictures of the README: the slice viewer and the memory explorer, as they look in JupyterLab.

    python tools/pictures.py      writes docs/images/slice_viewer.png and docs/images/memory_explorer.png

Needs a chromium or chrome and playwright: ``make pictures`` installs the latter.
"""

import sys
from pathlib import Path
from typing import Any

import torch

import blockkit as bk

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tools.lab_browser import Lab, chromium, lab_server  # noqa: E402

FOLDER = ROOT / "docs" / "images"
MOST_BYTES = 300_000
WIDTH = 1280
REG_WEIGHT, N_ITERATIONS = 2e-4, 40  # as notebooks/05_compare.ipynb tunes them
VIEWER = """import torch
import blockkit as bk
viewer = bk.SliceViewer(torch.load({path!r}), orientation="HAR")
viewer"""
EXPLORER = """import blockkit as bk
bk.MemoryExplorer(image_shape=(300, 200, 300), budget_gib=24)"""
PAINTED = """() => {
  const root = document.querySelector('.blockkit-viewer');
  const scored = !root.textContent.includes('…');
  return scored && root.dataset.frames !== '0' && root.ariaBusy === 'false';
}"""


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    volumes = reconstruct()
    with lab_server() as lab, chromium() as browser:
        for name, make in (("slice_viewer", picture_viewer), ("memory_explorer", picture_explorer)):
            path = FOLDER / f"{name}.png"
            make(lab, browser, path, volumes)
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB", flush=True)
            if path.stat().st_size > MOST_BYTES:
                print(f"That is more than {MOST_BYTES / 1e3:.0f} kB.", file=sys.stderr)
                return 1
    return 0


def reconstruct() -> dict[str, torch.Tensor]:
    """Return the columns of the viewer, from the sample scan."""
    scan = bk.load_scan(ROOT / "data_samples" / "phantom_scan.h5")
    A = bk.Encoding(scan.trajectory, scan.maps)
    weights = A.dcf.sqrt()
    weighted, kspace = A.weighted(weights), weights.sqrt() * scan.kspace
    sparse = bk.compressed_sensing(weighted, kspace, reg_weight=REG_WEIGHT, n_iterations=N_ITERATIONS)
    with torch.no_grad():
        image = bk.pretrained()(A, scan.kspace)
    assert scan.reference is not None
    error = image.abs() - scan.reference.abs()
    return {"CS": sparse, "MBDL": image, "reference": scan.reference, "error of MBDL": error}


def picture_viewer(lab: Lab, browser: Any, path: Path, volumes: dict[str, torch.Tensor]) -> None:
    """Take a picture of the viewer when its scores are there."""
    kept = lab.folder / "volumes.pt"
    torch.save(volumes, kept)
    page = lab.open(browser, [VIEWER.format(path=str(kept))], width=WIDTH)
    page.wait_for_function(PAINTED, timeout=180_000)
    page.locator(".blockkit-viewer").screenshot(path=path)
    page.close()


def picture_explorer(lab: Lab, browser: Any, path: Path, _: dict[str, torch.Tensor]) -> None:
    """Take a picture of the explorer as it opens."""
    page = lab.open(browser, [EXPLORER], width=WIDTH)
    page.locator(".blockkit-explorer").scroll_into_view_if_needed()
    page.locator(".blockkit-explorer").screenshot(path=path)
    page.close()


if __name__ == "__main__":
    sys.exit(main())
