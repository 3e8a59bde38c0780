"""What the factorisation of per-example Fishers refuses, one sentence each, and what it handles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lib.npeff import archive, distributed, fisher, nonnegative, store, terms
from lib.npeff.coefficients import expand, fit_coefficients
from lib.npeff.decomposition import Decomposition, save, unit
from lib.npeff.diagonal import decompose_diagonal
from lib.npeff.factorise import decompose

KINDS = (store.LOW_RANK, store.DIAGONAL)
METHOD = {store.LOW_RANK: decompose, store.DIAGONAL: decompose_diagonal}
N, D, C = 12, 5, 3
M = C * D  # of a linear classifier without bias


def classifier() -> nn.Module:
    model = nn.Linear(D, C, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(C, D, generator=torch.Generator().manual_seed(0)))
    return model


def inputs(n: int = N) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def fishers(kind: str = store.LOW_RANK, x: Tensor | None = None) -> store.Fishers:
    k = M if kind == store.DIAGONAL else C * M
    x = inputs() if x is None else x
    return store.normalise(fisher.per_example_fishers(classifier(), x, kind=kind, k=k))


def with_nan(made: store.Fishers) -> store.Fishers:
    return replace(made, values=made.values.clone().index_fill_(0, torch.tensor([4]), torch.nan))


def fit(kind: str = store.LOW_RANK) -> Decomposition:
    return METHOD[kind](fishers(kind), 3, seed=0, steps=3)


LOW, DIAGONAL = fishers(), fishers(store.DIAGONAL)
FOUND = fit()
ONES = torch.ones(2, 3, dtype=torch.float64)

CASES: dict[str, tuple[Callable[[], object], str]] = {
    "probabilities, NaN": (
        lambda: terms.terms(ONES / 3 * torch.tensor([1, 1, torch.nan])),
        r"want probabilities in \[0, 1\], got NaN or numbers outside; look at the logits",
    ),
    "probabilities, not normalised": (
        lambda: terms.terms(ONES),
        "want rows that sum to one, got a sum off by 2; give softmax",
    ),
    "logits, NaN": (
        lambda: fishers(x=inputs().index_fill(0, torch.tensor([2]), torch.nan)),
        "example 2 holds NaN",
    ),
    "K > m, diagonal": (
        lambda: fisher.per_example_fishers(classifier(), inputs(), kind=store.DIAGONAL, k=M + 1),
        f"want kind .* and 1 <= k <= {M} .*, got 'diagonal' and k = {M + 1}",
    ),
    "K > C m, low rank": (
        lambda: fisher.per_example_fishers(classifier(), inputs(), k=C * M + 1),
        f"1 <= k <= {C * M} .* and k = {C * M + 1}",
    ),
    "K of 0": (lambda: fisher.per_example_fishers(classifier(), inputs(), k=0), "and k = 0"),
    "r > n, low rank": (
        lambda: decompose(LOW, N + 1, seed=0),
        f"want 1 <= r <= n = {N} components, got {N + 1}; lower r or take more examples",
    ),
    "r > n, diagonal": (
        lambda: decompose_diagonal(DIAGONAL, N + 1, seed=0),
        f"want 1 <= r <= n = {N} components, got {N + 1}; lower r or take more examples",
    ),
    "PEFs with NaN, low rank": (lambda: decompose(with_nan(LOW), 3, seed=0), "are not finite"),
    "PEFs with NaN, diagonal": (
        lambda: decompose_diagonal(with_nan(DIAGONAL), 3, seed=0),
        "are not finite",
    ),
    "new PEFs with NaN": (lambda: fit_coefficients(FOUND, with_nan(LOW)), "drop these examples"),
    "new PEFs of the other kind": (
        lambda: fit_coefficients(FOUND, DIAGONAL),
        "want low-rank PEFs .*, got diagonal ones",
    ),
    "expansion by less than nothing": (
        lambda: expand(FOUND, LOW, -1, seed=0),
        "want n_new >= 0, got -1",
    ),
    "more new components than examples": (
        lambda: expand(FOUND, LOW, N + 1, seed=0),
        f"want 1 <= r <= n = {N} components, got {N + 1}; lower r or take more examples",
    ),
    "least squares, shapes": (
        lambda: nonnegative.solve(torch.eye(2), ONES),
        r"want q \[r, r\] and b \[n, r\], got \(2, 2\), \(2, 3\)",
    ),
    "least squares, NaN": (
        lambda: nonnegative.solve(torch.eye(3), ONES * torch.nan),
        "want finite q and b",
    ),
    "no steps": (lambda: decompose(LOW, 3, seed=0, steps=-1), "want steps of 0 or more"),
    "a rank too many": (
        lambda: distributed.join(2, 2, "file:///nowhere").__enter__(),
        r"want a rank in 0\.\.1, got 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "sentence"), CASES.values(), ids=CASES)
def test_refused_with_a_sentence(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_another_run_or_kind_and_a_finished_result_are_refused(
    kind: str, tmp_path: Path
) -> None:
    other = KINDS[1 - KINDS.index(kind)]
    METHOD[kind](fishers(kind), 3, seed=1, steps=3, checkpoint=tmp_path / "seed")
    METHOD[other](fishers(other), 3, seed=0, steps=3, checkpoint=tmp_path / "step")
    save(METHOD[kind](fishers(kind), 3, seed=0, steps=3), tmp_path / "data")
    for name in ("seed", "step", "data"):
        with pytest.raises(ValueError, match=f"another decomposition: it differs in .*{name}.*;"):
            METHOD[kind](fishers(kind), 3, seed=0, steps=3, checkpoint=tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_without_any_gradient_gets_coefficients_zero_all_the_way(kind: str) -> None:
    """An input of zeros: its Fisher is zero, it cannot be normalised, and no component fits it."""
    x = inputs()
    x[7] = 0
    made = store.prune(fishers(kind, x))
    found = unit(METHOD[kind](made, 3, seed=0, steps=20))
    assert float(made.norms[7]) == 0
    for w in (found.coefficients, fit_coefficients(found, made)):
        assert w.isfinite().all()
        assert (w[7] == 0).all()
        assert (w[:7].sum(1) > 0).all()
    if kind == store.LOW_RANK:
        more = expand(found, made, 2, seed=0, component_steps=5, steps=20)
        assert more.coefficients.isfinite().all()
        assert (more.coefficients[7] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_in_train_mode_is_read_in_eval_mode_and_keeps_its_statistics(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch statistics would mix the examples, and a forward pass would move the running ones."""
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, C)).double()
    model(3 + 2 * inputs(50))  # running statistics of their own
    want = fisher.per_example_fishers(model.eval(), inputs(), kind=kind, k=20)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for made in (
        fisher.per_example_fishers(model, inputs(), kind=kind, k=20),
        archive.fetch_fishers(model, inputs(), kind=kind, k=20, part=5),
    ):
        assert all(layer.training for layer in model)
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        torch.testing.assert_close(made.values, want.values)
        assert torch.equal(made.columns, want.columns)
