"""The ledger, verdicts and their files, on a small ledger of our own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lib import claims, config
from lib.config import Run

NOTEBOOK = "11_concept_presence"
CLAIM: dict[str, object] = {
    "id": "P9-01",
    "source": "document 9, section 1",
    "says": "two seeds agree",
    "published": "0.8",
    "measure": "overlap",
    "band": [0.5, 1.0],
    "why": "more than half",
    "notebook": NOTEBOOK,
    "profiles": ["quick", "full"],
}


def toml(*entries: Mapping[str, object]) -> str:
    """Claims as a file of the ledger; JSON's strings, lists and numbers are TOML's too."""
    lines = []
    for entry in entries:
        lines.append("[[claim]]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
    return "\n".join(lines).replace("Infinity", "inf") + "\n"


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a ledger of the given changes of CLAIM and make it the one that is used."""
    folder = tmp_path / "ledger"
    folder.mkdir()
    for function in (claims.ledger, claims.explanations):
        monkeypatch.setattr(function, "__defaults__", (folder,))

    def written(*changes: Mapping[str, object], name: str = "part9.toml") -> Path:
        (folder / name).write_text(toml(*({**CLAIM, **change} for change in changes)))
        return folder

    return written


@pytest.fixture
def run(figures_dir: Path) -> Run:
    return config.resolve(NOTEBOOK, "quick", seed=3, device="cpu")


def test_the_projects_own_ledger_is_sound():
    found = claims.ledger()
    assert found
    for name, claim in found.items():
        assert name == claim.id
        assert claim.profiles, f"{name} is never judged"
    assert set(claims.explanations()) <= set(found)


def test_ledger_keeps_the_order_of_files_and_entries(write: Write):
    write({"id": "P2-02"}, {"id": "P2-01"}, name="part2.toml")
    folder = write({"id": "P1-07", "band": [0, math.inf]}, name="part1.toml")
    (folder / "notes.toml").write_text("")  # explanations are no claims
    found = claims.ledger()
    assert list(found) == ["P1-07", "P2-02", "P2-01"]
    assert found["P1-07"].band == (0.0, math.inf)
    assert found["P1-07"].profiles == ("quick", "full")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (0.5, "holds"),
        (1.0, "holds"),
        (0.75, "holds"),
        (math.nextafter(0.5, 0), "DIFFERS"),
        (math.nextafter(1.0, 2), "DIFFERS"),
        (-math.inf, "DIFFERS"),
        (None, "not run"),
        (1, "holds"),
    ],
)
def test_a_band_includes_its_edges(write: Write, run: Run, value: float | None, word: str):
    write({})
    (verdict,) = claims.judge(run, {"P9-01": value})
    assert verdict.verdict == word
    assert verdict.value == value


def test_open_bands_hold_to_infinity(write: Write, run: Run):
    write({"band": [0.0, math.inf]})
    assert claims.judge(run, {"P9-01": math.inf})[0].verdict == "holds"
    assert claims.judge(run, {"P9-01": -1e-9})[0].verdict == "DIFFERS"


def test_a_profile_that_is_too_small_does_not_judge(write: Write, run: Run):
    write({"profiles": ["full"]})
    (verdict,) = claims.judge(run, {"P9-01": (0.7, 0.1)})
    assert (verdict.verdict, verdict.value, verdict.spread) == ("not run", None, None)


def test_only_this_notebooks_claims_are_asked_for(write: Write, run: Run):
    write({}, {"id": "P9-02", "notebook": "51_tabular"})
    assert [x.id for x in claims.judge(run, {"P9-01": 0.7})] == ["P9-01"]


def test_verdicts_follow_the_ledger_not_the_call(write: Write, run: Run):
    write({"id": "P9-02"}, {"id": "P9-01"})
    assert [x.id for x in claims.judge(run, {"P9-01": 0.7, "P9-02": 0.7})] == ["P9-02", "P9-01"]


def test_a_verdict_reads_as_a_line(write: Write, run: Run):
    write({}, {"id": "P9-02", "band": [0, math.inf]})
    lines = [str(x) for x in claims.judge(run, {"P9-01": 0.7, "P9-02": -1.0})]
    assert [line.split() for line in lines] == [
        ["P9-01", "holds", "in", "[0.5,", "1]", "two", "seeds", "agree"],
        ["P9-02", "DIFFERS", "in", "[0,", "∞)", "two", "seeds", "agree"],
    ]
    assert lines[0].index(" in [") == lines[1].index(" in [")


@pytest.mark.parametrize(
    ("band", "text"),
    [
        ((0.5, 1.0), "[0.5, 1]"),
        ((-math.inf, 0.25), "(-∞, 0.25]"),
        ((-1.5, math.inf), "[-1.5, ∞)"),
        ((-math.inf, math.inf), "(-∞, ∞)"),
    ],
)
def test_intervals_are_open_only_at_infinity(band: tuple[float, float], text: str):
    assert claims.interval(*band) == text


@pytest.mark.parametrize(
    ("value", "spread", "band", "close"),
    [
        (0.8, 0.1, [0.5, 1.0], True),  # 2 spreads from 1
        (0.75, 0.08, [0.5, 1.0], False),  # 3.1 spreads from both
        (0.45, 0.1, [0.5, 1.0], True),  # outside, and as close
        (5.0, 1.0, [0.0, math.inf], False),  # an open end is not an edge
        (2.0, 1.0, [0.0, math.inf], True),
        (0.99, 0.0, [0.5, 1.0], False),  # nothing varies
        (0.99, None, [0.5, 1.0], False),
        (None, None, [0.5, 1.0], False),
    ],
)
def test_close_means_within_three_spreads_of_an_edge(
    write: Write,
    run: Run,
    value: float | None,
    spread: float | None,
    band: list[float],
    close: bool,
):
    write({"band": band})
    measured = value if value is None or spread is None else (value, spread)
    assert claims.judge(run, {"P9-01": measured})[0].is_close is close


