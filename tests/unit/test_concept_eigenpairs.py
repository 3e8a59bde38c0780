"""Concept attribution by eigenpairs against dense matrices of explicit gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lib import gradients, models
from lib.attribution import concepts, prefixes, trak
from lib.attribution.concept_eigenpairs import attribute_eigenpairs
from lib.attribution.concepts import ConceptData

LAYERS = ("hidden1", "hidden2")
WIDTHS = (6, 8, 7, 3)
P = {"hidden1": 56, "hidden2": 119}  # weights before the layer
EXACT = {"rtol": 1e-10, "atol": 1e-10}


def _rows(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    return x, torch.bucketize(x[:, 0] + x[:, 1] ** 2, torch.tensor([0.3, 1.3]).double())


def _concept() -> ConceptData:
    (fit_x, _), (x, _) = _rows(60, 1), _rows(9, 2)
    return ConceptData(fit_x, (fit_x[:, 2] > 0).long(), x, (x[:, 2] > 0).long())


def _network(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return models.build("mlp", generator, widths=WIDTHS).double().eval()


TRAIN, DATA, NETWORKS = _rows(150, 0), _concept(), [_network(0), _network(1)]


def _explicit(model: nn.Module, layer: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Gradients `[n, p]` of the task and `[T, p]` of the logits in the layer's whole prefix."""
    whole = prefixes.Prefixes(model, TRAIN[0], [layer], k=None, seed=0)
    own = concepts.fit_readouts(model, DATA, [layer])
    psi = concepts.concept_features(model, DATA, own, whole)
    phi = gradients.per_example(model, TRAIN, gradients.margin, block=whole.names)
    return phi, {version: found[layer] for version, found in psi.items()}


def _basis(model: nn.Module, phi: Tensor, layer: str) -> Tensor:
    """All eigenpairs as columns `[p, p]`, from gradients cut into modules."""
    names = [name.removesuffix(".weight") for name in _depends(model, layer)[::2]]
    x, blocks, start = TRAIN[0], [], 0
    with torch.no_grad():
        for name in names:
            o, i = model.get_submodule(name).weight.shape  # type: ignore[union-attr]
            a = torch.cat([x, torch.ones(len(x), 1).double()], 1)
            d = phi[:, start + o * i : start + o * i + o]  # the gradient in the bias
            u, v = (torch.linalg.eigh(side.T @ side).eigenvectors for side in (d, a))
            pair = torch.einsum("or,is->oirs", u, v)  # indices of the matrix, of the pair
            columns = torch.cat([pair[:, :-1].reshape(o * i, -1), pair[:, -1].reshape(o, -1)])
            blocks.append(columns)
            start += o * i + o
            x = model.get_submodule(name)(x).relu()
    return torch.block_diag(*blocks)


def _depends(model: nn.Module, layer: str) -> list[str]:
    return prefixes.depends(model, TRAIN[0], layer)


def _dense(model: nn.Module, layer: str, version: str, k: int, ridge: float) -> Tensor:
    """`g_t' (G + lambda)^-1 g_i` with the matrix of the module's text written out."""
    phi, psi = _explicit(model, layer)
    basis = _basis(model, phi, layer)
    energy = (phi @ basis).square().sum(0)
    kept = basis[:, energy.topk(k).indices]
    p, total = len(basis), energy.sum()
    damping = ridge * total / p
    on = kept.T @ phi.T @ phi @ kept
    off = damping + (total - on.trace()) / (p - k)
    inverse = kept @ torch.linalg.inv(on + damping * torch.eye(k).double()) @ kept.T
    inverse += (torch.eye(p).double() - kept @ kept.T) / off
    return phi @ inverse @ psi[version].T


@pytest.mark.parametrize("version", concepts.VERSIONS)
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("k", [1, 20, 55])
def test_scores_are_those_of_the_matrix_written_out(layer: str, version: str, k: int) -> None:
    found = attribute_eigenpairs(NETWORKS[:1], TRAIN, DATA, LAYERS, k=k, ridge=0.2)
    at = found.versions.index(version), found.layers.index(layer)
    want = _dense(NETWORKS[0], layer, version, k, 0.2)
    torch.testing.assert_close(found.unweighted[at], want, **EXACT)


