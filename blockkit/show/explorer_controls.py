"""The controls of the memory explorer, and the setting that they say."""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import ipywidgets as widgets
import torch

from blockkit.checks import Shape3, check_shape3
from blockkit.show.setting import Setting, by, nearest

SIZES = ("300 x 200 x 300", "350 x 250 x 350", "400 x 250 x 400", "450 x 300 x 450")
OTHER_SIZE = "another size"
BUDGETS = tuple((f"{gib} GiB", float(gib)) for gib in (8, 10, 11, 12, 16, 24, 32, 40, 48, 80, 96, 141))
PRECISIONS = (("single", "single"), ("half in the network", "half"), ("double", "double"))
TIPS = {
    "preset": "sizes of the paper",
    "matrix": "voxels along z, y, x",
    "coils": "coils of the scan",
    "samples": "k-space samples of a coil, in millions",
    "unrolls": "regularizer and data-consistency step, so many times",
    "channels": "channels of the ResidualCNN",
    "layers": "convolutions of the ResidualCNN, and so the halo in voxels",
    "block": "voxels along z, y, x of a block",
    "coils at once": "coils that the encoding operator takes together",
    "recompute": "run the blocks again in backward, in place of keeping their activations",
    "offload": "keep what the unrolls need for backward in a file",
    "maps": "coil maps defined by a value every 8 voxels",
    "precision": "half: bfloat16 inside the network",
    "run": "what to count the bytes of",
    "budget": "memory of the device, GiB = 2^30 bytes",
}
MOST_VOXELS = 10**10
WIDE, WIDER = 250, 330  # pixels


