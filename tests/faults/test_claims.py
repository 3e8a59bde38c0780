"""What the ledger, the judge and `python -m lib.claims` refuse, each in one sentence."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib import claims, config, files
from lib.config import ROOT

GOOD = """[[claim]]
id = "P9-01"
source = "document 9"
says = "two seeds agree"
published = "no number"
measure = "overlap"
band = [0.5, 1.0]
why = "more than half"
notebook = "11_concept_presence"
profiles = ["quick"]
"""


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('why = "more than half"\n', "", r"part9.toml: claim P9-01 lacks \['why'\]"),
        ('id = "P9-01"\n', "", r"part9.toml: claim \? lacks \['id'\]"),
        ('why = "', 'whim = "a"\nwhy = "', r"has extra \['whim'\]"),
        ("[0.5, 1.0]", "[1.0, 0.5]", r"P9-01 wants band \[low, high\], got \[1.0, 0.5\]"),
        ("[0.5, 1.0]", "[nan, 0.5]", r"P9-01 wants band \[low, high\]"),
        ("[0.5, 1.0]", "[0.5]", r"P9-01 wants band \[low, high\], got \[0.5\]"),
        ("[0.5, 1.0]", "0.5", r"P9-01 wants band \[low, high\], got 0.5"),
        ("[0.5, 1.0]", '["a", "b"]', r"P9-01 wants band \[low, high\]"),
        ('["quick"]', '"quick"', "P9-01 wants profiles of quick, full, paper, got quick"),
        ('["quick"]', '["quik"]', "P9-01 wants profiles of quick, full, paper"),
        ("[[claim]]", "[[claim]", "part9.toml is not TOML"),
    ],
)
def test_a_ledger_with_a_fault_is_refused(tmp_path: Path, old: str, new: str, sentence: str):
    assert old in GOOD
    (tmp_path / "part9.toml").write_text(GOOD.replace(old, new))
    with pytest.raises(ValueError, match=sentence) as caught:
        claims.ledger(tmp_path)
    assert "\n" not in str(caught.value)


def test_two_claims_of_one_name_are_refused_also_across_files(tmp_path: Path):
    (tmp_path / "part1.toml").write_text(GOOD)
    (tmp_path / "part2.toml").write_text(GOOD)
    with pytest.raises(ValueError, match=r"part2\.toml: two claims are called P9-01"):
        claims.ledger(tmp_path)


def test_explanations_that_are_no_toml_name_their_file(tmp_path: Path):
    (tmp_path / "notes.toml").write_text("quick = \n")
    with pytest.raises(ValueError, match=r"notes\.toml is not TOML"):
        claims.explanations(tmp_path)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, r"missing \['P9-01'\], unknown \[\]"),
        ({"P9-01": 0.7, "P9-02": 0.7}, r"missing \[\], unknown \['P9-02'\]"),
        ({"P9-10": 0.7}, r"missing \['P9-01'\], unknown \['P9-10'\]"),
        ({"P9-01": math.nan}, "P9-01 was measured as NaN"),
        ({"P9-01": (math.nan, 0.1)}, "P9-01 was measured as NaN"),
    ],
)
def test_the_judge_wants_each_claim_measured(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, claims.Measured],
    sentence: str,
):
    (tmp_path / "part9.toml").write_text(GOOD)
    monkeypatch.setattr(claims.ledger, "__defaults__", (tmp_path,))
    run = config.resolve("11_concept_presence", "quick", device="cpu")
    with pytest.raises(ValueError, match=sentence):
        claims.judge(run, values)


def test_claims_that_cannot_be_written_are_one_sentence(
    figures_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    run = config.resolve("11_concept_presence", "quick", device="cpu")
    figures_dir.write_text("a file where the folder should be")
    with pytest.raises(OSError, match=r"cannot write claims\.json in .* or set FIGURES_DIR"):
        claims.save([], run)


def test_a_failed_write_leaves_the_old_claims(figures_dir: Path, monkeypatch: pytest.MonkeyPatch):
    run = config.resolve("11_concept_presence", "quick", device="cpu")
    claims.save([], run)
    before = (run.figures_dir / "claims.json").read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    verdict = claims.Verdict("P9-01", "holds", 0.7, None, 0.5, 1.0, "two seeds agree")
    with pytest.raises(OSError, match="No space left on device"):
        claims.save([verdict], run)
    assert (run.figures_dir / "claims.json").read_bytes() == before


ROW = {"id": "P1-01", "verdict": "holds", "value": 1, "spread": None, "low": 0, "high": 1}
DAMAGED = {
    "truncated": '{"claims": [{"id": "P1-0',
    "empty": "",
    "other": "[]",
    "no rows": '{"claims": null}',
    "not a row": '{"claims": ["P1-01"]}',
    "no id": '{"claims": [{"verdict": "holds"}]}',
    "no value": json.dumps({"claims": [{k: v for k, v in ROW.items() if k != "value"}]}),
    "bytes": b"\xff\xfe\x00",
}


def run_claims(figures: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lib.claims"],
        cwd=ROOT,
        env={**os.environ, "FIGURES_DIR": str(figures)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_result_is_one_sentence_and_exit_1(figures_dir: Path, content: str | bytes):
    path = figures_dir / "quick" / "11_concept_presence" / "claims.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    done = run_claims(figures_dir)
    assert done.returncode == 1
    assert done.stderr == (
        "claims: 11_concept_presence/claims.json at quick is damaged; run that notebook again\n"
    )
    assert not (figures_dir / "quick" / "claims.json").exists()


def test_a_sound_result_is_exit_0(figures_dir: Path):
    path = figures_dir / "quick" / "11_concept_presence" / "claims.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"claims": [ROW]}))
    done = run_claims(figures_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads((figures_dir / "quick" / "claims.json").read_text()) == {"P1-01": ROW}


def test_a_folder_that_cannot_be_written_is_one_sentence_and_exit_1(figures_dir: Path):
    path = figures_dir / "quick" / "11_concept_presence" / "claims.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"claims": [ROW]}))
    (figures_dir / "quick" / "claims.json").mkdir()  # nothing can be renamed onto a folder
    done = run_claims(figures_dir)
    assert done.returncode == 1
    assert done.stderr.startswith("claims: cannot write claims.json in ")
    assert done.stderr.count("\n") == 1
