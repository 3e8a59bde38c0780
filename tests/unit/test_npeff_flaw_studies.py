"""What notebook 36 measures, on planted counts and on a network whose flaw one weight holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lib.data.base import Provenance
from lib.npeff import fisher, flaw_pictures, flaw_studies, repair_within, store, testbeds
from lib.npeff.components import Components
from lib.npeff.decomposition import Decomposition, unit
from lib.npeff.divergence import CHUNK
from lib.npeff.factorise import decompose
from lib.npeff.perturb import directions
from lib.npeff.repair import Gains, Split, Workbench
from lib.npeff.testbeds import Examples
from lib.training import Recipe

N = 240
SHORT = (Recipe(2, 50, 1e-3, optimizer="adam"),)


def inputs(seed: int) -> tuple[Tensor, Tensor]:
    """Three features, of which the last is on for a fifth: the flaw's counter-examples."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, 3, generator=generator)
    x[:, 2] = (torch.arange(N) % 5 == 0) * 2.0
    return x, x[:, 2].bool().long()


def flawed() -> testbeds.Testbed:
    """The label is the sign of the first feature; counter-examples are pushed to class 1."""
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    model[0].weight.data = torch.tensor([[-1.0, 0, 0], [1.0, 0, 1.2]])
    names = ("no", "yes")
    made = []
    for seed in (0, 1):
        x, concept = inputs(seed)
        made.append(Examples(x, (x[:, 0] > 0).long(), concept))
    nothing = Provenance("planted", "drawn", "none", "0" * 64, N, "")
    return testbeds.Testbed(
        "planted", model, *made, names, ("plain", "flawed"), "0", nothing, 1.0, {"m": 0}
    )


def fishers_of(bed: testbeds.Testbed, part: str, **options: object) -> store.Fishers:
    """Without the cache, which wants the source of a model's class."""
    return fisher.per_example_fishers(bed.model, getattr(bed, part).x, k=6)


@pytest.fixture(scope="module")
def expanded() -> flaw_studies.Expanded:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flaw_studies, "fishers_of", fishers_of)
        bed = flawed()
        raw = fishers_of(bed, "fit", kind=store.LOW_RANK, k=6)
        made = unit(decompose(store.prune(store.normalise(raw)), 3, seed=0, steps=50))
        nothing = torch.zeros(N, 3)
        general = Components(bed, made, nothing, raw.norms, raw.logits, raw.norms)
        return flaw_studies.expand_on_errors(general, k=6, n_new=2, seed=0, steps=50)


def planted(counts: list[int], n_new: int) -> flaw_studies.Expanded:
    """Components whose 16 top examples hold these numbers of mispredicted ones."""
    r = len(counts)
    coefficients = torch.zeros(16 * r, r)
    wrong = torch.zeros(16 * r, dtype=torch.bool)
    for j, count in enumerate(counts):
        coefficients[16 * j : 16 * (j + 1), j] = 1.0
        wrong[16 * j : 16 * j + count] = True
    made = Decomposition(
        store.LOW_RANK, coefficients, torch.eye(r), torch.arange(r), (("w", (r,)),), r,
        torch.zeros(1), torch.zeros(1, dtype=torch.int64), 1.0, 0, {}, frozen=r - n_new,
    )  # fmt: skip
    return flaw_studies.Expanded(flawed(), made, coefficients, wrong, 10)


def test_counts_are_of_the_sixteen_top_examples():
    found = planted([16, 8, 7, 0], n_new=2)
    assert flaw_studies.mispredicted(found).tolist() == [16, 8, 7, 0]
    assert flaw_studies.count_difference(found)[0] == 1.0
    shares = flaw_studies.shares_by_count(found, seed=0, n_draws=50)
    assert shares["expanded"][8] == 1.0
    assert shares["general"][7] == 0.5
    assert all(float(values[0]) == 1.0 for values in shares.values())


def test_counts_among_some_rows_are_of_these_rows():
    found = planted([16, 0], n_new=1)
    rows = torch.arange(8, 32)  # half of the first component's examples, all of the second's
    assert set(found.top(rows)[1].tolist()) == set(range(16, 32))
    assert flaw_studies.mispredicted(found, rows)[0] >= 8


