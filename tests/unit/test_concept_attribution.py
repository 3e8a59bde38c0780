"""Concept attribution: gradients of a probe's logit, frozen and refitted, by definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lib import features, gradients, models, training
from lib.attribution import concepts, metrics, prefixes, trak
from lib.attribution.concepts import ConceptData
from lib.attribution.traker import traker_concept

LAYERS = ("hidden1", "hidden2")
WIDTHS = (6, 8, 7, 3)


def _rows(n: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=dtype)
    bounds = torch.tensor([0.3, 1.3], dtype=dtype)
    return x, torch.bucketize(x[:, 0] + x[:, 1] ** 2, bounds)


def _concept(dtype: torch.dtype = torch.float64) -> ConceptData:
    (fit_x, _), (x, _) = _rows(60, 1, dtype), _rows(9, 2, dtype)
    return ConceptData(fit_x, (fit_x[:, 2] > 0).long(), x, (x[:, 2] > 0).long())


def _network(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    return models.build("mlp", generator, widths=WIDTHS).to(dtype).eval()


def _trained(n_models: int = 2) -> tuple[list[nn.Module], tuple[Tensor, Tensor]]:
    x, y = _rows(150, 0, torch.float32)
    recipe = training.Recipe(epochs=20, batch_size=25, lr=0.1)
    found = []
    for seed in range(n_models):
        model = _network(seed, torch.float32)
        generator = torch.Generator().manual_seed(seed)
        training.train(model, x, y, recipe, generator=generator)
        found.append(model.eval())
    return found, (x, y)


def _psi(model: nn.Module, data: ConceptData, block: list[str] | None = None) -> tuple:
    whole = prefixes.Prefixes(model, data.x, LAYERS, k=None, seed=0, block=block)
    own = concepts.fit_readouts(model, data, LAYERS)
    return whole, concepts.concept_features(model, data, own, whole)


def _logits(model: nn.Module, data: ConceptData, layer: str, fixed: Tensor | None) -> Tensor:
    """Signed logits with the probe given, or refitted to the network as it is."""
    probe = fixed
    if probe is None:
        h = features.activations(model, data.fit_x, [layer])[layer]
        probe = concepts.ridge_probe(h, data.fit_y)
    h = features.activations(model, data.x, [layer])[layer]
    return data.sign * (h @ probe[:-1] + probe[-1])


@pytest.mark.parametrize("version", concepts.VERSIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_gradients_are_the_change_of_the_logit(version: str, layer: str) -> None:
    model, data = _network(), _concept()
    whole, psi = _psi(model, data)
    names = prefixes.depends(model, data.x, layer)
    readout = concepts.fit_readouts(model, data, [layer])[layer]
    fixed = torch.cat([readout.weight, readout.bias[None]]) if version == "frozen" else None
    weights = {n: p for n, p in model.named_parameters() if n in names}
    assert whole.sizes[layer] == sum(p.numel() for p in weights.values())
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(whole.sizes[layer], generator=generator, dtype=torch.float64)
        step, ends = 1e-6, []
        for sign in (1, -1):
            with torch.no_grad():
                for n, v in gradients.unflatten(direction, weights).items():
                    weights[n] += sign * step * v
                ends.append(_logits(model, data, layer, fixed))
                for n, v in gradients.unflatten(direction, weights).items():
                    weights[n] -= sign * step * v
        slope = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(psi[version][layer] @ direction, slope, rtol=1e-3, atol=1e-6)


def test_parameters_after_the_layer_do_not_count() -> None:
    model, data = _network(), _concept()
    whole, psi = _psi(model, data, block=[""])
    named = gradients.select(model)
    for layer, prefix in zip(LAYERS, (("hidden1",), ("hidden1", "hidden2")), strict=True):
        for name, where in gradients.slices(named).items():
            zero = not name.startswith(prefix)
            for version in concepts.VERSIONS:
                assert bool((psi[version][layer][:, where] == 0).all()) == zero, (layer, name)
    assert whole.sizes["hidden1"] == gradients.size(named)


def test_a_layer_of_any_network_knows_its_parameters() -> None:
    model = models.build("cnn", torch.Generator().manual_seed(0), channels=(4, 6))
    names = [n for n, _ in model.named_modules() if n]
    x = torch.randn(2, 1, 8, 8)
    first, second = (prefixes.depends(model, x, n) for n in ("conv1", "conv2"))
    assert set(first) < set(second) < set(dict(model.named_parameters())), names
    with pytest.raises(ValueError, match="no layer nowhere"):
        prefixes.depends(model, x, "nowhere")


class _Branches(nn.Module):
    """Two branches side by side: neither is a prefix of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        return self.out(self.a(h).relu() + self.b(h).relu())


