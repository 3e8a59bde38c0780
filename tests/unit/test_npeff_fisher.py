"""Per-example Fishers against loops, closed forms and the divergence that they are a metric of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lib import models
from lib.gradients.flat import flatten, select, unflatten
from lib.npeff import archive, fisher, store, terms
from lib.npeff.factorise import decompose

KINDS = (store.LOW_RANK, store.DIAGONAL)


class Tied(nn.Module):
    """A weight used outside its layer's call: hooks cannot see it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x)) @ self.inner.weight


def network(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = models.build("mlp", generator, widths=(5, 8, 3)).double()
    for p in model.parameters():  # biases are not left at zero
        p.data.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return model.eval()


def inputs(n: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def looped_factor(model: nn.Module, x: Tensor) -> Tensor:
    """``[n, C, m]``: autograd of every log-probability of every example."""
    found = []
    for one in x:
        log_p = model(one[None]).log_softmax(1)[0]
        rows = []
        for c in range(len(log_p)):
            grads = torch.autograd.grad(log_p[c], list(model.parameters()), retain_graph=True)
            score = torch.cat([g.flatten() for g in grads])
            rows.append(log_p[c].exp().sqrt() * score)
        found.append(torch.stack(rows))
    return torch.stack(found).detach()


def dense(fishers: store.Fishers) -> Tensor:
    return fishers.matrix().to_dense().view(len(fishers), -1, fishers.n_columns)


def all_of(
    model: nn.Module, x: Tensor, kind: str = store.LOW_RANK, **more: object
) -> store.Fishers:
    m = sum(p.numel() for p in model.parameters())
    k = m if kind == store.DIAGONAL else m * model(x[:1]).shape[1]
    return fisher.per_example_fishers(model, x, kind=kind, k=k, **more)


@pytest.mark.parametrize("generic", [False, True])
def test_the_factor_is_the_loop_over_classes(generic: bool) -> None:
    model, x = network(), inputs()
    found = all_of(model, x, generic=generic, chunk=4)
    torch.testing.assert_close(dense(found), looped_factor(model, x), rtol=1e-10, atol=1e-12)


def test_the_diagonal_is_that_of_the_factor() -> None:
    model, x = network(), inputs()
    rows = looped_factor(model, x)
    found = all_of(model, x, store.DIAGONAL)
    torch.testing.assert_close(dense(found)[:, 0], rows.square().sum(1))


def test_rows_weighted_by_root_probabilities_sum_to_zero() -> None:
    model, x = network(), inputs()
    p = model(x).softmax(1).detach()
    total = (p.sqrt()[..., None] * dense(all_of(model, x))).sum(1)
    assert total.abs().max() < 1e-12 * dense(all_of(model, x)).abs().max() * 100


def test_the_factor_gives_the_jacobian_form() -> None:
    """``A^T A = J^T (diag p - p p^T) J`` with the Jacobian of the logits."""
    model, x = network(), inputs(2)
    for one, rows in zip(x, dense(all_of(model, x)), strict=True):
        logits = model(one[None])[0]
        jacobian = torch.stack(
            [
                torch.cat(
                    [
                        g.flatten()
                        for g in torch.autograd.grad(z, list(model.parameters()), retain_graph=True)
                    ]
                )
                for z in logits
            ]
        )
        p = logits.softmax(0).detach()
        middle = torch.diag(p) - p[:, None] * p
        torch.testing.assert_close(rows.T @ rows, jacobian.T @ middle @ jacobian)


def test_half_the_quadratic_form_is_the_divergence() -> None:
    """The relative error falls in proportion to the step, as a third-order term must."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = inputs(1)
    rows = dense(all_of(model, x))[0]
    start = select(model)
    direction = torch.randn(rows.shape[1], dtype=torch.float64)
    direction /= direction.norm()
    before = model(x).log_softmax(1)[0].detach()
    errors = []
    for step in (1e-1, 1e-2, 1e-3):
        moved = unflatten(flatten(start) + step * direction, start)
        after = torch.func.functional_call(model, moved, (x,)).log_softmax(1)[0]
        divergence = (before.exp() * (before - after)).sum()
        predicted = (rows @ (step * direction)).square().sum() / 2
        errors.append(float((predicted / divergence - 1).abs()))
    assert errors[0] < 0.5
    assert 5 < errors[0] / errors[1] < 20
    assert 5 < errors[1] / errors[2] < 20


@pytest.mark.parametrize("kind", KINDS)
def test_the_norm_is_that_of_the_whole_matrix(kind: str) -> None:
    model, x = network(), inputs()
    rows = looped_factor(model, x)
    whole = rows.mT @ rows
    if kind == store.DIAGONAL:
        whole = torch.diag_embed(torch.diagonal(whole, dim1=1, dim2=2))
    found = fisher.per_example_fishers(model, x, kind=kind, k=7)  # before sparsification
    torch.testing.assert_close(found.norms, torch.linalg.matrix_norm(whole), rtol=1e-10, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 7, 40])
def test_the_k_largest_entries_of_the_example_are_kept(kind: str, k: int) -> None:
    model, x = network(), inputs()
    rows = looped_factor(model, x)
    entries = (rows.square().sum(1) if kind == store.DIAGONAL else rows).flatten(1)
    least = entries.abs().topk(k, 1).values[:, -1:]
    want = torch.where(entries.abs() >= least, entries, 0.0)
    found = fisher.per_example_fishers(model, x, kind=kind, k=k)
    torch.testing.assert_close(dense(found).flatten(1), want)


def test_a_sparse_network_takes_the_sparse_way_to_the_same_entries(monkeypatch) -> None:
    """One-hot inputs: an example uses one row of the first layer in fifty."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(400, 200, bias=False), nn.ReLU(), nn.Linear(200, 3)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.randn(200, 400, generator=generator))
        model[0].weight[torch.rand(200, generator=generator) > 0.03] = 0
    x = torch.eye(400, dtype=torch.float64)[:9]
    used = []
    real = fisher._sparse_rows
    monkeypatch.setattr(fisher, "_sparse_rows", lambda *a: used.append(1) or real(*a))
    for kind in KINDS:
        found = all_of(model, x, kind, chunk=4)
        same = all_of(model, x, kind, generic=True)
        torch.testing.assert_close(dense(found), dense(same))
        torch.testing.assert_close(found.norms, same.norms)
    assert used


@pytest.mark.parametrize("name", ["cnn", "transformer"])
def test_hooks_and_the_generic_way_agree(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    if name == "cnn":
        model = models.build(name, generator).double()
        x = torch.randn(5, 1, 8, 8, dtype=torch.float64, generator=generator)
    else:
        model = models.build(name, generator, n_words=9, length=6, width=8).double()
        x = torch.randint(3, 9, (5, 6), generator=generator)
        x[:, 2] = 1  # the separator
    for kind in KINDS:
        fast, slow = (
            fisher.per_example_fishers(model, x, kind=kind, k=300, generic=generic)
            for generic in (False, True)
        )
        torch.testing.assert_close(dense(fast), dense(slow), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(fast.norms, slow.norms)


def test_a_weight_used_twice_goes_the_generic_way() -> None:
    torch.manual_seed(0)
    model, x = Tied().double(), torch.randn(4, 3, dtype=torch.float64)
    torch.testing.assert_close(dense(all_of(model, x)), looped_factor(model, x))


@pytest.mark.parametrize("kind", KINDS)
def test_the_chunk_does_not_change_the_result(kind: str) -> None:
    model, x = network(), inputs(7)
    one, four = (fisher.per_example_fishers(model, x, kind=kind, k=9, chunk=c) for c in (7, 2))
    torch.testing.assert_close(dense(one), dense(four))
    assert torch.equal(one.offsets, four.offsets)


def test_a_block_is_the_columns_of_its_parameters() -> None:
    model, x = network(), inputs()
    whole = dense(all_of(model, x))
    part = fisher.per_example_fishers(model, x, k=3 * 9 * 3, block=["out"])
    torch.testing.assert_close(dense(part), whole[..., -27:])
    assert [name for name, _ in part.parameters] == ["out.weight", "out.bias"]


def test_the_model_is_left_in_train_mode_and_read_without_dropout() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double().train()
    found = all_of(model, inputs())
    assert model.training
    torch.testing.assert_close(dense(found), looped_factor(model.eval(), inputs()))


def test_unlikely_classes_are_dropped_and_the_likeliest_never() -> None:
    p = torch.tensor([[0.7, 0.2, 0.1], [0.98, 0.01, 0.01]], dtype=torch.float64)
    chosen = terms.terms(p, eps=0.15)
    assert chosen.present.tolist() == [[True, True], [True, False]]
    torch.testing.assert_close(
        chosen.weights, torch.tensor([[0.7, 0.2], [0.98, 0]]).double().sqrt()
    )
    assert terms.terms(p, eps=0.99).present.tolist() == [[True], [True]]
    assert terms.terms(p, max_classes=2).classes.shape == (2, 2)


def test_dropped_classes_leave_the_other_terms_as_they_are() -> None:
    """The full softmax stays in the scores; only whole terms go."""
    model, x = network(), inputs()
    p = model(x).softmax(1).detach()
    eps = float(p.flatten().median())
    found = fisher.per_example_fishers(model, x, kind=store.DIAGONAL, k=75, eps=eps)
    keep = (p >= eps) | (p == p.amax(1, keepdim=True))
    want = (looped_factor(model, x) * keep[..., None]).square().sum(1)
    torch.testing.assert_close(dense(found)[:, 0], want)
    ragged = fisher.per_example_fishers(model, x, k=225, eps=eps)
    assert torch.equal(torch.bincount(ragged.example), keep.sum(1))


def test_equal_ranks_by_the_way_of_variable_ones_are_factorised_alike() -> None:
    """A threshold that drops no class: the same rows, those of an example in another order."""
    model, x = network(), inputs(40)
    fixed, variable = all_of(model, x), all_of(model, x, eps=1e-12)
    assert torch.equal(fixed.example, variable.example)
    assert not torch.equal(fixed.values, variable.values)
    a, b = (
        decompose(store.normalise(made), 4, seed=0, component_steps=5, steps=20)
        for made in (fixed, variable)
    )
    for name in ("coefficients", "components", "losses"):
        one, other = getattr(a, name), getattr(b, name)
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(one.abs().max()))


def test_sampled_classes_estimate_the_fisher_without_bias() -> None:
    """Mean of many draws against the exact diagonal, within five standard errors."""
    model, x = network(), inputs(1).repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    drawn = fisher.per_example_fishers(
        model, x, kind=store.DIAGONAL, k=75, n_samples=2, generator=generator
    )
    found, want = dense(drawn)[:, 0], dense(all_of(model, x[:1], store.DIAGONAL))[0, 0]
    error = found.std(0) / len(found) ** 0.5
    assert ((found.mean(0) - want).abs() <= 5 * error + 1e-12).all()
    assert (error > 0).any()


def test_a_saturated_prediction_keeps_its_digits() -> None:
    """Logits 40 apart: 1 - p is zero in float64, the sum of the others is not."""
    logits = torch.tensor([[40.0, 0.0, 0.0]], dtype=torch.float64)
    p = logits.softmax(1)
    found = terms.cotangents(p, terms.terms(p))
    assert found[0, 0, 0] == pytest.approx(float(2 * torch.tensor(-40.0).exp()), rel=1e-6)


@pytest.mark.parametrize(
    ("p", "match"),
    [
        (torch.tensor([[0.5, float("nan")]]), "NaN"),
        (torch.tensor([[0.5, 0.4]]), "sum to one"),
        (torch.tensor([[1.5, -0.5]]), "in \\[0, 1\\]"),
        (torch.tensor([0.5, 0.5]), "\\[n, C\\]"),
    ],
)
def test_what_is_no_distribution_is_refused(p: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        terms.terms(p)


def test_bad_arguments_are_refused() -> None:
    model, x = network(), inputs()
    with pytest.raises(ValueError, match="k <= 225"):
        fisher.per_example_fishers(model, x, k=226)
    with pytest.raises(ValueError, match="kind"):
        fisher.per_example_fishers(model, x, kind="full", k=3)
    broken = x.clone()
    broken[2, 0] = float("nan")
    with pytest.raises(ValueError, match="example 2 holds NaN"):
        fisher.per_example_fishers(model, broken, k=3)
    with pytest.raises(ValueError, match="generator"):
        fisher.per_example_fishers(model, x, k=3, n_samples=2)
    with pytest.raises(ValueError, match="no parameter or module"):
        fisher.per_example_fishers(model, x, k=3, block=["head"])


def test_normalised_dense_fishers_have_norm_one() -> None:
    model, x = network(), inputs()
    for kind in KINDS:
        found = store.normalise(store.prune(all_of(model, x, kind)))
        torch.testing.assert_close(store.sparse_norms(found), torch.ones(6).double())
        assert store.energy(found) == pytest.approx(6)
        sparse = store.normalise(fisher.per_example_fishers(model, x, kind=kind, k=20))
        assert store.energy(sparse) < 0.99 * 6  # not by round-off


def test_a_folder_gives_back_what_was_written(tmp_path) -> None:
    model, x = network(), inputs(7)
    parts = [fisher.per_example_fishers(model, x[i : i + 3], k=9) for i in (0, 3, 6)]
    whole = store.concatenate(parts)
    archive.write(tmp_path / "made", iter(parts))
    found = archive.read(tmp_path / "made")
    for name in archive.ARRAYS:
        assert torch.equal(getattr(found, name), getattr(whole, name)), name
    assert (found.kind, found.parameters, found.k) == (whole.kind, whole.parameters, whole.k)
    with pytest.raises(ValueError, match="holds PEFs already"):
        archive.write(tmp_path / "made", iter([whole]))


def test_an_unfinished_or_cut_folder_is_not_read(tmp_path) -> None:
    def dying():
        yield fisher.per_example_fishers(network(), inputs(3), k=9)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archive.write(tmp_path / "made", dying())
    with pytest.raises(FileNotFoundError, match="writing did not end"):
        archive.read(tmp_path / "made")
    archive.write(tmp_path / "made", iter([fisher.per_example_fishers(network(), inputs(3), k=9)]))
    with (tmp_path / "made" / "values.bin").open("r+b") as file:
        file.truncate(8)
    with pytest.raises(ValueError, match="8 bytes"):
        archive.read(tmp_path / "made")


def test_cached_parts_are_the_whole_and_resume(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    model, x = network(), inputs(7)
    found = archive.fetch_fishers(model, x, k=9, part=3)
    want = fisher.per_example_fishers(model, x, k=9)
    torch.testing.assert_close(dense(found), dense(want))
    log = tmp_path.parent / f"{tmp_path.name}.log"
    before = log.read_text()
    assert before.count("built fishers") == 3
    again = archive.fetch_fishers(model, x, k=9, part=3)  # makes nothing
    assert log.read_text() == before
    assert torch.equal(again.values, found.values)


def test_equal_weights_with_another_forward_pass_are_cached_apart(tmp_path, monkeypatch) -> None:
    """Two and four heads share every weight's shape."""
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    spec = {"n_words": 9, "length": 6, "width": 8, "n_blocks": 1}
    two, four = (
        models.build("transformer", torch.Generator().manual_seed(0), n_heads=h, **spec)
        for h in (2, 4)
    )
    four.load_state_dict(two.state_dict())
    x = torch.randint(3, 9, (5, 6), generator=torch.Generator().manual_seed(1))
    a, b = (archive.fetch_fishers(model, x, k=50) for model in (two, four))
    torch.testing.assert_close(b.logits, four(x).detach())
    assert not torch.equal(a.values, b.values)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_network_and_examples_give_the_same_bytes(kind: str) -> None:
    one, other = (
        fisher.per_example_fishers(network().float(), inputs(50).float(), kind=kind, k=9, eps=0.1)
        for _ in range(2)
    )
    for name in archive.ARRAYS:
        assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_examples_written_at_a_time_change_nothing(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = network(), inputs(50)
    whole = fisher.per_example_fishers(model, x, kind=kind, k=9, eps=0.1)
    monkeypatch.setattr(fisher, "PIECE", 1)  # sixteen examples
    found = fisher.per_example_fishers(model, x, kind=kind, k=9, eps=0.1)
    for name in archive.ARRAYS:
        torch.testing.assert_close(getattr(found, name), getattr(whole, name), rtol=1e-12, atol=0)
