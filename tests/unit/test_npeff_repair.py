"""Repair: a planted flawed heuristic is mended by the component that carries it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from lib.npeff import perturb
from lib.npeff.repair import Gains, Repair, Split, accuracy_gains, repair, split

N, D = 400, 6
FLAW = 2  # of the directions, the one that carries the heuristic
SIZES = (0.1, 0.5, 1.0, 2.0, 4.0)


def draw(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def case() -> dict:
    """Input 0 says the label. The model also trusts input 1, which is wrong on a quarter."""
    g = draw(0)
    y = torch.randint(0, 2, (N,), generator=g)
    wrong = torch.arange(N) % 4 == 0
    side = (2 * y - 1).double()
    x = 0.3 * torch.randn(N, D, generator=g, dtype=torch.float64)
    x[:, 0] += side
    x[:, 1] += torch.where(wrong, -side, side)
    model = nn.Linear(D, 2).double()
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
        model.weight[1, 0], model.weight[1, 1] = 1.0, 2.0
        model.weight[0, 0], model.weight[0, 1] = -1.0, -2.0
    # one component an input column: both rows of the weight, with opposite signs
    g_rows = torch.zeros(D, 2, D, dtype=torch.float64)
    for k in range(D):
        at = (k + FLAW - 1) % D  # the flaw's own row is FLAW: column 1
        g_rows[at, 0, k], g_rows[at, 1, k] = -1.0, 1.0
    parameters = (("weight", (2, D)),)
    units = perturb.directions(g_rows.flatten(1), torch.arange(2 * D), parameters)
    selection, test = split(wrong.nonzero()[:, 0], (~wrong).nonzero()[:, 0], draw(1))
    return {
        "model": model,
        "data": (x, y),
        "directions": units,
        # all but direction 1: to trust input 0 more mends as well
        "candidates": torch.tensor([0, FLAW, 3, 4, 5]),
        "selection": selection,
        "test": test,
    }


def run(case: dict, **changes) -> Repair:
    settings = {"sizes": SIZES, "generator": draw(2)} | case | changes
    first = [settings.pop(k) for k in ("model", "data", "directions", "candidates")]
    return repair(*first, **settings)


def test_planted_flaw_is_found_and_mended_without_damage(case) -> None:
    before = case["model"].weight.detach().clone()
    found = run(case)
    assert case["candidates"][found.best] == FLAW
    best = found.candidates[found.best]
    mended, damaged = found.gain(best).tolist()
    assert found.before.accuracy[0] < 0.2
    assert mended > 0.7
    assert damaged > -0.05
    assert best.size < 0  # less trust in input 1
    # on two parameters a random direction may be as good, but most are not
    assert found.net(best) > sum(found.net(c) for c in found.random) / len(found.random)
    assert torch.equal(case["model"].weight, before)


def test_changes_are_what_they_say(case) -> None:
    found = run(case)
    x, y = case["data"]
    with torch.no_grad():
        for i, change in zip(case["candidates"], found.candidates, strict=True):
            weight = case["model"].weight + change.size * case["directions"].unit[i].view(2, D)
            logits = x @ weight.T
            right = (logits.argmax(1) == y).double()
            wanted = [right[rows].mean() for rows in (case["test"].counter, case["test"].elsewhere)]
            assert change.accuracy.tolist() == pytest.approx([float(v) for v in wanted])
            losses = nn.functional.cross_entropy(logits, y, reduction="none")
            s = case["selection"]
            both = (losses[s.counter].mean() + losses[s.elsewhere].mean()) / 2
            assert change.loss == pytest.approx(float(both))


def test_candidates_never_raise_the_loss_and_the_best_has_the_least(case) -> None:
    found = run(case)
    losses = [c.loss for c in found.candidates]
    assert max(losses) <= found.before.loss
    assert losses[found.best] == min(losses)
    assert found.gradient.loss <= found.before.loss
    assert found.tuned.loss < found.before.loss


def test_random_directions_choose_their_sizes_as_candidates_do(case) -> None:
    found = run(case)
    assert len(found.random) == len(found.candidates)
    for change in found.random:
        assert abs(change.size) in (0.0, *SIZES)
        assert change.loss <= found.before.loss
    again = run(case)
    assert [c.loss for c in again.random] == [c.loss for c in found.random]


def test_curve_starts_at_the_model_and_passes_the_chosen_size(case) -> None:
    found = run(case)
    torch.testing.assert_close(found.curve[0], found.before.accuracy)
    at = found.sizes.tolist().index(found.candidates[found.best].size)
    torch.testing.assert_close(found.curve[at], found.candidates[found.best].accuracy)


def test_chunks_change_nothing(case) -> None:
    a, b = run(case), run(case, chunk=7)
    assert [c.loss for c in a.candidates] == pytest.approx([c.loss for c in b.candidates])
    assert a.tuned.loss == pytest.approx(b.tuned.loss)


def test_halves_are_disjoint_and_complete() -> None:
    a, b = split(torch.arange(5), torch.arange(5, 20), draw(0))
    assert torch.equal(torch.cat([a.rows, b.rows]).sort().values, torch.arange(20))
    assert (len(a.counter), len(b.counter)) == (3, 2)
    with pytest.raises(ValueError, match="at least 2"):
        split(torch.arange(1), torch.arange(5, 20), draw(0))


def overlapping(case: dict) -> Split:
    return replace(case["test"], counter=case["selection"].counter)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (lambda c: {"test": overlapping(c)}, "disjoint"),
        (lambda c: {"test": replace(c["test"], counter=torch.tensor([N]))}, "indices"),
        (lambda c: {"test": replace(c["test"], counter=c["test"].counter[:0])}, "at least one"),
        (lambda c: {"sizes": (0.3, 0.1)}, "ascending"),
        (lambda c: {"sizes": (0.0, 0.1)}, "above 0"),
        (lambda c: {"balance": 1.0}, "balance"),
        (lambda c: {"candidates": torch.tensor([D])}, "indices"),
    ],
)
def test_bad_requests_are_refused(case, changes, words) -> None:
    with pytest.raises(ValueError, match=words):
        run(case, **changes(case))


def test_data_with_nan_are_refused(case) -> None:
    x: Tensor = case["data"][0].clone()
    x[case["selection"].counter[0]] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        run(case, data=(x, case["data"][1]))


def gains(case: dict, **options) -> Gains:
    first = [case[k] for k in ("model", "data", "directions", "candidates")]
    settings = {
        "norm": 2.0,
        "selection": case["selection"].rows,
        "test": case["test"].rows,
        "generator": draw(3),
    }
    return accuracy_gains(*first, **(settings | options))


def test_fixed_moves_gain_what_a_copy_of_the_model_does(case) -> None:
    found = gains(case)
    x, y = case["data"]
    weight, bias = (w.detach() for w in case["model"].parameters())
    for i, j in enumerate(case["candidates"]):
        step = 2.0 * case["directions"].unit[j].view(2, D)
        right = [((x @ (weight + s * step).T + bias).argmax(1) == y).double() for s in (0, 1, -1)]
        test = [float(r[case["test"].rows].mean()) for r in right]
        selection = [float(r[case["selection"].rows].mean()) for r in right]
        assert found.same[i].item() == pytest.approx(max(test[1:]) - test[0])
        sign = 1 if selection[1] >= selection[2] else 2
        assert found.other[i].item() == pytest.approx(test[sign] - test[0])
        assert found.selected[i].item() == pytest.approx(selection[sign] - selection[0])
    assert found.other.argmax() == case["candidates"].tolist().index(FLAW)
    assert found.other.max() > found.random_other.max()
    assert (found.same >= found.other).all()
    assert (found.random_same >= found.random_other).all()


def test_bad_fixed_moves_are_refused(case) -> None:
    with pytest.raises(ValueError, match="norm"):
        gains(case, norm=0.0)
    with pytest.raises(ValueError, match="none twice"):
        gains(case, test=case["selection"].rows)