def test_expansion_adds_components_first_and_filters_errors(expanded):
    assert expanded.n_new == 2
    assert expanded.held_out.shape == (N, 5)
    assert 2 < expanded.n_filtered < N / 5  # only counter-examples can be wrong here
    assert not expanded.wrong[expanded.bed.held_out.concept == 0].any()


def test_more_components_than_errors_are_refused(monkeypatch):
    monkeypatch.setattr(flaw_studies, "fishers_of", fishers_of)
    bed = flawed()
    none = Examples(bed.fit.x, bed.model(bed.fit.x).argmax(1), bed.fit.concept)
    right = testbeds.Testbed(
        "right", bed.model, none, none, bed.classes, bed.concepts, "0", bed.provenance, 1.0, {}
    )
    w = torch.zeros(N, 3)
    made = planted([1, 1, 1], 1).decomposition
    with pytest.raises(ValueError, match="errs on 0 of 240"):
        flaw_studies.expand_on_errors(
            Components(right, made, w, torch.ones(N), w, w), k=6, n_new=1, seed=0, steps=1
        )


def test_halves_are_disjoint_and_candidates_come_from_the_first(expanded):
    bench = flaw_studies.bench_of(expanded, "flawed", n_candidates=3, seed=0)
    assert len(torch.cat([bench.selection.rows, bench.test.rows]).unique()) == N
    assert (expanded.bed.held_out.concept[bench.test.counter] == 1).all()
    assert (bench.n_wrong.diff() <= 0).all()
    counts = flaw_studies.mispredicted(expanded, bench.selection.rows)
    assert torch.equal(counts[bench.candidates], bench.n_wrong)


def workbench(*weights: int) -> Workbench:
    """A bench whose only direction is of these of the network's six weights."""
    bed = flawed()
    kept, parameters = torch.arange(6), (("0.weight", (2, 3)),)
    g = torch.zeros(1, 6)
    g[0, list(weights)] = 1
    counter = (bed.held_out.concept == 1).nonzero()[:, 0]
    others = (bed.held_out.concept == 0).nonzero()[:, 0]
    halves = [Split(counter[k::2], others[k::2]) for k in (0, 1)]
    data = (bed.held_out.x, bed.held_out.y)
    return Workbench(bed.model, data, directions(g, kept, parameters), *halves, 0.5, CHUNK)


def bounded(*weights: int, **options: object):
    return repair_within.repair_within(
        workbench(*weights),
        torch.tensor([0]),
        generator=torch.Generator().manual_seed(0),
        recipes=SHORT,
        **options,
    )


def test_the_weight_that_holds_the_flaw_repairs_it():
    found = bounded(5, sizes=(1.2,))["component"]
    assert found.size == pytest.approx(-1.2)
    assert found.gain[0] > 0.1
    assert found.gain[1] == 0  # the weight reads nothing of the other examples
    assert flaw_studies.repaired(found)[0] == float(found.gain[0])


def test_a_repair_that_harms_others_is_not_within_the_bound():
    free = bounded(4, 5, sizes=(1.7,), allowed=1.0)["component"]  # with it a weight of noise
    assert free.size == pytest.approx(-1.7)
    assert free.selected[1] < -0.01
    held = bounded(4, 5, sizes=(1.7,), allowed=0.01)["component"]
    assert held.size == 0
    assert torch.equal(held.gain, torch.zeros(2, dtype=torch.float64))


def test_bounds_hold_where_changes_are_chosen_and_the_network_is_left_as_it_was():
    bench = workbench(5)
    before = bench.model[0].weight.detach().clone()
    found = bounded(5, allowed=0.02)
    assert all(outcome.selected[1] >= -0.02 for outcome in found.values())
    assert torch.equal(bench.model[0].weight, before)
    assert {m: o.n_tried for m, o in found.items()} == {  # one recipe, three parts of its way
        "component": 8, "random direction": 8, "one gradient step": 24, "fine-tuning": 3
    }  # fmt: skip


