"""Featurising needs the memory of a chunk, however many examples there are."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys
from pathlib import Path
import torch
from lib import gradients, models
from lib.gradients import SJLT, margin

torch.set_num_threads(1)
status = Path("/proc/self/status")

def mib(name):
    return int(status.read_text().split(f"{name}:")[1].split()[0]) / 1024

def peak(model, shape, n, k, chunk):
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(n, *shape, generator=generator), torch.arange(n) % 10
    projector = SJLT(gradients.size(gradients.select(model)), k, seed=0)
    projector.project(torch.zeros(1, projector.p), 0)  # the matrix is there before
    Path("/proc/self/clear_refs").write_text("5")
    before = mib("VmRSS")
    features = gradients.projected(model, data, margin, projector, chunk=chunk)
    return mib("VmHWM") - before - features.numel() * 4 / 2**20

mlp = models.build("mlp", torch.Generator().manual_seed(0), widths=(256, 1024, 512, 10))
resnet = models.build("resnet9", torch.Generator().manual_seed(0))
peak(mlp, (256,), 32, 64, 16)
print(json.dumps({
    "few": peak(mlp, (256,), 64, 64, 16),
    "many": peak(mlp, (256,), 320, 64, 16),
    "chunk": 16 * gradients.size(gradients.select(mlp)) * 4 / 2**20,
    "resnet": peak(resnet, (3, 32, 32), 96, 4096, 64),
}))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
def test_peak_beyond_the_features_is_that_of_a_chunk() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    peak = json.loads(done.stdout)
    assert peak["few"] > 0.5 * peak["chunk"]  # the measure sees a chunk at all
    assert peak["many"] - peak["few"] < 0.5 * peak["chunk"], peak
    assert peak["resnet"] < 4096, peak
