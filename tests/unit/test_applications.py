"""Data support and counterfactuals in a world where outputs are sums over the training rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lib.attribution import application_studies as studies
from lib.attribution import brittleness, truth
from lib.attribution.application_studies import Group, Study
from lib.attribution.subsets import membership
from lib.data.base import Split
from lib.training import Recipe

N, T, Q = 60, 8, 3
KS = (2, 5, 10)
TARGETS = [1, 4, 6]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> tuple[Study, Tensor]:
    """A study whose networks output exactly the sum of true weights, and these weights `[n, T]`."""
    generator = torch.Generator().manual_seed(0)
    tau = torch.randn(N, T, generator=generator).double()
    tau = tau - tau.mean(0) + 4.0 / N  # all rows together: a margin of 4
    x = torch.zeros(N, 2)
    setting = truth.Setting(
        "linear",
        "mlp",
        {"widths": (2, 2)},
        Recipe(epochs=1, batch_size=10, lr=0.1),
        Split(x, torch.arange(N) % 2),
        Split(x[:T], torch.arange(T) % 2),
    )

    def outputs(
        setting: truth.Setting, subsets: Tensor, *, repeats: int = 1, **_: object
    ) -> Tensor:
        return (membership(subsets, N) @ tau)[:, None].expand(-1, repeats, -1)

    monkeypatch.setattr(truth, "subset_outputs", outputs)
    monkeypatch.setattr(brittleness, "subset_outputs", outputs)
    scores = dict.fromkeys(studies.METHODS, tau[:, TARGETS])
    scores["similar representation"] = torch.rand(N, Q, generator=generator).double()
    before = tau.sum(0).expand(4, -1)
    return Study(setting, ("a", "b"), [], before, TARGETS, scores, KS, 2, 0), tau


def test_true_weights_predict_every_counterfactual_exactly(world):
    study, _ = world
    groups = studies.counterfactuals(study, studies.remove(study, 4))
    assert [g.kind for g in groups] == ["most helpful", "most harmful", "random", "of one class"]
    assert [len(g.predicted) for g in groups] == [3, 1, 12, 6]
    for group in groups:
        torch.testing.assert_close(group.predicted, group.actual)
    assert (groups[0].actual < 0).all()  # helpful rows gone: the margin falls
    assert (groups[1].actual > 0).all()
    found = studies.agreement(groups)
    assert found.pearson[0] == pytest.approx(1)
    assert found.slope[0] == pytest.approx(1)


def test_weights_of_the_wrong_sign_predict_the_opposite(world):
    study, _ = world
    scores = {**study.scores, "datamodel": -study.scores["datamodel"]}
    groups = studies.counterfactuals(study, removals := studies.remove(study, 4))
    wrong = studies.counterfactuals(replace(study, scores=scores), removals)
    for kind in (2, 3):  # sets that do not depend on the weights
        torch.testing.assert_close(wrong[kind].predicted, -groups[kind].predicted)
    assert studies.agreement(wrong[2:]).pearson[0] == pytest.approx(-1)


def test_removed_rows_are_what_they_are_called(world):
    study, _ = world
    found = studies.remove(study, 4)
    for i, k in enumerate(KS):
        assert (found.random_rows[i].sum(1) == k).all()
        assert (found.class_rows[i].sum(1) == k).all()
        for label in (0, 1):
            assert (study.setting.train.y[found.class_rows[i, label]] == label).all()
    assert found.random.shape == (3, 4, Q, 2)
    assert found.by_class.shape == (3, 2, Q, 2)


def test_support_is_where_the_sum_of_the_highest_weights_passes_the_margin(world):
    study, tau = world
    found = studies.supports(study, studies.remove(study, 4))
    for place, t in enumerate(TARGETS):
        left = torch.cat(
            [
                torch.tensor([4.0]).double(),
                4.0 - tau[:, t].sort(descending=True).values.cumsum(0)[[k - 1 for k in KS]],
            ]
        )
        first = int((left < 0).nonzero()[0])
        steps = (0, *KS)
        a, b = left[first - 1], left[first]
        expected = steps[first - 1] + (steps[first] - steps[first - 1]) * a / (a - b)
        assert found["datamodel"][place] == pytest.approx(expected.item())
    assert found["random"].shape == (4 * Q,)


def test_the_best_rows_beat_both_controls_and_a_method_never_beats_itself(world):
    study, _ = world
    wrong = studies.wrong_at(study, studies.remove(study, 4))
    assert wrong["datamodel"][-1].mean() == 1
    assert studies.least_difference(wrong)[0] >= 0
    same = dict.fromkeys(wrong, wrong["datamodel"])
    assert studies.least_difference(same) == (0.0, 0.0)


def test_agreement_has_the_slope_of_actual_on_predicted():
    guess = torch.randn(5, 7, generator=torch.Generator().manual_seed(0)).double()
    found = studies.agreement([Group("", guess, 3 * guess + 1, 0.0)])
    assert found.slope[0] == pytest.approx(3)
    assert found.pearson[0] == pytest.approx(1)
    assert found.slope[1] < 1e-9


def test_targets_are_drawn_among_those_that_are_right():
    margins = torch.tensor([1.0, -1.0, 2.0, 3.0, -0.5])
    found = studies.choose(margins, 2, torch.Generator().manual_seed(0))
    assert found == sorted(found)
    assert set(found) <= {0, 2, 3}
    assert found == studies.choose(margins, 2, torch.Generator().manual_seed(0))
