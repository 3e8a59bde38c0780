"""Sparse Fishers: pruning, normalising and choosing columns and examples, against dense ones."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from lib.npeff import rows, store


def planted(n: int = 5, c: int = 2, m: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, c, m, generator=generator, dtype=torch.float64)
    rows[torch.rand(n, c, m, generator=generator) < 0.4] = 0
    rows[:, :, 3] = 0  # a parameter that nothing uses
    return rows


def dense(fishers: store.Fishers) -> Tensor:
    return fishers.matrix().to_dense().view(len(fishers), -1, fishers.n_columns)


def test_from_dense_holds_the_rows_and_their_norms() -> None:
    rows = planted()
    found = store.from_dense(rows)
    assert torch.equal(dense(found), rows)
    torch.testing.assert_close(found.norms, torch.linalg.matrix_norm(rows.mT @ rows))


def test_pruning_drops_unused_columns_and_nothing_else() -> None:
    rows = planted()
    found = store.prune(store.from_dense(rows))
    assert 3 not in found.kept.tolist()
    assert torch.equal(dense(found), rows[..., found.kept])
    assert store.energy(found) == pytest.approx(store.energy(store.from_dense(rows)))


def test_pruning_counts_rows_and_includes_the_bound() -> None:
    rows = planted()
    counts = (rows != 0).flatten(0, 1).sum(0)
    found = store.prune(store.from_dense(rows), min_nnz=6)
    assert torch.equal(found.kept, (counts >= 6).nonzero()[:, 0])
    assert found.n_rows == 10  # emptied rows stay


def test_norms_are_those_of_dense_fishers_after_pruning() -> None:
    rows = planted()
    found = store.normalise(store.prune(store.from_dense(rows, k=5), min_nnz=2))
    norms = torch.linalg.matrix_norm(rows.mT @ rows)
    sparse = dense(store.prune(store.from_dense(rows, k=5), min_nnz=2))
    torch.testing.assert_close(dense(found), sparse / norms.sqrt()[:, None, None])
    want = torch.linalg.matrix_norm(sparse.mT @ sparse) / norms
    torch.testing.assert_close(store.sparse_norms(found), want)


def test_norms_do_not_hang_on_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    found = store.prune(store.from_dense(planted(), k=5), min_nnz=2)
    fewer = store.take(found, torch.tensor([0, 2, 3]))
    uneven = dataclasses.replace(  # the second example has one row less
        fewer,
        values=torch.cat([fewer.values[: fewer.offsets[3]], fewer.values[fewer.offsets[4] :]]),
        columns=torch.cat([fewer.columns[: fewer.offsets[3]], fewer.columns[fewer.offsets[4] :]]),
        offsets=store.offsets_of(fewer.offsets.diff()[[0, 1, 2, 4, 5]]),
        example=fewer.example[[0, 1, 2, 4, 5]],
    )
    for given in (found, uneven):
        whole = store.sparse_norms(given)
        matrix = given.matrix().to_dense().double()
        want = [matrix[given.example == i] for i in range(len(given))]
        expected = torch.stack([torch.linalg.matrix_norm(a.T @ a) for a in want])
        torch.testing.assert_close(whole, expected)
        monkeypatch.setattr(store, "BLOCK", 1)
        torch.testing.assert_close(store.sparse_norms(given), expected)
        monkeypatch.undo()


def test_an_example_without_fisher_stays_zero() -> None:
    rows = planted()
    rows[2] = 0
    for kind, given in ((store.LOW_RANK, rows), (store.DIAGONAL, rows[:, 0].square())):
        found = store.normalise(store.from_dense(given, kind=kind))
        assert found.values.isfinite().all()
        assert dense(found)[2].abs().max() == 0


def test_columns_of_another_decomposition_are_found_by_position() -> None:
    rows = planted()
    kept = torch.tensor([0, 3, 4, 11])
    found = store.select_columns(store.prune(store.from_dense(rows)), kept)
    assert torch.equal(dense(found), rows[..., kept])


def test_examples_are_taken_in_the_order_given() -> None:
    rows, order = planted(), torch.tensor([3, 0, 3])
    found = store.take(store.from_dense(rows), order)
    assert torch.equal(dense(found), rows[order])
    torch.testing.assert_close(found.norms, torch.linalg.matrix_norm(rows.mT @ rows)[order])


def test_parts_together_are_the_whole() -> None:
    rows = planted()
    whole = store.from_dense(rows)
    parts = [store.take(whole, torch.arange(a, b)) for a, b in ((0, 2), (2, 5))]
    found = store.concatenate(parts)
    assert torch.equal(dense(found), rows)
    assert torch.equal(found.example, whole.example)
    with pytest.raises(ValueError, match="same columns"):
        store.concatenate([whole, store.prune(whole)])


def test_truncation_is_making_them_with_a_smaller_k() -> None:
    rows = planted(n=9, c=3, m=40)
    for kind, given in ((store.LOW_RANK, rows), (store.DIAGONAL, rows[:, 0].square())):
        found = store.truncate(store.from_dense(given, kind=kind, k=20), 6)
        assert torch.equal(dense(found), dense(store.from_dense(given, kind=kind, k=6)))


def test_the_largest_entries_are_found_whatever_the_guess() -> None:
    """Long rows of several kinds, among them one whose sample misleads."""
    generator = torch.Generator().manual_seed(0)
    entries = torch.randn(4, 200_000, generator=generator) ** 5
    entries[1, :100] = 1e9  # all large ones in one place
    entries[2] = 0
    entries[2, 7] = -1.0
    step = (200_000 // rows.SAMPLE) | 1
    entries[3, ::step] = 1e9  # the sample sees only large ones
    entries[3, ::2] = 0
    for row, found in zip(entries, rows.largest(entries, 100), strict=True):
        want = row.abs().topk(100).values
        got = row[found].abs().sort(descending=True).values
        assert torch.equal(got, want[want > 0])
        assert bool((found.diff() > 0).all())


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda f: store.prune(f, 0), "min_nnz >= 1"),
        (lambda f: store.prune(f, 99), "lower min_nnz"),
        (lambda f: store.normalise(store.normalise(f)), "normalised already"),
        (lambda f: store.take(f, torch.tensor([5])), "0..4"),
        (lambda f: store.select_columns(f, torch.tensor([1, 1])), "each once"),
        (lambda f: store.select_columns(f, torch.tensor([99])), "another model"),
        (lambda f: store.truncate(f, 99), "1 <= k <="),
        (lambda f: store.concatenate([]), "at least one"),
        (lambda f: store.from_dense(planted() * float("nan")), "finite"),
        (lambda f: store.from_dense(planted(), k=99), "1 <= k <= 24"),
    ],
)
def test_bad_arguments_are_refused(call, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(store.from_dense(planted()))
