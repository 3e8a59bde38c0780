"""From files, a factorisation and an expansion need a block's memory, however many examples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, tempfile
from functools import partial
from pathlib import Path
import torch
from lib.npeff import archive, out_of_core, store
from lib.npeff.coefficients import expand
from lib.npeff.diagonal import decompose_diagonal
from lib.npeff.factorise import decompose

torch.set_num_threads(1)
status, K, M = Path("/proc/self/status"), 2048, 6144
METHOD = {
    store.LOW_RANK: partial(decompose, component_steps=0), store.DIAGONAL: decompose_diagonal
}

def mib(name):
    return int(status.read_text().split(f"{name}:")[1].split()[0]) / 1024

def parts(kind, n, size=50):
    for first in range(0, n, size):
        generator = torch.Generator().manual_seed(first)
        columns = torch.arange(0, M, M // K) + torch.randint(M // K, (size, 1), generator=generator)
        yield store.Fishers(
            kind, torch.rand(size * K, generator=generator), columns.flatten(),
            torch.arange(0, size * K + 1, K), torch.arange(size),
            torch.full((size,), K / 3, dtype=torch.float64), torch.zeros(size, 2),
            torch.arange(M), (("planted", (M,)),), K,
        )

def peak(job):
    Path("/proc/self/clear_refs").write_text("5")
    before = mib("VmRSS")
    job()
    return mib("VmHWM") - before

def whole(kind, n):
    return store.normalise(store.prune(store.concatenate(list(parts(kind, n)))))

def expanded(data):
    expand(FROZEN, data, 2, seed=0, component_steps=1, steps=1)

def from_files(kind, n, frozen=None):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        archive.write(folder / "pefs", parts(kind, n))
        out_of_core.write_blocks(
            folder / "blocks", lambda: archive.read_parts(folder / "pefs", 50), entries=2**17,
            kept=frozen and frozen.kept,
        )
        data = out_of_core.open_blocks(folder / "blocks")
        expanded(data) if frozen else METHOD[kind](data, 2, seed=0, steps=2)

found = {}
FROZEN = METHOD[store.LOW_RANK](whole(store.LOW_RANK, 50), 2, seed=0, steps=1)
for kind, frozen in [*((kind, None) for kind in METHOD), (store.LOW_RANK, FROZEN)]:
    from_files(kind, 200, frozen)  # what is loaded once
    name = "expansion" if frozen else kind
    found[name] = [peak(lambda: from_files(kind, n, frozen)) for n in (200, 800)]
found["memory"] = [
    peak(lambda: METHOD[store.DIAGONAL](whole(store.DIAGONAL, 800), 2, seed=0, steps=2)),
    peak(lambda: expanded(whole(store.LOW_RANK, 800))),
]
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from /proc")
def test_peak_of_a_factorisation_from_files_does_not_grow_with_the_examples() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        # glibc then gives what is freed back at once, and a peak is what was in use
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "262144"},
    )
    peaks = json.loads(done.stdout)
    entries = 800 * 2048 * 16 / 2**20  # MiB, by row and by column
    assert min(peaks.pop("memory")) > entries  # the measure sees them where they are held
    assert set(peaks) == {"low-rank", "diagonal", "expansion"}
    for few, many in peaks.values():
        assert many - few < 0.15 * entries, peaks  # three quarters of them came on top
