"""Factorisations of PEFs that stay in files: as in memory, and what a folder refuses."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from lib.npeff import archive, out_of_core, store
from lib.npeff.coefficients import expand, fit_coefficients, fit_multiplicative
from lib.npeff.decomposition import Decomposition
from lib.npeff.diagonal import decompose_diagonal
from lib.npeff.factorise import decompose
from lib.npeff.store import DIAGONAL, LOW_RANK, Fishers

KINDS = (LOW_RANK, DIAGONAL)
METHOD = {LOW_RANK: partial(decompose, component_steps=5), DIAGONAL: decompose_diagonal}
N, M = 37, 50
FIELDS = ("coefficients", "components", "losses", "loss_steps", "kept")


def raw_fishers(
    kind: str, dtype: torch.dtype = torch.float64, *, seed: int = 0, unused: tuple = (0, 17, 49)
) -> Fishers:
    """PEFs with unused columns, an example of zeros, and entries that truncation dropped."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(N, 3, M, generator=generator, dtype=torch.float64)
    rows[..., unused] = 0
    rows[5] = 0
    rows = rows.to(dtype)
    return store.from_dense(rows if kind == LOW_RANK else rows[:, 0].square(), kind=kind, k=25)


def in_parts(fishers: Fishers, part: int):
    for first in range(0, len(fishers), part):
        yield store.take(fishers, torch.arange(first, min(first + part, len(fishers))))


def stored(folder: Path, fishers: Fishers, *, entries: int = 100, part: int = 8, **options):
    archive.write(folder / "pefs", in_parts(fishers, 11))
    out_of_core.write_blocks(
        folder / "blocks",
        lambda: archive.read_parts(folder / "pefs", part),
        entries=entries,
        **options,
    )
    return out_of_core.open_blocks(folder / "blocks")


def prepared(fishers: Fishers) -> Fishers:
    return store.normalise(store.prune(fishers))


