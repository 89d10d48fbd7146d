"""Predicted bytes against the anonymous resident memory of real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from blockkit.mbdl.footprint import Case, predict_run, scratch_rate
from blockkit.mbdl.networks import ResidualCNN
from blockkit.mbdl.unrolled import UnrolledNetwork

pytestmark = pytest.mark.slow

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
import json, os, sys, threading, time
sys.path[:0] = json.loads(sys.argv[1])
import torch
from test_footprint import setting
from blockkit.mbdl.footprint import run_from_nothing

def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024

for name in sys.argv[2:]:
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, name
        continue
    torch.set_num_threads(1)
    model, case = setting(name)
    before, highest, done = anonymous(), 0, threading.Event()
    def sample():
        global highest
        while not done.wait(0.002):
            highest = max(highest, anonymous() - before)
    thread = threading.Thread(target=sample)
    thread.start()
    run_from_nothing(model, case)
    done.set()
    thread.join()
    print(f"{name}={highest}", flush=True)
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
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    folders = str([str(Path(__file__).parent)]).replace("'", '"')
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
