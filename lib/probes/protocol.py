"""The whole protocol for one probe: split by group, choose the penalty, test, compare, judge.

Document 5, concept detection before maximisation. ``validate_penalty`` (labels, logistic probe,
score ``S = 2 accuracy - 1``) and ``validate_ridge`` (real targets, ridge probe, score R2) return
the probe and a ``ProbeReport`` that says whether it is good enough to be maximised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lib.probes.controls import control_task, even_seed, selectivity, shuffled_labels
from lib.probes.evaluate import (
    bootstrap_interval,
    bootstrap_r2,
    detection_score,
    ece,
    r2,
    roc_auc,
)
from lib.probes.inputs import check_fit_data
from lib.probes.linear import Probe, fit_logistic, fit_ridge

# Ten log-spaced penalties on the summed loss; C = 1 of document 1 lies in the middle.
PENALTIES = tuple(10.0 ** (-4.5 + i) for i in range(10))
MARGIN = 0.05
_SHARES = (0.6, 0.2, 0.2)


@dataclass(frozen=True)
class ProbeReport:
    """What a probe is worth on examples that it never saw, beside its controls."""

    score: float  # S = 2 accuracy - 1 on the test part, or R2 for a regression
    ci: tuple[float, float]  # 95% bootstrap interval of the score, over groups if given
    auc: float | None  # None for a regression
    ece: float | None  # 15 bins; None for a regression
    n_nonzero: int  # channels with weight
    n_test: int  # examples behind the score
    penalty: float  # chosen on the validation part; on |w|^2 (half of it for the logistic probe)
    controls: Mapping[str, float]  # the same score for each control, same split, same budget
    admissible: bool | None  # None: a control that the rule needs was not given


def split_by_group(
    n: int,
    *,
    generator: torch.Generator,
    groups: Tensor | None = None,
    shares: Sequence[float] = _SHARES,
) -> list[Tensor]:
    """Split rows at random into parts that share no group.

    Args:
        n: number of rows.
        generator: source of the shuffle.
        groups: group id of each row, ``[n]``; None makes every row its own group.
        shares: sizes of the parts, adding up to 1; met up to the size of one group.

    Returns:
        Row indices of each part, sorted.

    Raises:
        ValueError: shapes disagree, the shares are not positive or do not add up to 1, or a part
            stays empty.
    """
    if abs(sum(shares) - 1) > 1e-9 or min(shares) <= 0:
        raise ValueError(f"want positive shares that add up to 1, got {tuple(shares)}")
    ids = torch.arange(n) if groups is None else groups.cpu()
    if ids.shape != (n,):
        raise ValueError(f"want groups [{n}], one id a row, got {tuple(ids.shape)}")
    _, member, counts = ids.unique(return_inverse=True, return_counts=True)
    order = torch.randperm(len(counts), generator=generator, device=generator.device).cpu()
    # A group goes where its middle row falls.
    middle = counts[order].cumsum(0) - counts[order] / 2
    bounds = torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1] * n
    part = torch.empty_like(order)
    part[order] = torch.searchsorted(bounds, middle.double())
    parts = [(part[member] == i).nonzero()[:, 0] for i in range(len(shares))]
    if any(len(rows) == 0 for rows in parts):
        raise ValueError(
            f"{len(counts)} groups of {n} rows leave a part of the split {tuple(shares)} empty; "
            "give more or smaller groups"
        )
    return parts


def validate_penalty(
    z: Tensor,
    y: Tensor,
    *,
    generator: torch.Generator,
    groups: Tensor | None = None,
    penalties: Sequence[float] = PENALTIES,
    random_network: Tensor | None = None,
    raw_input: Tensor | None = None,
    trivial: Tensor | None = None,
    control_groups: Tensor | None = None,
    n_shuffles: int = 5,
    fit: Callable[..., Probe] = fit_logistic,
) -> tuple[Probe, ProbeReport]:
    """Fit a logistic probe by document 5's protocol and judge it against controls.

    Rows are split 60/20/20 by group. The penalty with the lowest log loss on the validation part
    wins (a proper score: accuracy ties too often), and the fit-part probe is tested as it is.

    Args:
        z: activations, ``[n, d]``.
        y: labels in {0, 1}, ``[n]``.
        generator: source of split, shuffles and bootstrap.
        groups: group id of each example (a game, a neighbourhood), ``[n]``, for the split and the
            bootstrap; None makes every example its own group.
        penalties: candidates for ``l2 = 1 / C``.
        random_network: activations of the same architecture with random weights, ``[n, d']``.
        raw_input: the input itself, flattened, ``[n, d'']``.
        trivial: answers in {0, 1} of the best trivial rule, ``[n]``.
        control_groups: input group of each example for the control task, ``[n]``. Groups must
            recur in the fit and test parts: ``groups`` do not, by construction, and would put the
            control at chance whatever the probe can memorise.
        n_shuffles: label shuffles averaged in the control ``shuffled``.
        fit: ``fit_logistic``, or ``fit_wide`` for layers of thousands of units.

    Returns:
        The probe, and its report. Controls: ``majority`` (the more frequent class of the fit
        part), ``shuffled``, and as given ``random_network``, ``raw_input``, ``trivial``,
        ``control_task`` and ``selectivity``. Admissible means that the interval's lower end
        exceeds the largest of trivial rule (the majority one included), random network and
        shuffled labels by 0.05; without ``random_network`` it is not judged.

    Raises:
        ValueError: the data are refused (see ``inputs.check_fit_data``), a part of the split holds
            one class only, or a control's rows do not match.

    Source: document 5, required protocol; admissibility is that section's rule.
    """
    check_fit_data(z, y)
    alternatives = {"random_network": random_network, "raw_input": raw_input}
    _check_rows(z, y, {**alternatives, "trivial": trivial, "control_groups": control_groups})
    parts = split_by_group(len(z), generator=generator, groups=groups)
    test = parts[2]
    label = y.to(z.device)
    task = replace(_LOGISTIC, fit=lambda z, y, l2: fit(z, y, C=[1 / p for p in l2]))
    probe, penalty = _search(task, z, label, parts, penalties)
    scores = probe.score(z[test])
    correct = (scores > 0) == (label[test] == 1)
    score = detection_score(scores, label[test]).item()
    majority = (label[parts[0]].double().mean() > 0.5).to(label.dtype)
    controls = {"majority": _agreement(label[test], majority)}
    controls |= _controls(task, z, label, parts, penalties, alternatives, n_shuffles, generator)
    if trivial is not None:
        controls["trivial"] = _agreement(trivial.to(label.device)[test], label[test])
    if control_groups is not None:
        seed = even_seed(control_groups)
        coins = control_task(control_groups, seed=seed).to(label.device)
        controls["control_task"] = _tested(task, z, coins, parts, penalties)
        controls["selectivity"] = float(selectivity(score, controls["control_task"]))
    rows = None if groups is None else groups[test.to(groups.device)]
    low, high = bootstrap_interval(2 * correct.double() - 1, generator=generator, groups=rows)
    return probe, ProbeReport(
        score=score,
        ci=(low.item(), high.item()),
        auc=roc_auc(scores, label[test]).item(),
        ece=ece(scores, label[test]).item(),
        n_nonzero=int((probe.weight != 0).sum()),
        n_test=len(test),
        penalty=penalty,
        controls=controls,
        admissible=_admissible(low.item(), controls),
    )


def validate_ridge(
    z: Tensor,
    y: Tensor,
    *,
    generator: torch.Generator,
    groups: Tensor | None = None,
    penalties: Sequence[float] = PENALTIES,
    random_network: Tensor | None = None,
    raw_input: Tensor | None = None,
    trivial: Tensor | None = None,
    n_shuffles: int = 5,
) -> tuple[Probe, ProbeReport]:
    """Fit a ridge probe of a real-valued concept by the same protocol, scored by R2.

    Args:
        y: real targets, ``[n]``.
        trivial: predictions of the best trivial rule, ``[n]``, in the targets' unit.
        z, generator, groups, penalties, random_network, raw_input, n_shuffles: as in
            ``validate_penalty``; the penalty is the ``l2`` of ``fit_ridge``.

    Returns:
        The probe, and its report without ``auc`` and ``ece``. The control ``mean`` predicts the
        fit part's mean; the rest, and admissibility, are as in ``validate_penalty``.

    Raises:
        ValueError: as ``validate_penalty``, or ``y`` holds labels.

    Source: document 5, required protocol.
    """
    check_fit_data(z, y, labels=False)
    if ((y == 0) | (y == 1)).all():
        raise ValueError("want real targets, got labels in {0, 1}; use validate_penalty")
    alternatives = {"random_network": random_network, "raw_input": raw_input}
    _check_rows(z, y, {**alternatives, "trivial": trivial})
    parts = split_by_group(len(z), generator=generator, groups=groups)
    test = parts[2]
    target = y.to(z.device)
    probe, penalty = _search(_RIDGE, z, target, parts, penalties)
    predictions = probe.score(z[test])
    mean = target[parts[0]].double().mean().expand(len(test))
    controls = {"mean": r2(mean, target[test]).item()}
    controls |= _controls(_RIDGE, z, target, parts, penalties, alternatives, n_shuffles, generator)
    if trivial is not None:
        controls["trivial"] = r2(trivial.to(target.device)[test], target[test]).item()
    rows = None if groups is None else groups[test.to(groups.device)]
    low, high = bootstrap_r2(predictions, target[test], generator=generator, groups=rows)
    return probe, ProbeReport(
        score=r2(predictions, target[test]).item(),
        ci=(low.item(), high.item()),
        auc=None,
        ece=None,
        n_nonzero=int((probe.weight != 0).sum()),
        n_test=len(test),
        penalty=penalty,
        controls=controls,
        admissible=_admissible(low.item(), controls),
    )


@dataclass(frozen=True)
class _Task:
    """What distinguishes the two protocols."""

    fit: Callable[[Tensor, Tensor, Sequence[float]], Probe]  # one probe a penalty
    loss: Callable[[Tensor, Tensor], Tensor]  # scores [p, n] and y [n] to [p]
    score: Callable[[Tensor, Tensor], Tensor]


def _log_loss(scores: Tensor, y: Tensor) -> Tensor:
    return softplus(-(2 * y.double() - 1) * scores.double()).mean(-1)


def _squared_error(scores: Tensor, y: Tensor) -> Tensor:
    return (scores.double() - y.double()).square().mean(-1)


_LOGISTIC = _Task(
    lambda z, y, l2: fit_logistic(z, y, C=[1 / p for p in l2]), _log_loss, detection_score
)
_RIDGE = _Task(lambda z, y, l2: fit_ridge(z, y, l2=list(l2)), _squared_error, r2)


def _search(
    task: _Task, z: Tensor, y: Tensor, parts: Sequence[Tensor], penalties: Sequence[float]
) -> tuple[Probe, float]:
    """Fit every penalty on part 0 and keep the one with the lowest loss on part 1."""
    probes = task.fit(z[parts[0]], y[parts[0]], penalties)
    best = int(task.loss(probes.score(z[parts[1]]), y[parts[1]]).argmin())
    probe = Probe(probes.weight[best], probes.bias[best], probes.steps, probes.converged[best])
    return probe, float(penalties[best])


def _tested(
    task: _Task, z: Tensor, y: Tensor, parts: Sequence[Tensor], penalties: Sequence[float]
) -> float:
    """Score on part 2 of the probe that ``_search`` keeps."""
    probe, _ = _search(task, z, y, parts, penalties)
    return task.score(probe.score(z[parts[2]]), y[parts[2]]).item()


def _controls(
    task: _Task,
    z: Tensor,
    y: Tensor,
    parts: Sequence[Tensor],
    penalties: Sequence[float],
    alternatives: Mapping[str, Tensor | None],
    n_shuffles: int,
    generator: torch.Generator,
) -> dict[str, float]:
    """Scores with shuffled labels and with other activations of the same examples."""
    shuffles = shuffled_labels(y, n_shuffles, generator=generator)
    null = sum(_tested(task, z, row, parts, penalties) for row in shuffles) / n_shuffles
    given = {name: other for name, other in alternatives.items() if other is not None}
    rest = {name: _tested(task, other, y, parts, penalties) for name, other in given.items()}
    return {"shuffled": null, **rest}


def _agreement(answer: Tensor, y: Tensor) -> float:
    """``S`` of answers in {0, 1}."""
    return 2 * (answer == y).double().mean().item() - 1


def _admissible(low: float, controls: Mapping[str, float]) -> bool | None:
    """Document 5's rule; None when the random network was not given."""
    if "random_network" not in controls:
        return None
    rivals = ("majority", "mean", "trivial", "random_network", "shuffled")
    return low > max(controls[name] for name in rivals if name in controls) + MARGIN


def _check_rows(z: Tensor, y: Tensor, controls: Mapping[str, Tensor | None]) -> None:
    """One model at a time, and every control with a row for each example."""
    if z.ndim != 2 or y.ndim != 1:
        raise ValueError(
            f"want one model's z [n, d] and y [n], got {tuple(z.shape)} and {tuple(y.shape)}"
        )
    for name, rows in controls.items():
        if rows is not None and len(rows) != len(z):
            raise ValueError(f"want {name} with {len(z)} rows like z, got {len(rows)}")