def test_fine_tuning_changes_parameters_outside_the_block_too(monkeypatch):
    bed, small = flawed(), workbench(5)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False))
    model[0].weight.data = torch.eye(3)
    model[1].weight.data = bed.model[0].weight.data
    block = replace(small.directions, parameters=(("1.weight", (2, 3)),))
    bench = replace(small, model=model, directions=block)

    def forget_the_last_feature(copy: nn.Module, *_: object, **__: object) -> nn.Module:
        copy[0].weight.data[2, 2] = 0.0
        return copy

    monkeypatch.setattr(repair_within, "train", forget_the_last_feature)
    generator = torch.Generator().manual_seed(0)
    found = repair_within.repair_within(
        bench, torch.tensor([0]), generator=generator, recipes=SHORT
    )["fine-tuning"]
    assert found.size == pytest.approx(0.75)  # three quarters of the way do
    assert found.gain[0] > 0.1
    assert torch.equal(model[0].weight.data, torch.eye(3))


@pytest.mark.parametrize(
    "options",
    [{"sizes": ()}, {"sizes": (0.2, 0.1)}, {"balances": (1.0,)}, {"allowed": -0.1}],
)
def test_senseless_searches_are_refused(options):
    with pytest.raises(ValueError, match="want"):
        bounded(5, **options)


def test_a_repair_that_costs_too_much_counts_as_none():
    pair = torch.tensor([0.5, -0.02], dtype=torch.float64)
    costly = repair_within.Outcome(0, 0.1, 1, pair, pair, pair.abs())
    assert flaw_studies.repaired(costly)[0] == 0
    cheap = repair_within.Outcome(0, 0.1, 1, pair, pair / 4, pair.abs())
    assert flaw_studies.repaired(cheap)[0] == 0.125
    assert flaw_studies.advantage(cheap, costly)[0] == 0.125


def test_claims_without_candidates_are_not_run_and_others_are_of_the_candidates(expanded):
    bench = flaw_studies.bench_of(expanded, "flawed", n_candidates=3, seed=0)
    nothing, found, null = [0.0] * 3, [0.01, 0, 0.2], [0.004, 0.3, 0]
    on_selection, null_on_selection = [0.1, 0.3, 0.5], [0.2, 0.1, 0.3]
    gains = Gains(*torch.tensor([nothing, found, on_selection, nothing, null, null_on_selection]))
    none = flaw_studies.Bench(*list(vars(bench).values())[:3], torch.tensor([7, 7, 0]),
                              bench.selection, bench.test)  # fmt: skip
    assert flaw_studies.raised(none, gains) is None
    assert flaw_studies.gain_beyond_random(none, gains) is None
    two = flaw_studies.Bench(*list(vars(bench).values())[:3], torch.tensor([9, 8, 0]),
                             bench.selection, bench.test)  # fmt: skip
    assert flaw_studies.raised(two, gains)[0] == 0.5
    # the second component and the first random direction are the best of the selection half
    assert flaw_studies.gain_beyond_random(two, gains)[0] == pytest.approx(0 - 0.004)


def test_pictures_of_flaws_name_what_they_show():
    pair = torch.tensor([0.1, 0.0], dtype=torch.float64)
    outcome = repair_within.Outcome(0, 0.1, 1, pair, pair, pair)
    nothing = repair_within.Outcome(-1, 0.0, 1, 0 * pair, 0 * pair, pair)
    fig = flaw_pictures.bounded_repairs({"component": outcome, "random": nothing}, 0.01)
    assert [(text.get_position()[1], text.get_text()) for text in fig.axes[0].texts] == [
        (1, " none mends any within the bound")
    ]
    assert [axis.get_title(loc="left") for axis in fig.axes] == [
        "counter-examples",
        "elsewhere",
    ] or ([axis.get_title() for axis in fig.axes] == ["counter-examples", "elsewhere"])
    shares = {k: torch.linspace(1, 0, 17) for k in ("expanded", "general", "random sets")}
    labels = flaw_pictures.mispredicted_shares(shares, 8).axes[0].get_legend_handles_labels()[1]
    assert "document, expanded" in labels
    rules = flaw_pictures.accuracy_by_rule({"a": torch.ones(2)}, ("x", "y"), "y").axes[0]
    assert rules.get_xticklabels()[1].get_fontweight() == "bold"
