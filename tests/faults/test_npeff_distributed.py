"""Two processes that share the columns: same numbers, and what happens when one dies."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lib.npeff import store
from lib.npeff.decomposition import load
from lib.npeff.diagonal import decompose_diagonal
from lib.npeff.factorise import decompose

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {"seed": 0, "component_steps": 30, "steps": 90}
WORKER = """
import os, sys
from pathlib import Path
import torch
from lib.npeff import distributed, store
from lib.npeff.decomposition import save
from lib.npeff.diagonal import decompose_diagonal
from lib.npeff.factorise import decompose

rank, name, dies, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3] == "dies", Path(sys.argv[4])
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
rows = torch.randn(30, 3, 37, generator=generator, dtype=torch.float64)
low_rank = store.normalise(store.from_dense(rows))
diagonal = store.normalise(store.from_dense(rows.square().sum(1), kind=store.DIAGONAL))

def progress(steps):
    for i in steps:
        if dies and rank == 1 and i == 77:
            os._exit(9)
        yield i

meeting = f"file://{folder}/meeting-{name}-{sys.argv[3]}"
try:
    with distributed.join(rank, 2, meeting, timeout=40) as group:
        found = decompose(
            low_rank, 4, seed=0, component_steps=30, steps=90, group=group,
            checkpoint=folder / f"{name}.checkpoint", progress=progress,
        )
        save(found, folder / f"{name}-{rank}")
        save(decompose_diagonal(diagonal, 4, seed=0, steps=20, group=group), folder / f"d-{rank}")
except distributed.ProcessEnded as error:
    print(error)
    sys.exit(3)
"""


def start(folder: Path, name: str, dies: str) -> list[tuple[int, str]]:
    """Run both processes to their end: exit status and output of each."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", WORKER]
    both = [
        subprocess.Popen(
            [*command, str(rank), name, dies, str(folder)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120) for process in both]
    return [(p.returncode, out or err) for p, (out, err) in zip(both, outputs, strict=True)]


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_two_processes_give_what_one_gives_and_go_on_after_one_died(tmp_path: Path):
    assert [status for status, _ in start(tmp_path, "whole", "lives")] == [0, 0]
    first, second = load(tmp_path / "whole-0"), load(tmp_path / "whole-1")
    assert torch.equal(first.coefficients, second.coefficients)
    assert torch.equal(first.components, second.components)

    rows = torch.randn(30, 3, 37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = decompose(store.normalise(store.from_dense(rows)), 4, **OPTIONS)
    torch.testing.assert_close(first.coefficients, alone.coefficients, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(first.components, alone.components, rtol=1e-6, atol=1e-9)
    diagonal = store.normalise(store.from_dense(rows.square().sum(1), kind=store.DIAGONAL))
    expected = decompose_diagonal(diagonal, 4, seed=0, steps=20)
    torch.testing.assert_close(load(tmp_path / "d-1").components, expected.components)

    (survivor, sentence), (victim, _) = start(tmp_path, "broken", "dies")
    assert victim == 9
    assert survivor == 3
    assert "process 0 of 2: another process ended" in sentence
    assert "with the same checkpoint" in sentence
    assert not (tmp_path / "broken-0").exists()
    assert [status for status, _ in start(tmp_path, "broken", "lives")] == [0, 0]
    again = load(tmp_path / "broken-0")
    assert torch.equal(again.coefficients, first.coefficients)
    assert torch.equal(again.components, first.components)
