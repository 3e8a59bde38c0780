"""`make bench` says no when it should: too slow, or results that disagree."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks import rows, run


def toy(ours: float, peer: float, agrees: bool = True) -> rows.Row:
    return rows.Row(
        ours=lambda: time.sleep(ours),
        peer=lambda: time.sleep(peer),
        agree=lambda a, b: (agrees, "words"),
        peer_name="a sleeper",
        target=5.0,
        sizes="none",
    )


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def put(row: rows.Row) -> Path:
        monkeypatch.setattr(rows, "ROWS", {"toy": lambda: row})
        peaks = {"ours": 1.0, "peer": 2.0}
        monkeypatch.setattr(run, "_peak_mib", lambda name, side: peaks[side])
        monkeypatch.setattr(run, "_alone", run.measure)
        monkeypatch.setattr(run, "ROOT", tmp_path)
        return tmp_path / "build" / "bench.json"

    return put


def test_a_fast_row_that_agrees_passes_and_is_written(only) -> None:
    target = only(toy(ours=0.001, peer=0.05))
    assert run.main([]) == 0
    (row,) = json.loads(target.read_text())["rows"]
    assert row["name"] == "toy"
    assert row["ratio"] > 5
    assert row["repeats"] == 5


def test_a_slow_row_fails(only, capsys: pytest.CaptureFixture[str]) -> None:
    only(toy(ours=0.02, peer=0.02))
    assert run.main([]) == 1
    assert "FAIL toy" in capsys.readouterr().out


def test_a_fast_row_that_disagrees_fails(only) -> None:
    only(toy(ours=0.001, peer=0.05, agrees=False))
    assert run.main([]) == 1


def test_a_fast_row_that_takes_too_much_memory_fails(only, capsys) -> None:
    only(replace(toy(ours=0.001, peer=0.05), memory=0.25))
    assert run.main([]) == 1
    assert "peak +1 MiB of the peer's 2 (at most 25%)" in capsys.readouterr().out
    only(replace(toy(ours=0.001, peer=0.05), memory=0.5))
    assert run.main([]) == 0


def test_a_row_of_another_process_is_read_as_it_was(only, capsys) -> None:
    only(replace(toy(ours=0.001, peer=0.01), memory=0.5))
    assert run.main(["--row", "toy"]) == 0
    found = run._read(capsys.readouterr().out)
    assert (found.name, found.memory, found.limit) == ("toy", 0.5, float("inf"))
    assert found.ratio == found.peer_seconds / found.ours_seconds


def test_an_unknown_row_is_named(only, capsys: pytest.CaptureFixture[str]) -> None:
    only(toy(0.0, 0.0))
    assert run.main(["nothing"]) == 1
    assert "no row nothing; there are toy" in capsys.readouterr().out


def test_the_peak_counts_what_a_job_holds_and_gives_back() -> None:
    assert run._peak_of(lambda: bytearray(b"x") * (64 * 2**20)) > 60
