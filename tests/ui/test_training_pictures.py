"""The training view as someone meets it: one picture in a notebook that is drawn anew while ``fit`` runs."""

from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.ui

SCANS = """import torch
import blockkit as bk
generator = torch.Generator().manual_seed(1)
volumes = [torch.randn(18, 15, 18, dtype=torch.complex64, generator=generator) for _ in range(3)]
scans = [bk.simulate_scan(volume, (12, 10, 12), n_coils=2, n_spokes=40, seed=i) for i, volume in enumerate(volumes)]"""
FIT = """torch.manual_seed(0)
model = bk.UnrolledNetwork(bk.ResidualCNN(4, 2), 2)
history = bk.fit(model, scans[:2], validation=scans[2:], n_steps=4, watch={})"""
# Keep every picture that an output shows from now on, and run all cells again.
WATCH = """async () => {
  window.seen = new Set();
  const look = () => document.querySelectorAll('.jp-OutputArea-output img').forEach(one => window.seen.add(one.src));
  new MutationObserver(look).observe(document.body, {childList: true, subtree: true, attributes: true});
  await window.jupyterapp.commands.execute('notebook:run-all-cells');
}"""
PICTURE = ".jp-OutputArea-output img"


def test_one_picture_is_drawn_anew_while_it_trains(
    notebook: Callable[..., Any], lab: Any, screenshot: Callable[[Any, str], None]
) -> None:
    page = notebook(SCANS, FIT.format("bk.TrainingView(every=0)"))
    page.evaluate(WATCH)
    page.wait_for_function("() => window.seen.size > 3")
    picture = page.locator(PICTURE)
    assert picture.count() == 1
    for dark in (False, True):
        lab.paint(page, width=1400, dark=dark)
        screenshot(picture, f"training-{'dark' if dark else 'light'}")
    box = picture.bounding_box()
    assert box["width"] > 600
    assert box["x"] + box["width"] <= 1400
    assert lab.logged == []


def test_a_view_that_does_nothing_is_found_out(notebook: Callable[..., Any]) -> None:
    page = notebook(SCANS, FIT.format("lambda progress: None"))
    assert page.locator(PICTURE).count() == 0
