"""Predicted bytes against the anonymous resident memory of real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blockkit.blockwise.resident import resident as resident_bytes
from blockkit.mbdl.footprint import Case, predict_run, scratch_rate
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.unrolled import UnrolledNetwork

pytestmark = pytest.mark.long

SHAPES = {"cube": (64, 64, 64), "flat": (96, 40, 80)}
MODELS = {
    "naive": ({}, {}),
    "blocks": ({"block_shape": (32, 32, 32)}, {}),
    "large blocks": ({"block_shape": (48, 40, 48)}, {"interpolated_maps": True}),
    "disk": ({"block_shape": (32, 32, 32), "offload": "disk"}, {"normal": "nufft"}),
    "coils together": ({"block_shape": (32, 32, 32)}, {"coils_at_once": 3, "normal": "nufft", "tolerance": 1e-3}),
    "reconstruction": ({"block_shape": (32, 32, 32)}, {"training": False, "normal": "nufft"}),
}

RUN = """
import json, os, sys
sys.path[:0] = json.loads(sys.argv[1])
import torch
from test_footprint import setting
from blockkit.blockwise.memory import Peak
from blockkit.blockwise.resident import resident_growth
from blockkit.mbdl.footprint import run_from_nothing

for name in sys.argv[2:]:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, name
        continue
    torch.set_num_threads(1)
    model, case = setting(name)
    with resident_growth(peak := Peak()):
        run_from_nothing(model, case)
    print(f"{name}={peak.resident_bytes}", flush=True)
    os._exit(0)
"""


def setting(name):
    """Return the model and the case that a name stands for."""
    of_shape, of_model, n_unrolls = name.split(",")
    in_model, in_case = MODELS[of_model]
    torch.manual_seed(0)
    model = UnrolledNetwork(ResidualCNN(16, 4), int(n_unrolls), **in_model)
    return model, Case(SHAPES[of_shape], 4, 60_000, **in_case)


NAMES = [f"{shape},{model},{n}" for shape in SHAPES for model in MODELS for n in (1, 3)]


@pytest.fixture(scope="module")
def resident():
    """Run each setting in a process of its own, forked from one that has imported everything and run nothing."""
    if resident_bytes() is None:
        pytest.skip("resident memory is read from /proc")
    folders = json.dumps([str(Path(__file__).parent)])
    command = [sys.executable, "-c", RUN, folders, *NAMES]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return {name: int(n) for name, n in (line.rsplit("=", 1) for line in done.stdout.splitlines())}


@pytest.fixture(scope="module")
def rates():
    network = ResidualCNN(16, 4)
    return {training: scratch_rate(network, torch.device("cpu"), training=training) for training in (True, False)}


@pytest.mark.parametrize("name", NAMES)
def test_a_process_takes_what_was_predicted(name, resident, rates):
    model, case = setting(name)
    predicted = predict_run(model, Case(**{**vars(case), "scratch_rate": rates[case.training]})).bytes
    assert abs(resident[name] - predicted) < 0.15 * predicted + 256 * 2**20, (resident[name], predicted)
