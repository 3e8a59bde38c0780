"""What the probes refuse: one ValueError each, and its sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lib import probes

Z = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(20) % 2
NAN = Z.clone()
NAN[3, 1] = float("nan")
INF = Z.clone()
INF[3, 1] = float("inf")
G = torch.Generator().manual_seed(0)
ORDER = torch.arange(4)

CASES: dict[str, tuple[Callable[[], object], str]] = {
    "NaN": (lambda: probes.fit_logistic(NAN, Y), "NaN or infinity"),
    "infinity": (lambda: probes.fit_ridge(INF, Y, l2=1.0), "NaN or infinity"),
    "NaN target": (lambda: probes.fit_ridge(Z, NAN[:, 1], l2=1.0), "NaN or infinity"),
    "rows": (lambda: probes.fit_logistic(Z, Y[:-1]), r"want z \[n, d\] or \[m, n, d\]"),
    "axes": (lambda: probes.fit_logistic(Z[0], Y), r"want z \[n, d\] or \[m, n, d\]"),
    "models": (
        lambda: probes.fit_logistic(Z.expand(2, -1, -1), Y.expand(3, -1)),
        "one y row a model",
    ),
    "no channel": (lambda: probes.fit_logistic(Z[:, :0], Y), "is empty"),
    "integers": (lambda: probes.fit_logistic(Z.long(), Y), "want floating-point"),
    "one row": (lambda: probes.fit_logistic(Z[:1], Y[:1]), "at least 2 rows"),
    "one class": (lambda: probes.fit_logistic(Z, Y * 0), "one class"),
    "one class in a batch": (
        lambda: probes.fit_logistic(Z, torch.stack([Y, Y * 0])),
        "one class",
    ),
    "one class, ridge": (lambda: probes.fit_ridge(Z, Y * 0, l2=1.0), "one class"),
    "signed labels": (lambda: probes.fit_logistic(Z, 2 * Y - 1), r"want labels in \{0, 1\}"),
    "C": (lambda: probes.fit_logistic(Z, Y, C=0.0), "want C > 0"),
    "C of a grid": (lambda: probes.fit_logistic(Z, Y, C=[1.0, -1.0]), "want C > 0"),
    "no C": (lambda: probes.fit_logistic(Z, Y, C=[]), "want C > 0"),
    "C tensor": (lambda: probes.fit_logistic(Z, Y, C=torch.ones(2)), "a list of numbers"),
    "l2": (lambda: probes.fit_ridge(Z, Y, l2=-1.0), "want l2 > 0"),
    "l2 NaN": (lambda: probes.fit_ridge(Z, Y, l2=float("nan")), "want l2 > 0"),
    "l2 too small": (
        lambda: probes.fit_ridge(Z[:, [0, 0, 0]].double(), Y, l2=1e-300),
        "raise l2 or lower C",
    ),
    "max_steps": (lambda: probes.fit_logistic(Z, Y, max_steps=0), "want max_steps >= 1"),
    "weights shape": (lambda: probes.fit_logistic(Z, Y, weights=Z), "want weights"),
    "negative weights": (lambda: probes.fit_logistic(Z, Y, weights=Y - 1), "weights >= 0"),
    "weightless class": (lambda: probes.fit_logistic(Z, Y, weights=Y), "one class without rows"),
    "balance": (lambda: probes.balanced_weights(Y * 0), "both classes"),
    "score": (lambda: probes.fit_logistic(Z, Y).score(Z[:, :3]), "read the layer"),
    "rule": (lambda: probes.rank_channels(Z, Y, "best"), "unknown rule 'best'; choose from"),
    "k = 0": (lambda: probes.fit_sparse(Z, Y, ORDER, 0), "want k from 1 to 4"),
    "k > d": (lambda: probes.fit_sparse(Z, Y, ORDER, [1, 5]), "want k from 1 to 4"),
    "order": (lambda: probes.fit_sparse(Z, Y, ORDER * 0, 1), "a permutation"),
    "order shape": (lambda: probes.fit_sparse(Z, Y, ORDER[:3], 1), "a permutation"),
    "stability": (lambda: probes.selection_stability(Z, Y, 5, generator=G), "k from 1 to 4"),
    "chance": (lambda: probes.chance_jaccard(0, 4), "k from 1 to 4"),
    "shuffles": (lambda: probes.shuffled_labels(Y, 0, generator=G), "n_draws >= 1"),
    "score shape": (lambda: probes.accuracy(Z, Y), r"want scores \[\.\.\., n\]"),
    "score NaN": (lambda: probes.ece(NAN[:, 1], Y), "NaN or infinity"),
    "score labels": (lambda: probes.accuracy(Z[:, 0], 2 * Y), r"want labels in \{0, 1\}"),
    "AUC": (lambda: probes.roc_auc(Z[:, 0], Y * 0), "one class only"),
    "R2": (lambda: probes.r2(Z[:, 0], Y * 0), "constant"),
    "bins": (lambda: probes.ece(Z[:, 0], Y, bins=0), "at least 1 bin"),
    "interval NaN": (lambda: probes.bootstrap_interval(NAN[:, 1], generator=G), "NaN or infinity"),
    "interval level": (
        lambda: probes.bootstrap_interval(Z[:, 0], generator=G, level=95),
        r"level in \(0, 1\)",
    ),
    "one group": (
        lambda: probes.bootstrap_interval(Z[:, 0], generator=G, groups=Y * 0),
        "at least 2 examples or groups",
    ),
    "groups": (
        lambda: probes.bootstrap_interval(Z[:, 0], generator=G, groups=Y[:3]),
        r"want groups \[20\]",
    ),
    "constant scores": (lambda: probes.score_agreement(Z * 0), "scores all inputs alike"),
    "two groups": (
        lambda: probes.split_by_group(20, generator=G, groups=Y),
        "leave a part of the split",
    ),
    "shares": (lambda: probes.split_by_group(20, generator=G, shares=(1, 1)), "add up to 1"),
    "several models": (
        lambda: probes.validate_penalty(Z.expand(2, -1, -1), Y, generator=G),
        "one model's z",
    ),
    "control rows": (
        lambda: probes.validate_penalty(Z, Y, generator=G, random_network=Z[:5]),
        "want random_network with 20 rows",
    ),
    "labels in a regression": (
        lambda: probes.validate_ridge(Z, Y, generator=G),
        "use validate_penalty",
    ),
}


@pytest.mark.parametrize(("call", "sentence"), CASES.values(), ids=CASES)
def test_refuses_with_one_clear_sentence(call: Callable[[], object], sentence: str):
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
