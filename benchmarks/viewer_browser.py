"""From the key press to the new picture in a browser, at four volumes of 300 x 200 x 300 voxels.

    python benchmarks/viewer_browser.py      writes benchmarks/results/ui.md

JupyterLab, its kernel and a browser without a window run on this machine. The time is taken in the page: from the key
event until all new panels are painted and the next frame of the screen has begun.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, machine

sys.path.insert(0, str(ROOT))
from tools.lab_browser import chromium, lab_server

N_WARM, N_KEYS, BETWEEN_MS = 2, 30, 400
LIMITS = {"canvas": 100, "image": 200}
CELLS = """import sys
sys.path.insert(0, {folder!r})
import blockkit as bk
from viewer import make_volumes
volumes = make_volumes()
viewer = bk.SliceViewer(volumes, face={face!r})
viewer"""
SCORED = """() => {
  const tables = document.querySelectorAll('.blockkit-table table, .blockkit-text table');
  return tables.length && [...tables].every(one => !one.textContent.includes('…'));
}"""
# Each sets window.took to a promise: the time from the key, as the page hears it, to the frame with the new picture.
CANVAS = """() => {
  const root = document.querySelector('.blockkit-viewer');
  document.querySelector('.blockkit-panel').focus();
  window.took = new Promise(resolve => {
    let start = 0;
    window.addEventListener('keydown', () => { start = performance.now(); }, {capture: true, once: true});
    new MutationObserver((_, observer) => {
      observer.disconnect();
      requestAnimationFrame(() => resolve(performance.now() - start));
    }).observe(root, {attributes: true, attributeFilter: ['data-frames']});
  });
}"""
IMAGE = """() => {
  const images = [...document.querySelectorAll('img.blockkit-voxels')], old = images.map(one => one.src);
  document.querySelector('.noUi-handle').focus();
  window.took = new Promise(resolve => window.addEventListener('keydown', async () => {
    const start = performance.now();
    while (images.some((one, i) => one.src === old[i] || !one.complete)) await new Promise(done => setTimeout(done, 1));
    await Promise.all(images.map(one => one.decode()));
    requestAnimationFrame(() => resolve(performance.now() - start));
  }, {capture: true, once: true}));
}"""


def main() -> int:
    lines = [f"{machine()}; JupyterLab and headless Chromium on the same machine, {N_KEYS} key presses.", ""]
    lines += ["| face | key | median (ms) | 90 % within (ms) | limit (ms) |", "|:--|:--|--:|--:|--:|"]
    slow = 0
    with lab_server() as lab, chromium() as browser:
        for face, script in (("canvas", CANVAS), ("image", IMAGE)):
            page = lab.open(browser, [CELLS.format(folder=str(Path(__file__).parent), face=face)])
            for name, keys in keys_of(face).items():
                times = measure(page, script, keys)
                middle, most = np.median(times), np.percentile(times, 90)
                lines.append(f"| {face} | {name} | {middle:.0f} | {most:.0f} | {LIMITS[face]} |")
                print(lines[-1], flush=True)
                slow += middle > LIMITS[face]
            page.close()
    (ROOT / "benchmarks" / "results" / "ui.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if slow else 0


def keys_of(face: str) -> dict[str, list[str]]:
    """Return what is pressed: there and back again, so that every press changes the picture."""
    if face == "image":
        return {"slider, 12 pictures": ["ArrowRight", "ArrowLeft"]}
    return {
        "next slice, 4 panels": ["PageDown", "PageUp"],
        "crosshair, 4 panels": ["ArrowDown", "ArrowUp"],
        "whole projection, 12 panels": ["m", "m"],
    }


def measure(page: Any, script: str, keys: list[str]) -> list[float]:
    page.wait_for_function(SCORED, timeout=600_000)
    times = []
    for i in range(N_WARM + N_KEYS):
        page.evaluate(script)
        page.keyboard.press(keys[i % 2])
        times.append(page.evaluate("window.took"))
        page.wait_for_timeout(BETWEEN_MS)
    return times[N_WARM:]


if __name__ == "__main__":
    sys.exit(main())
