"""Units planted with a concept: who names them, who can, and where the others go."""

import math

import pytest
import torch

from lib.data.annotations import CATEGORIES
from lib.monitoring import planted_units as units
from lib.monitoring.activations import ConceptSet

C = 12
WORDS = ConceptSet(tuple(f"w{k}" for k in range(C)), tuple(CATEGORIES[k % 6] for k in range(C)))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def coverage(n=1500, c=C, seed=0):
    g = seeded(seed)
    return torch.rand(n, c, generator=g) * (torch.rand(n, c, generator=g) < 0.15)


def with_a_twin():
    """Concept 1 goes along with 0, concept 2 is in no image."""
    x = coverage()
    x[:, 1] = x[:, 0] * (1 + 0.05 * torch.rand(1500, generator=seeded(1)))
    x[:, 2] = 0.0
    return x


def oracle(x):
    return (x - x.mean(0)) / x.std(0).clamp_min(1e-9)


def swapped(x):
    """An encoder that takes the first two concepts for each other."""
    return x[:, [1, 0, *range(2, C)]]


def test_clear_planted_units_are_named_right_by_the_oracle_and_by_chance_without_images():
    shown = [coverage(seed=k) for k in range(2)]
    blind = torch.randn(1500, C, generator=seeded(5))
    found = units.planted([(x, {"oracle": x, "blind": blind}) for x in shown])
    assert len(found) == 2 * len(units.VARIANTS)
    for one in found:
        share, _ = one.share
        assert share > 0.9 if one.encoder == "oracle" else share < 0.5
        assert one.near_share[0] >= share


def test_a_twin_counts_as_near_and_an_absent_concept_not_at_all():
    x = with_a_twin()
    sets = [(x, {"swaps": swapped(x)})]
    (one,) = units.planted(sets, noise=0.01, variants=["cosine, cubed"])
    assert one.present[0].tolist() == [True, True, False] + [True] * 9
    assert one.label[0, :2].tolist() == [1, 0]
    assert one.near[0, :2].tolist() == [True, True]
    assert one.share[0] == pytest.approx(9 / 11)
    assert one.near_share[0] == pytest.approx(1.0)
    assert one.by_category(WORDS)[CATEGORIES[0]] == pytest.approx(0.5)  # w0 wrong, w6 right


def test_small_concepts_drown_in_noise_of_the_image_but_not_of_their_own():
    x = 0.02 * coverage()
    absolute, own = (
        units.planted([(x, {"o": x})], relative=r, variants=["cosine, cubed"])[0].share[0]
        for r in (False, True)
    )
    assert absolute < 0.7
    assert own == 1.0


def test_of_two_concepts_the_most_likely_is_right_as_often_as_their_distance_says():
    x = 0.1 * torch.rand(40, 2, generator=seeded())
    noise = 0.1
    found = units.best_possible([(x, {})] * 2000, noise=noise)
    distance = float((x[:, 0] - x[:, 1]).norm()) / noise
    want = 0.5 * (1 + math.erf(distance / 2 / math.sqrt(2)))
    assert 0.6 < want < 0.95
    assert found.share[0] == pytest.approx(want, abs=4 * math.sqrt(want * (1 - want) / 4000))


def test_the_best_possible_knows_the_units_that_detectors_are_given_and_leads_on_average():
    x = 0.1 * coverage()
    sets = [(x, {"oracle": oracle(x)})] * 8
    best = units.best_possible(sets, seed=3)
    for one in units.planted(sets, seed=3):
        assert one.share[0] <= best.share[0] + 0.02
    assert units.best_possible([(x, {})], noise=1e-4).share[0] == 1.0
    clear = units.best_possible(sets, relative=True)
    assert clear.share[0] == 1.0
    assert clear.clarity.unique().tolist() == [pytest.approx(10.0)]