class Controls:
    """All controls by name, in one box; what is moved changes the setting that :meth:`read` returns."""

    def __init__(self, setting: Setting, budgets: list[tuple[str, float]]) -> None:
        case = setting.case
        if all(gib != setting.budget_gib for _, gib in budgets):
            budgets = [(f"{setting.budget_gib:g} GiB", setting.budget_gib), *budgets]
        self.by_name: dict[str, Any] = {
            "preset": widgets.Dropdown(
                options=[*SIZES, OTHER_SIZE], value=_preset(case.image_shape), description="matrix preset"
            ),
            "matrix": widgets.Text(by(case.image_shape), continuous_update=False, description="matrix z y x"),
            "coils": widgets.BoundedIntText(case.n_coils, min=1, max=1024, description="coils"),
            "samples": widgets.BoundedFloatText(
                case.n_samples / 1e6, min=0, max=1e4, step=0.5, description="samples, 10⁶"
            ),
            "unrolls": widgets.IntSlider(setting.n_unrolls, 1, max(20, setting.n_unrolls), description="unrolls"),
            "channels": widgets.IntSlider(setting.n_channels, 1, 128, description="channels"),
            "layers": widgets.IntSlider(setting.n_layers, 2, 20, description="layers"),
            "block": widgets.SelectionSlider(
                options=_options(setting), value=setting.block_shape, description="block", continuous_update=False
            ),
            "coils at once": widgets.BoundedIntText(1, min=1, max=1024, description="coils at once"),
            "recompute": widgets.Checkbox(True, description="recompute in backward", indent=False),
            "offload": widgets.Checkbox(False, description="offload images to disk", indent=False),
            "maps": widgets.Checkbox(case.interpolated_maps, description="interpolated coil maps", indent=False),
            "precision": widgets.Dropdown(options=PRECISIONS, description="precision"),
            "run": widgets.Dropdown(
                options=[("training step", True), ("reconstruction", False)], description="run"
            ),
            "budget": widgets.Dropdown(options=budgets, value=setting.budget_gib, description="budget"),
        }  # fmt: skip
        for name, control in self.by_name.items():
            control.tooltip = TIPS[name]
            left, width = (10 if isinstance(control, widgets.Checkbox) else 0), (WIDER if name == "block" else WIDE)
            control.layout = widgets.Layout(width=f"{width - left}px", margin=f"2px 10px 2px {left}px")
            if not left:
                control.style = {"description_width": "92px"}
        shown = [c for name, c in self.by_name.items() if setting.network is None or name not in ("channels", "layers")]
        self.box = widgets.Box(shown, layout=widgets.Layout(display="flex", flex_flow="row wrap", width="100%"))
        self._held = False

    def observe(self, action: Callable[[Any], None]) -> None:
        """Call ``action`` with each change that someone makes."""

        def told(change: Any) -> None:
            if not self._held:
                action(change)

        for name, control in self.by_name.items():
            control.observe(self._take_preset if name == "preset" else told, names="value")

    def read(self, before: Setting) -> Setting:
        """Return the setting that the controls say, and bring those in line that depend on others.

        Raises
        ------
        ValueError, TypeError
            If the matrix is no matrix.
        """
        of = {name: control.value for name, control in self.by_name.items()}
        training, coils = bool(of["run"]), int(of["coils"])
        case = replace(
            before.case,
            image_shape=read_shape(of["matrix"]),
            n_coils=coils,
            n_samples=max(1, round(of["samples"] * 1e6)),
            training=training,
            interpolated_maps=bool(of["maps"]),
            coils_at_once=min(int(of["coils at once"]), coils),
            dtype=torch.complex128 if of["precision"] == "double" else torch.complex64,
        )
        recompute = bool(of["recompute"]) or not training
        setting = replace(
            before,
            case=case,
            n_unrolls=int(of["unrolls"]),
            n_channels=int(of["channels"]),
            n_layers=int(of["layers"]),
            recompute=recompute,
            offload="disk" if of["offload"] and training and recompute else None,
            precision=of["precision"],
            budget_gib=float(of["budget"]),
            block_shape=of["block"],
        )
        if case.image_shape != before.case.image_shape:
            setting = replace(setting, block_shape=nearest(setting.blocks(), prod(setting.block_shape)))
        self._bring_in_line(setting)
        return setting

    def choose(self, block_shape: Shape3) -> None:
        """Move the block's slider."""
        self.by_name["block"].value = block_shape

    def _take_preset(self, change: Any) -> None:
        if not self._held and change["new"] != OTHER_SIZE:
            self.by_name["matrix"].value = change["new"]

    def _bring_in_line(self, setting: Setting) -> None:
        """Offer the blocks of this matrix, and turn off what has no effect: nothing here is a change of the user's."""
        options, block = _options(setting), self.by_name["block"]
        self._held = True
        try:
            if tuple(block.options) != tuple(options):
                block.options = options
            block.value = setting.block_shape
            self.by_name["preset"].value = _preset(setting.case.image_shape)
            self.by_name["recompute"].disabled = not setting.case.training
            self.by_name["offload"].disabled = not (setting.case.training and setting.recompute)
        finally:
            self._held = False


def read_shape(text: str) -> Shape3:
    """Return a matrix that was typed as ``300 x 200 x 300``, or with blanks or commas between the numbers.

    Raises
    ------
    ValueError
        If it is something else, or too large for any machine.
    """
    numbers = text.replace("x", " ").replace("×", " ").replace(",", " ").split()
    if len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"The matrix is {text!r}, expected three whole numbers z, y, x, such as 300 x 200 x 300.")
    shape = check_shape3([int(number) for number in numbers], "The matrix")
    if prod(shape) > MOST_VOXELS:
        raise ValueError(f"The matrix {by(shape)} has {prod(shape):.1e} voxels, expected at most {MOST_VOXELS:.0e}.")
    return shape


def _preset(image_shape: Shape3) -> str:
    return by(image_shape) if by(image_shape) in SIZES else OTHER_SIZE


def _options(setting: Setting) -> list[tuple[str, Shape3]]:
    """Return the blocks by name, the smallest first."""
    return [(by(block), block) for block in reversed(setting.blocks())]
