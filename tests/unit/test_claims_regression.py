"""A verdict that changes fails the tests: shown on one that is flipped."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lib import claims
from lib.config import ROOT

ROWS = {
    "P1-01": {"verdict": "holds", "value": 0.5},
    "P1-02": {"verdict": "DIFFERS", "value": 0.1},
}
PROJECT = """
import json, os, pathlib
def test_a_notebook_that_judges():
    folder = pathlib.Path(os.environ["FIGURES_DIR"]) / "quick" / "11_toy"
    folder.mkdir(parents=True)
    row = {"id": "P1-01", "verdict": "%s", "value": 0.5, "spread": None, "low": 0, "high": 1}
    whole = {"notebook": "11_toy", "profile": "quick", "seed": 0, "claims": [row]}
    (folder / "claims.json").write_text(json.dumps(whole))
"""


def test_equal_verdicts_are_silent_and_a_flipped_one_is_named() -> None:
    flipped = {**ROWS, "P1-02": {"verdict": "holds", "value": 0.9}}
    assert claims.changed(ROWS, ROWS) == []
    (sentence,) = claims.changed(ROWS, flipped)
    assert sentence.startswith("P1-02: was DIFFERS (0.1), now holds (0.9)")


def test_a_claim_that_the_reference_lacks_is_named() -> None:
    (sentence,) = claims.changed({}, {"P1-01": ROWS["P1-01"]})
    assert "absent from the reference" in sentence


def test_a_moved_value_with_the_same_verdict_is_no_change() -> None:
    assert claims.changed(ROWS, {"P1-01": {"verdict": "holds", "value": 0.51}}) == []


NEAR = {"P1-03": {"verdict": "holds", "value": 0.22, "spread": 0.02, "low": 0.2, "high": None}}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (0.19, False),  # turned, within three spreads of the edge
        (0.13, True),  # turned, and far past it
        (0.5, False),  # far from the edge, on the same side
    ],
)
def test_a_verdict_near_its_edge_may_turn_but_not_move_far_past_it(value: float, named: bool):
    word = "holds" if value >= 0.2 else "DIFFERS"
    now = {"P1-03": NEAR["P1-03"] | {"verdict": word, "value": value}}
    assert bool(claims.changed(NEAR, now)) is named


def test_a_verdict_far_from_its_edge_may_not_turn_at_all():
    far = {"P1-03": NEAR["P1-03"] | {"value": 0.25}}
    now = {"P1-03": NEAR["P1-03"] | {"verdict": "DIFFERS", "value": 0.19}}
    assert len(claims.changed(far, now)) == 1


@pytest.mark.parametrize(
    ("seeds", "named"),
    [
        ((), True),  # .13 is far past the edge for a spread of .02
        ((0.05, 0.4), False),  # but not when other networks lie so far apart
        ((0.21, 0.23), True),  # as it is when they agree
    ],
)
def test_networks_of_other_seeds_say_how_far_a_value_may_move(seeds, named: bool):
    stored = {"P1-03": NEAR["P1-03"] | {"seeds": list(seeds)}}
    now = {"P1-03": NEAR["P1-03"] | {"verdict": "DIFFERS", "value": 0.13}}
    assert bool(claims.changed(stored, now)) is named


def test_the_checked_line_says_near_and_its_word_alone_is_not_compared():
    lines = [
        str(claims.Verdict("P1-03", word, 0.2, 0.02, 0.2, 1.0, "two agree", near))
        for near in (True, False)
        for word in ("holds", "DIFFERS")
    ]
    settings = configparser.ConfigParser()
    settings.read(ROOT / "tests" / "nbval.cfg")
    (rule,) = (settings[name] for name in settings.sections())
    clean = [re.sub(rule["regex"], rule["replace"], line) for line in lines]
    assert clean[0] == clean[1]
    assert clean[2:] == lines[2:]
    assert len(set(clean)) == 3


def _session(tmp_path: Path, verdict: str) -> subprocess.CompletedProcess[str]:
    """A pytest session under the project's own conftest, with a reference that says holds."""
    tmp_path.mkdir()
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "tests" / "reference").mkdir(parents=True)
    (tmp_path / "tests" / "reference" / "claims.json").write_text(
        '{"P1-01": {"verdict": "holds", "value": 0.5}}'
    )
    (tmp_path / "test_toy.py").write_text(PROJECT % verdict)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_toy.py"]
    return subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )


def test_a_session_passes_with_the_stored_verdict_and_fails_with_a_flipped_one(
    tmp_path: Path,
) -> None:
    same, flipped = _session(tmp_path / "a", "holds"), _session(tmp_path / "b", "DIFFERS")
    assert same.returncode == 0
    assert "1 verdicts compared" in same.stdout
    assert flipped.returncode == 1
    assert "P1-01: was holds (0.5), now DIFFERS (0.5)" in flipped.stdout
    assert "Traceback" not in flipped.stdout + flipped.stderr