def test_the_pairs_are_an_orthonormal_basis_of_the_prefix() -> None:
    """Of the test's own matrix: without it the one above would compare with anything."""
    for layer in LAYERS:
        basis = _basis(NETWORKS[0], _explicit(NETWORKS[0], layer)[0], layer)
        torch.testing.assert_close(basis.T @ basis, torch.eye(P[layer]).double(), **EXACT)


@pytest.mark.parametrize("k", [119, 500])
def test_with_every_pair_nothing_is_approximated(k: int) -> None:
    """Both versions, both layers, two networks: `concepts.attribute` without a projection."""
    found = attribute_eigenpairs(NETWORKS, TRAIN, DATA, LAYERS, k=k, ridge=0.1)
    want = concepts.attribute(NETWORKS, TRAIN, DATA, LAYERS, k=None, ridge=0.1)
    assert (found.layers, found.versions) == (want.layers, want.versions)
    torch.testing.assert_close(found.unweighted, want.unweighted, **EXACT)
    torch.testing.assert_close(found.by_model, want.by_model, **EXACT)
    torch.testing.assert_close(found.weights, want.weights, **EXACT)
    tau = want.tau("refit", "hidden2")
    torch.testing.assert_close(found.tau("refit", "hidden2"), tau, **EXACT)