def test_saved_claims_are_json_without_infinities_and_the_same_again(write: Write, run: Run):
    write({"band": [0.5, math.inf]}, {"id": "P9-02"}, {"id": "P9-03"})
    measured: dict[str, claims.Measured] = {
        "P9-01": (0.7, 0.125),
        "P9-02": None,
        "P9-03": (1.5, math.nan),
    }
    claims.save(claims.judge(run, measured), run)
    path = run.figures_dir / "claims.json"
    text = path.read_text()
    assert "Infinity" not in text
    assert "NaN" not in text
    assert json.loads(text) == {
        "notebook": NOTEBOOK,
        "profile": "quick",
        "seed": 3,
        "claims": [
            {
                "id": "P9-01",
                "verdict": "holds",
                "value": 0.7,
                "spread": 0.125,
                "low": 0.5,
                "high": None,
            },
            {
                "id": "P9-02",
                "verdict": "not run",
                "value": None,
                "spread": None,
                "low": 0.5,
                "high": 1.0,
            },
            {
                "id": "P9-03",
                "verdict": "DIFFERS",
                "value": 1.5,
                "spread": None,
                "low": 0.5,
                "high": 1.0,
            },
        ],
    }
    stamp = path.stat().st_mtime_ns
    claims.save(claims.judge(run, measured), run)
    assert path.read_text() == text
    assert path.stat().st_mtime_ns == stamp
    assert [p.name for p in run.figures_dir.iterdir()] == ["claims.json"]


def test_the_report_lists_all_claims_judged_or_not_and_explains(write: Write, run: Run):
    folder = write({}, {"id": "P9-02", "says": "nobody looked"}, {"id": "P9-03"})
    (folder / "notes.toml").write_text('["P9-03"]\nquick = "the network is too small"\n')
    some = claims.judge(run, {"P9-01": (0.7, 0.05), "P9-02": None, "P9-03": 0.25})
    claims.save([x for x in some if x.id != "P9-02"], run)
    head, one, two, three, why = claims.report()
    assert head.split() == ["claim", "document", "band", "quick", "full", "says"]
    assert one.split()[:8] == ["P9-01", "0.8", "[0.5,", "1]", "0.7", "±", "0.05", "holds"]
    assert two.split() == [
        "P9-02",
        "0.8",
        "[0.5,",
        "1]",
        "not",
        "run",
        "not",
        "run",
        "nobody",
        "looked",
    ]
    assert three.split()[4:6] == ["0.25", "DIFFERS"]
    assert why.split(maxsplit=1) == ["quick:", "the network is too small"]


def test_main_merges_each_profile_and_leaves_the_notebooks_files(
    write: Write, figures_dir: Path, capsys: pytest.CaptureFixture[str]
):
    write({}, {"id": "P9-02", "notebook": "00_start_here"})
    tour = config.resolve("00_start_here", "quick", device="cpu")
    claims.save(claims.judge(tour, {"P9-02": 0.9}), tour)
    large = config.resolve(NOTEBOOK, "full", device="cpu")
    claims.save(claims.judge(large, {"P9-01": 0.1}), large)
    assert claims.main() == 0
    quick = json.loads((figures_dir / "quick" / "claims.json").read_text())
    full = json.loads((figures_dir / "full" / "claims.json").read_text())
    assert {k: v["verdict"] for k, v in quick.items()} == {"P9-02": "holds"}
    assert {k: v["verdict"] for k, v in full.items()} == {"P9-01": "DIFFERS"}
    assert not (figures_dir / "paper").exists()
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert claims.main() == 0  # the merged file is not taken for a notebook's


def test_near_the_edge_is_said_of_what_the_reference_has_near_and_of_what_becomes_the_reference(
    write: Write, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    write({"band": [0.5, 1.0]})
    reference = tmp_path / "reference.json"
    monkeypatch.setattr(claims, "REFERENCE", reference)
    measured: dict[str, claims.Measured] = {"P9-01": (0.52, 0.05)}
    for row, near in (
        ({}, False),
        ({"P9-01": {"verdict": "holds", "value": 0.51, "spread": 0.05}}, True),
        ({"P9-01": {"verdict": "holds", "value": 0.8, "spread": 0.05}}, False),
    ):
        reference.write_text(json.dumps(row))
        assert ("near the edge" in str(claims.judge(run, measured)[0])) is near
    monkeypatch.setenv(claims.RENEWING, "1")
    assert "near the edge" in str(claims.judge(run, measured)[0])


def test_an_unbounded_spread_is_judged_as_it_is_stored(
    write: Write, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    write({"band": [0.5, 1.0]})
    reference = tmp_path / "reference.json"
    monkeypatch.setattr(claims, "REFERENCE", reference)
    said = []
    for renewing in ("1", "0"):
        monkeypatch.setenv(claims.RENEWING, renewing)
        found = claims.judge(run, {"P9-01": (0.2, float("inf"))})
        said.append(str(found[0]))
        claims.save(found, run)
        reference.write_text(json.dumps(claims.results("quick", run.figures_dir.parent.parent)))
    assert said[0] == said[1]
