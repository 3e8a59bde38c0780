"""ONLY, P, PROFILE, DEVICE and SEED: what they choose, and what is refused before anything runs."""

from __future__ import annotations

import json

import pytest

REFUSED = [
    (["ONLY=77"], "ONLY=77 is no notebook or part; there are 11_first, 12_second, 21_third"),
    (["ONLY=11", "P=LAYER=2"], "11_first has no parameter LAYER; it has K"),
    (["ONLY=11", "P=K=two"], "K is of type int; got 'two'"),
    (["ONLY=11", "P=K"], "P is read as P=\"NAME=value NAME=value\"; got 'K'"),
    (["P=K=2"], "P needs ONLY: say which notebook these parameters are for, as in ONLY=51"),
    (["ONLY=11", "P=SEED=1"], "SEED is a variable of make: write SEED=1 outside of P"),
    (["PROFILE=huge"], "PROFILE is one of quick, full, paper; got 'huge'"),
    (["DEVICE=tpu"], "DEVICE is auto, cpu, cuda or cuda:<k>; got 'tpu'"),
    (["SEED=-1"], "SEED is a whole number from 0; got '-1'"),
]


@pytest.mark.parametrize(("words", "sentence"), REFUSED)
def test_a_wrong_request_is_one_sentence_and_runs_nothing(toy, words, sentence):
    status, output = toy.make("figures", *words)
    assert status == 2  # make's own code for a recipe that failed
    assert f"figures: {sentence}\n" in output
    assert toy.ran(output) == []
    assert not list(toy.root.glob("build/**/*.ipynb"))


def test_only_takes_notebooks_and_parts(toy):
    for name in ("11_first", "12_second", "21_third"):
        toy.notebook(name)
    planned = {}
    for only in ("11", "1", "21_third", "12 2", ""):
        toy.make("figures", f"ONLY={only}", "-n")
        plan = max((toy.root / "build/quick").glob("plan-*.mk"), key=lambda p: p.stat().st_mtime)
        line = next(x for x in plan.read_text().splitlines() if x.startswith("NOTEBOOKS := "))
        planned[only] = line.removeprefix("NOTEBOOKS := ").split()
    assert planned["11"] == ["11_first"]
    assert planned["1"] == ["11_first", "12_second"]
    assert planned["21_third"] == ["21_third"]
    assert planned["12 2"] == ["12_second", "21_third"]
    assert planned[""] == ["11_first", "12_second", "21_third"]


def test_parameters_are_injected_and_kept_apart_from_the_committed_figures(toy):
    parameters = (
        'SEED: int = 0\nK: int = 3\nX: float = 1.0\nB: bool = False\nL: list = []\nW: str = ""'
    )
    toy.notebook("12_second", "print('values', SEED, K, X, B, L, W)", parameters=parameters)
    chosen = "P=K=5 X=2.5 B=yes L=[1,a] W='two words'"
    status, output = toy.make("figures", "ONLY=12", "SEED=7", chosen)
    assert status == 0
    assert "build/quick/variants/SEED-7_B-yes" in output
    (folder,) = (toy.root / "build" / "quick" / "variants").iterdir()
    assert "values 7 5 2.5 True [1, 'a'] two words" in (folder / "12_second.log").read_text()
    record = json.loads((folder / "12_second" / "run.json").read_text())
    assert (record["seed"], record["params"]["K"]) == (7, "5")
    assert not toy.executed("12_second").exists()
    assert not (toy.root / "figures").exists()
