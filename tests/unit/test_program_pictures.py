"""Figures and tables of notebook 33 say what the results say."""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
import torch

from lib import figures
from lib.npeff import concept_search as concepts
from lib.npeff import program as programs
from lib.npeff import program_pictures as pictures
from lib.npeff import store
from lib.npeff.concept_search import Search
from lib.npeff.factorise import decompose, explained
from lib.npeff.program import Compiled, inference
from lib.npeff.program.location import Mass, mass, owners
from lib.npeff.program_studies import ClauseFound, Placement, SizeCount


@pytest.fixture(autouse=True)
def _style():
    figures.use_style()
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return programs.compile_program(inference.build())


@pytest.fixture(scope="module")
def found() -> Search:
    """Two sets of 200 examples: one with "rare", which 30 of them have, one with nothing."""
    i = torch.arange(200)
    truth = torch.stack([i < 30, i % 2 == 0], 1)
    made = concepts.both_polarities(truth, ("rare", "even"))
    top = torch.stack([i[:20], torch.cat([i[25:35], i[100:110]])])
    return concepts.search(top, made, (i % 3 == 0).long(), seed=0, n_random=40)


@pytest.fixture(scope="module")
def where(compiled: Compiled) -> Mass:
    """Two components: one in the first layer's heads, one in the unit that makes the label."""
    of = owners(compiled)
    number = {name: i for i, name in enumerate(of.variables)}
    components = torch.zeros(2, len(of.layer))
    components[1, (of.computes == number["prem"]).nonzero().flatten()[:3]] = 1
    components[0, (of.computes == number["label"]).nonzero().flatten()[:3]] = 1
    return mass(of, torch.arange(len(of.layer)), components)


def test_the_diagram_says_what_each_group_holds(compiled: Compiled):
    (axis,) = pictures.diagram(compiled).axes
    words = [text.get_text() for text in axis.texts if text.get_text()]
    assert len(words) == 11
    whole = " ".join(words)
    assert "16 tests" in whole  # 4 + 3 + 9
    assert "20 ANDs" in whole  # 8 shared and 12 clauses
    assert "10 ORs" in whole
    last = compiled.layer_of["label"]
    assert f"label\nlayer {last}" in words


def test_pure_rows_hold_counts_and_chance(found: Search):
    (row,) = pictures.pure_rows({"components": found})
    assert row["top examples of"] == "components"
    assert str(row["held by at most 1/4"]).startswith("1 of 2 (")
    assert row["document, any concept"] == "–"


def test_conjunction_rows_name_the_common_concepts(found: Search):
    first, second = pictures.conjunction_rows(found)
    assert first["top examples have in common"] == "rare"
    assert first["share of all examples"] == pytest.approx(0.15)
    assert second["top examples have in common"] == "nothing"


def test_purity_curves_are_those_of_the_search(found: Search):
    levels = (0.8, 0.9, 1.0)
    axes = pictures.purity_curves({"components": found}, levels).axes
    assert len(axes) == len(concepts.LIMITS)
    for i, axis in enumerate(axes):
        lines = {line.get_label(): line.get_ydata().tolist() for line in axis.lines}
        assert lines["components"] == concepts.purity_curve(found.purity, levels)[:, i].tolist()
        null = concepts.purity_curve(found.null_purity, levels)[:, i]
        assert lines["random sets"] == null.tolist()


def test_the_map_of_mass_orders_components_by_layer(compiled: Compiled, where: Mass):
    left, right, _ = pictures.mass_map(where, compiled.layer_of).axes
    shown = left.images[0].get_array()
    assert shown[0, 0] == 1  # the component of the first layer comes first
    assert shown[1, compiled.layer_of["label"]] == 1
    assert [label.get_text() for label in left.get_yticklabels()] == ["1", "0"]
    names = [label.get_text() for label in right.get_xticklabels()]
    assert names == ["0  prem", f"{compiled.layer_of['label']}  label", "others"]


def test_configuration_rows_say_what_was_compiled(compiled: Compiled):
    rows = {row[""]: row for row in pictures.configuration_rows(compiled, 1616, (32, 128))}
    assert rows["layers"] == {"": "layers", "document": "23", "here": str(compiled.n_layers)}
    assert rows["components"]["here"] == "32, 128"


def test_the_loss_is_drawn_as_what_is_explained():
    generator = torch.Generator().manual_seed(0)
    fishers = store.normalise(store.from_dense(torch.rand(9, 3, 5, generator=generator)))
    fits = {r: decompose(fishers, r, seed=0, steps=20) for r in (2, 3)}
    left, right = pictures.sparsity_and_loss(fishers, fits).axes
    assert sum(bar.get_height() for bar in left.patches) == 9
    for line, fit in zip(right.lines, fits.values(), strict=True):
        assert line.get_ydata()[-1] == pytest.approx(explained(fit))


def test_clause_rows_stand_beside_the_clusters():
    one = ClauseFound("a", 30, 2, 0.9, 0.5, 0.6, 1.0, True)
    (row,) = pictures.clause_rows([one], [replace(one, average_precision=0.4)])
    assert (row["average precision"], row["best cluster's"]) == (0.9, 0.4)
    assert row["beyond chance"] == "yes"


def test_size_curves_draw_components_and_chance():
    counts = [SizeCount(t, (1.0, 0.5, 0.2, 0.0), (0.9, 0.1, 0.0, 0.0), 0.3, 9) for t in (16, 32)]
    left, right = pictures.size_curves({4: counts}).axes
    heights = sorted(line.get_ydata()[0] for line in left.lines)
    assert heights == [0, 0.1, 0.2, 0.3, 0.5, 0.9, 1]
    assert right.lines[0].get_ydata().tolist() == [9, 9]


def test_placement_dots_are_logarithms_of_the_ratios():
    ratio = torch.tensor([4.0, 0.5], dtype=torch.float64)
    null = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    one = Placement(torch.tensor([0, 1]), ratio / 10, ratio, null)
    (axis,) = pictures.placement_dots({"all": one}).axes
    assert axis.collections[0].get_offsets()[:, 1].tolist() == [-1, 2]
    assert "0.50 above 0" in axis.get_title(loc="left")


def test_the_card_shows_five_examples_with_their_words(compiled: Compiled):
    examples = inference.examples(30, seed=0, program=compiled.program)
    made = concepts.both_polarities(examples.truth, examples.variables)
    w = torch.rand(30, 1, generator=torch.Generator().manual_seed(0))
    fit = decompose(store.normalise(store.from_dense(torch.ones(30, 1, 2))), 1, seed=0, steps=1)
    fit = replace(fit, coefficients=w)
    top = concepts.top_examples(w, 5)
    search = concepts.search(top, made, examples.labels, seed=0, n_random=5)
    (axis,) = pictures.component_card(search, fit, examples, 0).axes
    words = axis.texts[0].get_text()
    assert words.count("→") == 5
    assert " ".join(examples.words(int(w.argmax()))[:4]) in words