def test_more_pairs_come_nearer_to_the_exact_scores() -> None:
    want = concepts.attribute(NETWORKS, TRAIN, DATA, LAYERS, k=None, ridge=0.1).unweighted
    errors = []
    for k in (5, 30, 90, 119):
        found = attribute_eigenpairs(NETWORKS, TRAIN, DATA, LAYERS, k=k, ridge=0.1)
        errors.append((found.unweighted - want).norm().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-3


def test_chunks_do_not_change_the_scores() -> None:
    whole = attribute_eigenpairs(NETWORKS, TRAIN, DATA, LAYERS, k=20)
    parts = attribute_eigenpairs(NETWORKS, TRAIN, DATA, LAYERS, k=20, chunk=7)
    torch.testing.assert_close(parts.unweighted, whole.unweighted, **EXACT)
    torch.testing.assert_close(parts.weights, whole.weights, **EXACT)


def test_how_many_networks_run_at_once_does_not_change_the_scores() -> None:
    three = [*NETWORKS, _network(2)]
    whole = attribute_eigenpairs(three, TRAIN, DATA, LAYERS, k=20, stack=3)
    parts = attribute_eigenpairs(iter(three), TRAIN, DATA, LAYERS, k=20, stack=2)
    torch.testing.assert_close(parts.unweighted, whole.unweighted, **EXACT)
    torch.testing.assert_close(parts.by_model, whole.by_model, **EXACT)
    torch.testing.assert_close(parts.weights, whole.weights, **EXACT)


def test_a_layer_that_is_a_linear_module_itself_has_its_own_gradient() -> None:
    layers = ["hidden2.0", "hidden1.0"]
    found = attribute_eigenpairs(NETWORKS, TRAIN, DATA, layers, k=119, ridge=0.1)
    want = concepts.attribute(NETWORKS, TRAIN, DATA, layers, k=None, ridge=0.1)
    torch.testing.assert_close(found.unweighted, want.unweighted, **EXACT)


class _Branches(nn.Module):
    """Two branches side by side: neither is a prefix of the other. No bias in one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Linear(6, 6), nn.Linear(6, 3)
        self.a, self.b = nn.Linear(6, 5), nn.Linear(6, 5, bias=False)
        self.mix = nn.Linear(5, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).tanh()
        return self.out(self.mix(self.a(h).tanh() + self.b(h).tanh()))


def test_layers_in_branches_have_their_own_prefix() -> None:
    torch.manual_seed(0)
    model = _Branches().double()
    found = attribute_eigenpairs([model], TRAIN, DATA, ["a", "b"], k=200, ridge=0.1)
    want = concepts.attribute([model], TRAIN, DATA, ["a", "b"], k=None, ridge=0.1)
    torch.testing.assert_close(found.unweighted, want.unweighted, **EXACT)


def test_scores_do_not_depend_on_the_scale_of_the_output() -> None:
    """The ridge is a share: twice the gradients are a quarter of the inverse."""

    def twice(out: Tensor, y: Tensor) -> Tensor:
        return 2 * gradients.margin(out, y)

    one = attribute_eigenpairs(NETWORKS[:1], TRAIN, DATA, LAYERS, k=20)
    two = attribute_eigenpairs(NETWORKS[:1], TRAIN, DATA, LAYERS, k=20, output=twice)
    torch.testing.assert_close(2 * two.unweighted, one.unweighted, **EXACT)


def test_the_order_of_training_rows_does_not_matter() -> None:
    order = torch.randperm(150, generator=torch.Generator().manual_seed(3))
    one = attribute_eigenpairs(NETWORKS[:1], TRAIN, DATA, LAYERS, k=20)
    shuffled = TRAIN[0][order], TRAIN[1][order]
    two = attribute_eigenpairs(NETWORKS[:1], shuffled, DATA, LAYERS, k=20)
    torch.testing.assert_close(two.unweighted, one.unweighted[:, :, order], **EXACT)


def test_networks_stay_as_they_were() -> None:
    model = _network(0).train()
    before = {n: v.clone() for n, v in model.state_dict().items()}
    attribute_eigenpairs([model], TRAIN, DATA, LAYERS, k=20)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_slopes_at_known_outputs_are_those_of_the_network() -> None:
    with torch.no_grad():
        value = gradients.margin(NETWORKS[0](TRAIN[0]), TRAIN[1])
    want = trak.slopes(NETWORKS[0], TRAIN, gradients.margin, trak.logistic)
    for one, other in zip(trak.slopes_at(value, trak.logistic), want, strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(want[0], torch.sigmoid(-value))


class _Sequence(nn.Module):
    """A linear module that reads four vectors an example."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x.unflatten(1, (2, 3))).tanh().mean(1))


class _Elsewhere(nn.Module):
    """A weight used outside its module's own call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x).tanh() + x @ self.inner.weight)


def _with(model: nn.Module, layer: str = "inner") -> Callable[[], object]:
    return lambda: attribute_eigenpairs([model.double()], TRAIN, DATA, [layer], k=5)


def _bad(**more: object) -> Callable[[], object]:
    options: dict = {"k": 5, **more}
    return lambda: attribute_eigenpairs(
        NETWORKS, TRAIN, DATA, options.pop("layers", LAYERS), **options
    )


BROKEN = TRAIN[0].clone()
BROKEN[17, 2] = float("nan")
FAULTS = {
    "k": (_bad(k=0), "k >= 1 pairs and a ridge > 0, got 0"),
    "ridge": (_bad(ridge=0.0), "a ridge > 0, got 5 and 0.0"),
    "stack": (_bad(stack=0), "want stack >= 1 networks a pass, got 0"),
    "layers": (_bad(layers=()), "at least one layer"),
    "layer": (_bad(layers=["hidden9"]), "no layer hidden9"),
    "version": (_bad(versions=("thawed",)), "versions are frozen, refit; got thawed"),
    "no version": (_bad(versions=()), "versions are frozen, refit"),
    "no checkpoint": (
        lambda: attribute_eigenpairs([], TRAIN, DATA, LAYERS),
        "at least one checkpoint",
    ),
    "sequence": (_with(_Sequence()), "'inner' to read one vector an example"),
    "elsewhere": (_with(_Elsewhere()), "used outside its layer's own call"),
    "norm": (
        _with(nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)), "1"),
        "want linear modules before layer '1', got LayerNorm '1'",
    ),
    "NaN": (
        lambda: attribute_eigenpairs(NETWORKS, (BROKEN, TRAIN[1]), DATA, LAYERS, k=5),
        "example 17 holds NaN",
    ),
    "labels": (
        lambda: attribute_eigenpairs(
            NETWORKS, TRAIN, ConceptData(DATA.fit_x, DATA.fit_y + 1, DATA.x, DATA.y), LAYERS
        ),
        r"labels in \{0, 1\}",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_attributed_is_refused(fault: str) -> None:
    call, words = FAULTS[fault]
    with pytest.raises(ValueError, match=words):
        call()