@pytest.mark.parametrize("part", [1, 10, 100])
def test_parts_of_a_folder_are_the_whole(part: int, tmp_path: Path):
    whole = raw_fishers(LOW_RANK)
    archive.write(tmp_path / "pefs", in_parts(whole, 11))
    found = store.concatenate(list(archive.read_parts(tmp_path / "pefs", part)))
    for name in archive.ARRAYS:
        assert torch.equal(getattr(found, name), getattr(whole, name)), name
    with pytest.raises(ValueError, match="at least 1 example, got 0"):
        next(archive.read_parts(tmp_path / "pefs", 0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entries", [1, 100, 10_000])  # hardly a column each, some, one block
def test_blocks_in_files_are_the_pruned_and_normalised_matrix(
    kind: str, entries: int, tmp_path: Path
):
    whole = raw_fishers(kind)
    want = prepared(whole)
    data = stored(tmp_path, whole, entries=entries)
    dense = want.matrix().to_dense()
    blocks = data.blocks(None, 3, torch.device("cpu"), first=0, last=want.n_columns)
    assert len(blocks) >= {1: 40, 100: 7, 10_000: 1}[entries]
    assert [b.lo for b in blocks[1:]] == [b.hi for b in blocks[:-1]]
    assert (blocks[0].lo, blocks[-1].hi) == (0, want.n_columns)
    assert torch.equal(data.kept, want.kept)
    assert torch.equal(data.example, want.example)
    for block in blocks:
        for found in (block.by_row, block.by_column):
            parts = (found.offsets, found.columns, found.values)
            shape = (len(found.offsets) - 1, found.n_columns)
            here = torch.sparse_csr_tensor(*parts, shape).to_dense()
            here = here if shape[0] == block.n_rows else here.T
            assert torch.equal(here, dense[:, block.lo : block.hi])
    assert data.energy == pytest.approx(store.energy(want), rel=1e-12)
    assert data.total == pytest.approx(float(want.values.sum()), rel=1e-12)
    assert data.least == float(want.values.min())


@pytest.mark.parametrize("kind", KINDS)
def test_a_factorisation_from_files_is_that_in_memory(kind: str, tmp_path: Path):
    whole = raw_fishers(kind)
    options = {"seed": 3, "steps": 30, "restarts": 2, "snapshot_every": 20}
    want = METHOD[kind](prepared(whole), 4, **options)
    found = METHOD[kind](stored(tmp_path, whole), 4, **options)
    assert_same(found, want)
    torch.testing.assert_close(found.snapshots, want.snapshots, rtol=1e-8, atol=1e-10)
    assert found.energy == pytest.approx(want.energy)
    assert (found.seed, found.options, found.k) == (want.seed, want.options, want.k)


@pytest.mark.parametrize("kind", KINDS)
def test_raw_pefs_and_rare_columns_are_handled_as_in_memory(kind: str, tmp_path: Path):
    whole = raw_fishers(kind)
    least = int(torch.bincount(whole.columns, minlength=M).median()) + 1
    want = METHOD[kind](store.prune(whole, least), 3, seed=0, steps=10, raw=True)
    data = stored(tmp_path, whole, raw=True, min_nnz=least)
    assert len(data.kept) < M - 3
    assert_same(METHOD[kind](data, 3, seed=0, steps=10, raw=True), want)
    with pytest.raises(ValueError, match="want normalised PEFs"):
        METHOD[kind](data, 3, seed=0)


def assert_same(found: Decomposition, want: Decomposition) -> None:
    for name in FIELDS:
        a, b = getattr(found, name), getattr(want, name)
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def cut(steps):
    """Progress of a run that is stopped at step 60."""
    for i in steps:
        if i == 60:
            raise KeyboardInterrupt
        yield i


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_on_files_that_was_cut_short_goes_on_to_the_same_bytes(kind: str, tmp_path: Path):
    data = stored(tmp_path, raw_fishers(kind, torch.float32))
    options = {"seed": 0, "steps": 70}
    whole = METHOD[kind](data, 4, **options)

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        METHOD[kind](data, 4, **options, checkpoint=path, progress=cut)
    data = out_of_core.open_blocks(tmp_path / "blocks")  # as in a new process
    seen: list[int] = []
    again = METHOD[kind](
        data, 4, **options, checkpoint=path, progress=lambda steps: seen.extend(steps) or steps
    )
    assert seen[0] == 50
    for name in FIELDS:
        assert torch.equal(getattr(whole, name), getattr(again, name)), name
    other = stored(tmp_path / "other", raw_fishers(kind))  # in another precision
    with pytest.raises(ValueError, match="another decomposition: it differs in data"):
        METHOD[kind](other, 4, **options, checkpoint=path)


def test_coefficients_of_a_folder_are_fitted_part_by_part(tmp_path: Path):
    whole = raw_fishers(LOW_RANK)
    found = decompose(stored(tmp_path, whole), 4, seed=0, steps=20)
    parts = archive.read_parts(tmp_path / "pefs", 10)
    w = torch.cat([fit_coefficients(found, store.normalise(part)) for part in parts])
    torch.testing.assert_close(w, fit_coefficients(found, store.normalise(whole)))


@pytest.fixture(scope="module")
def general() -> Decomposition:
    """Components that stay, made of other examples than those below."""
    return decompose(prepared(raw_fishers(LOW_RANK)), 3, seed=0, component_steps=5, steps=20)


def others(dtype: torch.dtype = torch.float64) -> Fishers:
    """New examples, on some columns that the components lack and without some that they have."""
    return raw_fishers(LOW_RANK, dtype, seed=1, unused=(2, 3, 48))


@pytest.mark.parametrize("entries", [100, 10_000])
@pytest.mark.parametrize("n_new", [0, 2])
def test_an_expansion_from_files_is_that_in_memory(
    n_new: int, entries: int, general: Decomposition, tmp_path: Path
):
    data = stored(tmp_path, others(), entries=entries, kept=general.kept)
    assert torch.equal(data.kept, general.kept)
    whole = store.normalise(others())
    stages = {"component_steps": 5, "new_steps": 5, "steps": 20, "log_every": 1}
    want = expand(general, whole, n_new, seed=3, **stages)
    found = expand(general, data, n_new, seed=3, **stages)
    assert_same(found, want)
    assert found.energy == pytest.approx(want.energy, rel=1e-12)
    assert torch.equal(found.components[n_new:], general.components)
    assert (found.frozen, found.seed, found.options) == (want.frozen, want.seed, want.options)
    if n_new:
        assert found.loss < expand(general, data, 0, seed=3).loss


@pytest.mark.parametrize("kind", KINDS)
def test_coefficients_from_blocks_at_the_components_positions_are_those_in_memory(
    kind: str, tmp_path: Path
):
    found = METHOD[kind](prepared(raw_fishers(kind)), 4, seed=0, steps=20)
    other = raw_fishers(kind, seed=1, unused=(2, 3, 48))
    data, whole = stored(tmp_path, other, kept=found.kept), store.normalise(other)
    torch.testing.assert_close(
        fit_coefficients(found, data), fit_coefficients(found, whole), rtol=1e-8, atol=1e-10
    )
    slow = [fit_multiplicative(found, x, seed=0, max_steps=50) for x in (data, whole)]
    torch.testing.assert_close(*slow, rtol=1e-8, atol=1e-10)


def test_an_expansion_from_files_that_was_cut_short_goes_on_to_the_same_bytes(
    general: Decomposition, tmp_path: Path
):
    data = stored(tmp_path, others(), kept=general.kept)
    options = {"seed": 0, "component_steps": 20, "steps": 50}
    whole = expand(general, data, 2, **options)

    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        expand(general, data, 2, **options, checkpoint=path, progress=cut)
    data = out_of_core.open_blocks(tmp_path / "blocks")  # as in a new process
    seen: list[int] = []
    again = expand(
        general, data, 2, **options, checkpoint=path, progress=lambda x: seen.extend(x) or x
    )
    assert seen[0] == 50
    for name in FIELDS:
        assert torch.equal(getattr(whole, name), getattr(again, name)), name
    other = decompose(prepared(raw_fishers(LOW_RANK)), 3, seed=1, component_steps=5, steps=20)
    with pytest.raises(ValueError, match="another decomposition: it differs in frozen"):
        expand(other, data, 2, **options, checkpoint=path)


def test_blocks_of_another_decomposition_model_or_form_are_not_expanded(
    general: Decomposition, tmp_path: Path
):
    pruned = stored(tmp_path / "a", others())  # at the positions that these examples use
    single = stored(tmp_path / "b", others(torch.float32), kept=general.kept)
    raw = stored(tmp_path / "c", others(), kept=general.kept, raw=True)
    fewer = stored(tmp_path / "d", store.truncate(others(), 20), kept=general.kept)
    diagonal = stored(tmp_path / "e", raw_fishers(DIAGONAL), kept=general.kept)
    model = replace(others(), parameters=(("another", (M,)),))
    for match, data in {
        "want blocks on the 47 positions of the components and in torch.float64": pruned,
        "got 47 positions in torch.float32": single,
        "want normalised PEFs": raw,
        "want PEFs of K = 25 entries": fewer,
        "want low-rank PEFs": diagonal,
        "of the model and block": stored(tmp_path / "f", model, kept=general.kept),
    }.items():
        with pytest.raises(ValueError, match=match):
            expand(general, data, 2, seed=0)
    for match, options in {
        "they are of another model": {"kept": torch.tensor([3, M])},
        "ascending parameter positions": {"kept": torch.tensor([3, 1])},
        "leave min_nnz = 2 out": {"kept": general.kept, "min_nnz": 2},
    }.items():
        with pytest.raises(ValueError, match=match):
            stored(tmp_path / match, others(), **options)


@pytest.mark.parametrize("name", ["0.by_row.values", "1.by_column.columns", "example"])
def test_a_folder_with_a_file_cut_short_is_not_expanded(
    name: str, general: Decomposition, tmp_path: Path
):
    data = stored(tmp_path, others(), kept=general.kept)
    path = tmp_path / "blocks" / f"{name}.bin"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"bin has .* bytes, .* were written; remove the folder"):
        out_of_core.open_blocks(tmp_path / "blocks")
    with pytest.raises(ValueError, match=r"bin ends after .* numbers, .* were written"):
        expand(general, data, 2, seed=0, steps=1)  # opened before it was cut


def test_positions_that_no_example_uses_are_columns_of_zeros(tmp_path: Path):
    empty = stored(tmp_path, others(), kept=torch.tensor([2, 3, 48]))
    assert (len(empty.kept), empty.energy) == (3, 0)
    assert len(empty.blocks(None, 2, torch.device("cpu"), first=0, last=3)) == 1


def test_what_is_not_whole_or_does_not_belong_together_is_refused(tmp_path: Path):
    whole = raw_fishers(LOW_RANK)

    def dying():
        yield from in_parts(whole, 10)
        raise KeyboardInterrupt

    def write(parts, name="made", **options):
        out_of_core.write_blocks(tmp_path / name, parts, **options)

    calls = iter([lambda: in_parts(whole, 10), dying])  # the second pass is killed
    with pytest.raises(KeyboardInterrupt):
        write(lambda: next(calls)())
    with pytest.raises(FileNotFoundError, match=r"no finished blocks in made: blocks\.json"):
        out_of_core.open_blocks(tmp_path / "made")
    write(lambda: in_parts(whole, 10))  # what the killed run left is not added to
    data = out_of_core.open_blocks(tmp_path / "made")
    assert_same(decompose(data, 3, seed=0, steps=5), decompose(prepared(whole), 3, seed=0, steps=5))
    for match, call in {
        "holds blocks already": lambda: write(lambda: in_parts(whole, 10)),
        "at least one set": lambda: write(list, "a"),
        "normalised already": lambda: write(lambda: [store.normalise(whole)], "b"),
        "of one kind": lambda: write(lambda: [whole, raw_fishers(DIAGONAL)], "c"),
        "lower min_nnz": lambda: write(lambda: [whole], "d", min_nnz=1000),
        "at least 1, got 1 and 0": lambda: write(lambda: [whole], "e", entries=0),
        "want all 1 blocks of made": lambda: decompose(data, 3, seed=0, blocks=2),
        "want low-rank PEFs": lambda: decompose(
            stored(tmp_path / "f", raw_fishers(DIAGONAL)), 3, seed=0
        ),
    }.items():
        with pytest.raises(ValueError, match=match):
            call()
    path = tmp_path / "made" / "0.by_column.values.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"values\.bin has .* bytes"):
        out_of_core.open_blocks(tmp_path / "made")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_entries_that_are_not_finite_are_refused(bad: float, tmp_path: Path):
    whole = raw_fishers(DIAGONAL)
    whole.values[4] = bad
    with pytest.raises(ValueError, match="not finite"):
        decompose_diagonal(stored(tmp_path, whole, entries=50), 3, seed=0)
