"""Figures of notebooks 12 and 13 come from saved arrays, and say what they were drawn from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lib import config, figures
from lib.attribution import (
    concept_cases,
    concept_pictures,
    concept_retraining,
    concept_studies,
    removal_pictures,
    truth,
)
from lib.attribution.concept_cases import Study
from lib.config import ROOT, Run

LAYER = "hidden2"
SAID = {  # what a caption must name besides the profile: the seed, and what scores depend on
    "11_concept_presence": ("{run.seed}",),
    "12_concept_attribution": ("{run.seed}", "{size.n_models}", "parameters up to", "k =", "ridge"),
    "13_concept_removal": ("{run.seed}", "{size.n_models}", "{size.n_retrained}", "k =", "ridge"),
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    made = config.resolve("12_concept_attribution", "quick", concepts=("round",))
    figures.use_style()
    return replace(made, figures_dir=tmp_path / "figures")


def _draw(study: Study, run: Run, networks: list) -> dict[str, bytes]:
    """Every figure that shows scores or removals, of few networks."""
    case = study.cases["round"]
    found = {
        "round": concept_studies.fetch_scores(
            study, case, networks, study.layers, k=64, ridge=0.3, null=True
        )
    }
    rankings = {"frozen": found["round"].mean("frozen", LAYER)}
    removed = concept_retraining.removals(
        study, case, LAYER, rankings, (50,), n_models=3, grid=(), seed=0
    )
    split = {"n_splits": 4, "seed": 0}
    agreements, nulls = (
        concept_studies.split_all(found, version, **split) for version in ("frozen", "null")
    )
    drawn = {
        "curves": concept_pictures.curves(found),
        "classes": concept_pictures.classes(study, found, "frozen"),
        "consistency": concept_pictures.consistency(
            agreements, nulls, *concept_studies.between(found, "frozen")
        ),
        "effects": removal_pictures.effects({"round": removed}, ["frozen"]),
        "equivalence": removal_pictures.equivalences({"round": removed}, ["frozen"]),
    }
    for name, fig in drawn.items():
        figures.save(fig, run, name, "A figure that is drawn twice here.")
    return {name: (run.figures_dir / f"{name}.png").read_bytes() for name in drawn}


def test_figures_are_redrawn_byte_for_byte_from_saved_arrays_alone(run: Run) -> None:
    whole = concept_cases.load(run)
    short = replace(whole.setting.recipe, epochs=3)
    study = replace(whole, setting=replace(whole.setting, recipe=short))
    networks = truth.checkpoints(study.setting, 2, share=1, seed=0)
    first = _draw(study, run, networks)
    saved = sorted((run.figures_dir.parent / "cache").glob("*.safetensors"))

    def refuse(*_: object) -> None:
        raise AssertionError("a network ran, though its scores are saved")

    for network in networks:
        network.forward = refuse
    assert _draw(study, run, networks) == first
    assert sorted((run.figures_dir.parent / "cache").glob("*.safetensors")) == saved
    for path in saved:
        if path.name.startswith("concept-scores"):
            path.unlink()
    with pytest.raises(AssertionError, match="a network ran"):
        _draw(study, run, networks)


@pytest.mark.parametrize("name", SAID)
def test_captions_name_seeds_networks_block_and_ridge(name: str) -> None:
    """Each figure's foot, as far as its data have these; a diagram has none."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    whole = "\n".join(code)
    for words in SAID[name]:
        assert words in whole
    feet = [cell for cell in code if "figures.provenance(" in cell and "diagram()" not in cell]
    assert feet
    for cell in feet:
        assert any(part in cell for part in ("{who}", "{how}", "{run.seed}"))