def test_layers_in_branches_have_their_own_groups() -> None:
    torch.manual_seed(0)
    model = _Branches()
    x = torch.randn(30, 6)
    whole = prefixes.Prefixes(model, x, ["a", "b"], k=16, seed=0)
    names = {layer: prefixes.depends(model, x, layer) for layer in ("a", "b")}
    assert names["a"] == ["stem.weight", "stem.bias", "a.weight", "a.bias"]
    assert names["b"] == ["stem.weight", "stem.bias", "b.weight", "b.bias"]
    grads = torch.randn(4, sum(p.numel() for n, p in model.named_parameters() if "out" not in n))
    both = whole.project(grads, 3)
    changed = grads.clone()
    chosen = {n: p for n, p in gradients.select(model).items() if n in whole.names}
    changed[:, gradients.slices(chosen)["b.weight"]] = 0
    again = whole.project(changed, 3)
    torch.testing.assert_close(again["a"], both["a"])
    assert not torch.allclose(again["b"], both["b"])


def test_scores_are_those_of_trak_with_the_same_functional() -> None:
    """Layer by layer through `trak.trak`, which knows nothing of layers or probes."""
    networks, train = _trained()
    data = _concept(torch.float32)
    found = concepts.attribute(networks, train, data, LAYERS, k=None, ridge=0.1)
    for layer in LAYERS:
        block = prefixes.depends(networks[0], data.x, layer)

        def of_probe(model: nn.Module, own: object, layer: str = layer) -> Tensor:
            return _psi(model, data)[1]["frozen"][layer]

        want = trak.trak(networks, train, of_probe, k=None, ridge=0.1, blocks=(block,))
        torch.testing.assert_close(found.tau("frozen", layer), want.tau, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("layer", LAYERS)
def test_scores_rank_as_those_of_the_official_software(layer: str) -> None:
    pytest.importorskip("trak")
    networks, train = _trained(1)
    data, k, ridge = _concept(torch.float32), 32, 0.1
    own = [concepts.fit_readouts(m, data, LAYERS)[layer] for m in networks]
    block = prefixes.depends(networks[0], data.x, layer)
    p = gradients.size(gradients.select(networks[0], block))
    projector = gradients.SJLT(p, k, seed=5)
    phi = gradients.projected(
        networks[0], train, gradients.margin, gradients.SJLT(p, k, seed=5), block=block
    )
    # its ridge is absolute, and its features are divided by the root of p
    absolute = ridge * (phi.T @ phi).diagonal().mean().item() / p
    theirs = traker_concept(networks, train, data, own, projector=projector, lambda_reg=absolute)
    ours = concepts.attribute(networks, train, data, [layer], k=k, seed=5, ridge=ridge)
    rank = metrics.spearman(theirs.double(), ours.tau("frozen", layer).double())
    assert rank.min() > 0.99


@pytest.mark.parametrize("k", [None, 64])
def test_the_mean_of_scores_is_the_score_of_the_mean(k: int | None) -> None:
    networks, train = _trained()
    networks = [m.double() for m in networks]
    train, data = (train[0].double(), train[1]), _concept()
    found = concepts.attribute(networks, train, data, LAYERS, k=k)
    for version in concepts.VERSIONS:
        for layer in LAYERS:
            mean = found.tau(version, layer).mean(1)
            torch.testing.assert_close(found.mean(version, layer), mean, rtol=1e-6, atol=1e-9)
    one = concepts.attribute(networks[:1], train, data, LAYERS, k=k)
    first = found.mean("frozen", "hidden2", torch.tensor([0]))
    torch.testing.assert_close(first, one.mean("frozen", "hidden2"))


def test_features_of_every_layer_keep_inner_products_of_its_prefix() -> None:
    torch.manual_seed(0)
    model = _network(dtype=torch.float32)
    x, k, n_seeds = torch.randn(3, 6), 24, 400
    exact = prefixes.Prefixes(model, x, LAYERS, k=None, seed=0)
    rows = torch.randn(2, exact.sizes["hidden2"])
    rows[1] += rows[0]
    found: dict[str, list[Tensor]] = {layer: [] for layer in LAYERS}
    for seed in range(n_seeds):
        features_of = prefixes.Prefixes(model, x, LAYERS, k=k, seed=seed).project(rows, 0)
        for layer, f in features_of.items():
            found[layer].append(f[0] @ f[1])
    for layer, products in found.items():
        a, b = exact.project(rows, 0)[layer]
        values = torch.stack(products)
        error = values.std() / n_seeds**0.5
        assert abs(values.mean() - a @ b) < 5 * error, layer
        assert error < 0.1 * (a @ b), layer


def test_a_null_version_points_nowhere() -> None:
    networks, train = _trained(3)
    data = _concept(torch.float32)
    found = concepts.attribute(networks, train, data, LAYERS, k=None, null=True)
    again = concepts.attribute(networks, train, data, LAYERS, k=None, null=True)
    assert torch.equal(found.tau("null", "hidden1"), again.tau("null", "hidden1"))
    r = torch.corrcoef(torch.stack([found.tau(v, "hidden1").flatten() for v in ("null", "frozen")]))
    assert abs(r[0, 1]) < 0.3


def test_a_probe_does_not_depend_on_the_scale_of_units() -> None:
    generator = torch.Generator().manual_seed(0)
    h, y = torch.randn(40, 5, generator=generator, dtype=torch.float64), torch.arange(40) % 2
    scale = torch.tensor([1.0, 5.0, 0.4, 3.0, 1.0], dtype=torch.float64)
    a, b = concepts.ridge_probe(h, y), concepts.ridge_probe(h * scale, y)
    torch.testing.assert_close(a[:-1], b[:-1] * scale)
    several = concepts.ridge_probe(torch.stack([h, h * scale]), y)
    torch.testing.assert_close(several, torch.stack([a, b]))


def test_a_probe_of_dead_units_has_a_derivative() -> None:
    """A unit that never fires is constant; its standard deviation has no slope at zero."""
    h = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    h[:, 1] = 0
    h.requires_grad_()
    probe = concepts.ridge_probe(h, torch.arange(40) % 2)
    (slope,) = torch.autograd.grad(probe.square().sum() + probe[-1], h)
    assert slope.isfinite().all()
    assert probe[1] == 0


def test_a_unit_that_hardly_fires_is_not_read() -> None:
    """Fitted, its weight would be thousands, and the next image on which it fires off the scale."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(400) % 2
    h = torch.randn(400, 4, generator=generator, dtype=torch.float64) + y[:, None]
    h[:, 2] = 0
    h[7, 2] = 1e-4
    probe = concepts.ridge_probe(h, y)
    assert probe[2] == 0
    without = concepts.ridge_probe(h[:, [0, 1, 3]], y)
    torch.testing.assert_close(probe[[0, 1, 3, 4]], without)
    several = concepts.ridge_probe(torch.stack([h, h.roll(1, 1)]), y)
    assert (several[:, :-1] == 0).nonzero().tolist() == [[0, 2], [1, 3]]
