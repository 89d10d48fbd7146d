"""From a key press, or a choice, to the new picture in a browser: the slice viewer and the memory explorer.

    python benchmarks/ui.py      writes benchmarks/results/ui.md

JupyterLab, its kernel and a browser without a window run on this machine. The time is taken in the page: from the
event until all new pictures are in the page and the next frame of the screen has begun. The viewer shows four volumes
of 300 x 200 x 300 voxels, the explorer a step at that size.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT, machine

sys.path.insert(0, str(ROOT))
from tools.lab_browser import chromium, lab_server

N_WARM, N_KEYS, N_CHANGES, BETWEEN_MS = 2, 30, 10, 400
LIMITS = {"canvas": 100, "image": 200, "explorer": 150}
VIEWER = """import sys
sys.path.insert(0, {folder!r})
import blockkit as bk
from viewer import make_volumes
volumes = make_volumes()
viewer = bk.SliceViewer(volumes, face={face!r})
viewer"""
EXPLORER = "import blockkit as bk\nbk.MemoryExplorer()"
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
# The lines of code come after the pictures, and every change changes them. A choice has no key: it is made here.
CONTROL = """([name, choice]) => {
  const root = document.querySelector('.blockkit-explorer');
  const lines = root.querySelector('.blockkit-lines').closest('.widget-html');
  const label = [...root.querySelectorAll('label')].find(one => one.textContent.trim() === name);
  const box = label.closest('.jupyter-widgets');
  const control = box.querySelector('.noUi-handle') || box.querySelector('select, input');
  control.focus();
  window.took = new Promise(resolve => {
    let start = 0;
    const begin = () => { start = performance.now(); };
    new MutationObserver((_, observer) => {
      observer.disconnect();
      requestAnimationFrame(() => resolve(performance.now() - start));
    }).observe(lines, {childList: true, subtree: true});
    window.addEventListener('keydown', begin, {capture: true, once: true});
    if (!choice) return;
    begin();
    control.value = choice;
    control.dispatchEvent(new Event('change', {bubbles: true}));
  });
}"""
WITHIN = "Promise.race([window.took, new Promise(done => setTimeout(done, 60000, -1))])"
UP, DOWN, LEFT, RIGHT = "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight"
KEYS = {
    "coils": (UP, DOWN),
    "samples, 10⁶": (UP, DOWN),
    "coils at once": (UP, DOWN),
    "unrolls": (RIGHT, LEFT),
    "channels": (RIGHT, LEFT),
    "layers": (RIGHT, LEFT),
    "block": (LEFT, RIGHT),
    "recompute in backward": ("Space", "Space"),
    "offload images to disk": ("Space", "Space"),
    "interpolated coil maps": ("Space", "Space"),
}
CHOICES = {
    "matrix preset": ("450 x 300 x 450", "300 x 200 x 300"),
    "precision": ("double", "single"),
    "run": ("reconstruction", "training step"),
    "budget": ("8 GiB", "24 GiB"),
}


def main() -> int:
    busy = f"of {os.cpu_count()}, with {os.getloadavg()[0]:.1f} processes at work before it began"
    head = "JupyterLab and headless Chromium on the same machine"
    lines = [f"{machine()} {busy}; {head}, {N_KEYS} key presses in the viewer, {N_CHANGES} changes of a control.", ""]
    lines += ["| face | key or control | median (ms) | 90 % within (ms) | limit (ms) |", "|:--|:--|--:|--:|--:|"]
    slow = 0
    with lab_server() as lab, chromium() as browser:
        for face, name, times in (*viewer_times(lab, browser), *explorer_times(lab, browser)):
            middle, most = np.median(times), np.percentile(times, 90)
            lines.append(f"| {face} | {name} | {middle:.0f} | {most:.0f} | {LIMITS[face]} |")
            print(lines[-1], flush=True)
            slow += middle > LIMITS[face]
    (ROOT / "benchmarks" / "results" / "ui.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if slow else 0


def viewer_times(lab: Any, browser: Any) -> Iterator[tuple[str, str, list[float]]]:
    """Give face, key and milliseconds of both faces of the viewer."""
    for face, script in (("canvas", CANVAS), ("image", IMAGE)):
        page = lab.open(browser, [VIEWER.format(folder=str(Path(__file__).parent), face=face)])
        page.wait_for_function(SCORED, timeout=600_000)
        for name, keys in keys_of(face).items():
            yield face, name, measure(page, script, keys, N_KEYS)
        page.close()


def keys_of(face: str) -> dict[str, tuple[str, str]]:
    """Return what is pressed: there and back again, so that every press changes the picture."""
    if face == "image":
        return {"slider, 12 pictures": (RIGHT, LEFT)}
    return {
        "next slice, 4 panels": ("PageDown", "PageUp"),
        "crosshair, 4 panels": (DOWN, UP),
        "whole projection, 12 panels": ("m", "m"),
    }


def explorer_times(lab: Any, browser: Any) -> Iterator[tuple[str, str, list[float]]]:
    """Give face, control and milliseconds of each control of the explorer."""
    page = lab.open(browser, [EXPLORER])
    page.locator(".blockkit-lines").wait_for()
    for name, keys in KEYS.items():
        yield "explorer", name, measure(page, CONTROL, keys, N_CHANGES, [name, ""])
    for name, options in CHOICES.items():
        times = []
        for i in range(N_WARM + N_CHANGES):
            page.evaluate(CONTROL, [name, options[i % 2]])
            times.append(took(page))
        yield "explorer", name, times[N_WARM:]
    page.close()


def measure(page: Any, script: str, keys: tuple[str, str], n: int, argument: Any = None) -> list[float]:
    """Return milliseconds of ``n`` key presses; ``script`` sets the watch before each."""
    times = []
    for i in range(N_WARM + n):
        page.evaluate(script, argument)
        page.keyboard.press(keys[i % 2])
        times.append(took(page))
    return times[N_WARM:]


def took(page: Any) -> float:
    """Return how long the picture took to come; RuntimeError if it does not."""
    milliseconds: float = page.evaluate(WITHIN)
    if milliseconds < 0:
        raise RuntimeError("After 60 s there is no new picture.")
    page.wait_for_timeout(BETWEEN_MS)
    return milliseconds


if __name__ == "__main__":
    sys.exit(main())