def test_a_concept_that_is_not_there_is_never_the_most_likely():
    x = 0.001 * with_a_twin()  # all but lost in the noise, so that nothing is likely too
    found = units.best_possible([(x, {})] * 50)
    assert (found.label != 2).all()
    assert found.clarity[0, 2] == 0


def test_a_concept_that_is_another_at_half_its_size_is_told_by_its_scale_alone():
    x = coverage()
    x[:, 1] = 0.5 * x[:, 0] + 0.005 * torch.rand(1500, generator=seeded(1))
    sets = [(x, {"oracle": oracle(x)})] * 20
    found, best = units.planted(sets, variants=["cosine"]), units.best_possible(sets)
    assert best.share[0] == 1.0
    assert best.label[0].tolist() == list(range(C))
    (row,) = units.reason_rows({"noise .1": found}, {"noise .1": best}, ["cosine"])
    alone = float(row["told by scale alone"].split("%")[0])
    assert alone == pytest.approx(100 / 12, abs=4)  # of the two one, by chance
    assert float(row["right"].split("%")[0]) == pytest.approx(100 - alone, abs=1)
    assert row["near twin"].startswith("0%")


def test_planted_units_are_right_drowned_a_twin_or_something_else():
    x = with_a_twin()
    x[:, 3:9] *= 1e-4  # drowned in noise of the image, clear in their own
    found, best = {}, {}
    for name, relative in units.READINGS.items():
        sets, same = [(x, {"oracle": oracle(swapped(x))})], [(x, {"oracle": oracle(x)})]
        found[name] = units.planted(sets, relative=relative, variants=["cosine, cubed"])
        found[name] += units.planted(same, relative=relative, variants=["cosine"])
        best[name] = units.best_possible(same, relative=relative)
    rows = units.reason_rows(found, best, ["cosine, cubed"])
    assert [row["noise"] for row in rows] == list(units.READINGS)
    image, own = ([float(x.split("%")[0]) for x in list(row.values())[2:]] for row in rows)
    assert own == [round(900 / 11), 0, 0, round(200 / 11), 0]
    assert image[1] >= 20  # of six units the likeliest is right for one, by chance
    for shares in (image, own):
        assert sum(shares) == pytest.approx(100, abs=2)  # each is rounded


def test_rows_say_what_is_confused_and_how_far_it_stood_out():
    x = with_a_twin()
    sets = [(x, {"oracle": swapped(x)})] * 2
    found = units.planted(sets, noise=0.01, variants=["cosine, cubed"])
    best = units.best_possible(sets, noise=0.01)
    rows = units.confused_rows(found, best, WORDS, variant="cosine, cubed")
    assert [(row["planted"], row["named"]) for row in rows] == [
        ("w0 (color)", "w1 (object)"),
        ("w1 (object)", "w0 (color)"),
    ]
    assert rows[0]["sets"] == "2 of 2"
    assert rows[0]["coverage alike"] == "1.00"
    assert rows[0]["best possible right"] == "2 of 2"
    (row,) = units.clarity_rows(found, best, WORDS)  # all stand out by far
    assert row["sd of signal over noise"] == "above 1"
    assert row["units"] == "22"
    assert (row["cosine, cubed"], row["best possible"]) == ("82%", "100%")


def test_the_table_has_the_best_possible_last_and_no_trained_encoder_there():
    x = coverage()
    found, best = {}, {}
    for name, relative in units.READINGS.items():
        sets = [(x, {"oracle": x, "trained encoder": x})]
        found[name] = units.planted(sets, relative=relative, variants=["cosine", "WPMI"])
        best[name] = units.best_possible(sets, relative=relative)
    rows = units.planted_rows(found, best)
    assert [row["similarity"] for row in rows] == ["cosine", "WPMI", "best possible"]
    assert all(list(row) == list(rows[0]) for row in rows)
    assert rows[-1]["oracle, noise .1"] == "100% ± 0%"
    assert rows[-1]["trained encoder, noise .1"] == ""
