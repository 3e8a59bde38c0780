"""A missing or half-written result is one sentence on the page and on stderr, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from lib import config
from lib.engine import gallery
from tests.gallery_project import make_project

Break = Callable[[Path], object]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path / "project")


def cut(path: str) -> Break:
    """Leave the first half of a file, as a killed writer would."""

    def half(root: Path) -> None:
        data = (root / path).read_bytes()
        (root / path).write_bytes(data[: len(data) // 2])

    return half


def drop(path: str) -> Break:
    return lambda root: (root / path).unlink()


def put(path: str, text: str) -> Break:
    return lambda root: (root / path).write_text(text)


QUICK = "figures/quick/51_tabular"
FAULTS: dict[str, tuple[Break, str]] = {
    "claims cut": (cut(f"{QUICK}/claims.json"), "51_tabular at quick: claims.json is damaged"),
    "claims gone": (drop(f"{QUICK}/claims.json"), "51_tabular at quick has no claims.json"),
    "claims a list": (put(f"{QUICK}/claims.json", "[]"), "claims.json is damaged"),
    "claims without numbers": (
        put(
            f"{QUICK}/claims.json",
            '{"claims": [{"id": "P5-01", "verdict": "holds", "value": "x", "spread": 0, '
            '"low": 0, "high": 1}]}',
        ),
        "claims.json is damaged",
    ),
    "claim of no ledger": (
        put(
            f"{QUICK}/claims.json",
            '{"claims": [{"id": "P5-77", "verdict": "holds", "value": 1, "spread": 0, '
            '"low": 0, "high": 1}]}',
        ),
        "51_tabular at quick judged P5-77, which the ledger does not list for it",
    ),
    "band moved": (
        put(
            f"{QUICK}/claims.json",
            '{"claims": [{"id": "P5-02", "verdict": "holds", "value": 0.5, "spread": 0, '
            '"low": 0.2, "high": 1}]}',
        ),
        "the ledger's band of P5-02 is no longer the one it was judged by",
    ),
    "png cut": (cut(f"{QUICK}/fig2_bars.png"), "fig2_bars.png is damaged"),
    "png gone": (drop(f"{QUICK}/fig2_bars.png"), "51_tabular at quick has no fig2_bars.png"),
    "png empty": (put(f"{QUICK}/fig2_bars.png", ""), "fig2_bars.png is damaged"),
    "svg cut": (cut(f"{QUICK}/fig2_bars.svg"), "fig2_bars.svg is damaged"),
    "alt gone": (drop(f"{QUICK}/fig2_bars.txt"), "fig2_bars has no description (alt text)"),
    "table empty": (put(f"{QUICK}/t1_probes.csv", ""), "t1_probes.csv is damaged"),
    "table ragged": (put(f"{QUICK}/t1_probes.csv", "a,b\n1\n"), "t1_probes.csv is damaged"),
    "run cut": (cut("build/quick/51_tabular/run.json"), "run.json is damaged"),
    "run gone": (drop("figures/full/51_tabular/run.json"), "51_tabular at full has no run.json"),
    "notebook cut": (cut("notebooks/51_tabular.ipynb"), "cannot be read as a notebook"),
    "notebook gone": (
        drop("notebooks/51_tabular.ipynb"),
        "notebooks/51_tabular.ipynb is not there",
    ),
    "ledger cut": (put("lib/ledger/part5.toml", "[[claim]\n"), "The ledger cannot be read"),
    "band not a pair": (
        lambda root: put(
            "lib/ledger/part5.toml",
            (root / "lib/ledger/part5.toml").read_text().replace("[0, inf]", "[0]"),
        )(root),
        "The ledger cannot be read",
    ),
    "notes cut": (put("lib/ledger/notes.toml", '["P5-02"'), "notes.toml cannot be read"),
    "notes flat": (put("lib/ledger/notes.toml", 'P5-02 = "why"'), "notes.toml cannot be read"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_one_sentence_on_page_and_stderr(
    fault: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    breaks, sentence = FAULTS[fault]
    breaks(project)
    monkeypatch.setattr(config, "ROOT", project)
    monkeypatch.setenv("FIGURES_DIR", str(project / "figures"))
    assert gallery.main() == 0
    said = capsys.readouterr().err
    assert said.count(sentence) == 1
    assert said.startswith("gallery: ")
    assert "Traceback" not in said
    page = unescape((project / "figures/index.html").read_text(encoding="utf-8"))
    assert page.count(sentence) == 1
    assert page.rstrip().endswith("</html>")


def test_project_without_results_has_a_page(tmp_path: Path) -> None:
    path, page = gallery.write(tmp_path, tmp_path / "figures")
    assert page.all_problems() == []
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")


def test_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "figures").write_text("a file where the folder should be")
    done = subprocess.run(
        [sys.executable, "-m", "lib.engine.gallery"],
        cwd=config.ROOT,
        env=os.environ | {"FIGURES_DIR": str(tmp_path / "figures")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("gallery: cannot write index.html in ")
    assert done.stderr.count("\n") == 1


def test_interrupted_write_leaves_the_old_page(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = gallery.write(project, project / "figures")
    before = path.read_bytes()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    (project / "figures/quick/51_tabular/fig2_bars.txt").write_text("Another description of it\n")
    with pytest.raises(KeyboardInterrupt):
        gallery.write(project, project / "figures")
    assert path.read_bytes() == before
    assert not list((project / "figures").glob(".index*"))


def test_leftover_of_a_killed_run_is_removed_and_a_live_one_is_kept(project: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    figures = project / "figures"
    (figures / f".index.html.{dead.pid}.part").write_text("<!DOC")
    live = figures / f".index.html.{os.getppid()}.part"
    live.write_text("<!DOC")
    gallery.write(project, figures)
    assert list(figures.glob(".index*")) == [live]
