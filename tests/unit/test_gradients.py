"""Per-example gradients, factors and the kernel against autograd, one example at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lib import gradients, models
from lib.gradients import cross_entropy, hooks, margin
from lib.gradients.flat import chunk_size

Case = tuple[nn.Module, tuple[Tensor, Tensor]]


class Sequences(nn.Module):
    """Embedding (with padding), attention from linear layers, layer norms: a small transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6, padding_idx=0)
        self.norm = nn.LayerNorm(6)
        self.mix = nn.Linear(6, 18, bias=False)
        self.out = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        q, k, v = self.mix(self.norm(h)).chunk(3, dim=-1)
        h = h + torch.softmax(q @ k.mT, dim=-1) @ v
        return self.out(self.norm(h)[:, 0])  # the norm is called twice


class Odd(nn.Module):
    """Layers that hooks must see through: in-place, strides, dilation, 1-d norm, a used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4, 3, (2, 3), dilation=(1, 2), padding=(0, 2))
        self.norm = nn.BatchNorm1d(60)
        self.lin = nn.Linear(60, 60)
        self.unused = nn.Identity()
        self.out = nn.Linear(60, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(self.act(self.bn(self.conv(x)))).flatten(1)
        h = self.act(self.lin(self.norm(h)))
        return self.out(self.act(self.lin(h)))


def _noisy(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Statistics and affine parameters off their defaults, or errors in them would not show."""
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor += 0.3 * (noise if "var" in name else noise - 0.5)
    return model


def case(name: str, n: int = 7, dtype: torch.dtype = torch.float64) -> Case:
    generator = torch.Generator().manual_seed(3)
    model: nn.Module
    shape: tuple[int, ...]
    if name == "mlp":
        model, shape, classes = models.build("mlp", generator, widths=(5, 8, 4)), (5,), 4
    elif name == "cnn":
        model, shape, classes = models.build("cnn", generator, channels=(4, 6)), (1, 8, 8), 10
    elif name == "resnet9":
        model, shape, classes = models.build("resnet9", generator), (3, 16, 16), 10
    else:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = Sequences() if name == "sequences" else Odd()
        shape, classes = ((5,), 3) if name == "sequences" else ((2, 10, 10), 4)
    model = _noisy(model.to(dtype), generator)
    if name == "sequences":
        x = torch.randint(11, (n, *shape), generator=generator)
    else:
        x = torch.randn(n, *shape, generator=generator, dtype=dtype)
    return model, (x, torch.randint(classes, (n,), generator=generator))


def loop(model: nn.Module, data: tuple[Tensor, Tensor], output: gradients.Output) -> Tensor:
    """One backward pass an example, in eval mode."""
    was, rows = model.training, []
    model.eval()
    for x, y in zip(*data, strict=True):
        value = output(model(x[None]), y[None]).sum()
        parts = torch.autograd.grad(value, list(model.parameters()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    model.train(was)
    return torch.stack(rows)


NAMES = ["mlp", "cnn", "sequences", "odd"]


@pytest.mark.parametrize("output", [margin, cross_entropy, gradients.correct_probability])
@pytest.mark.parametrize("name", NAMES)
def test_hooks_and_vmap_give_the_gradients_of_a_loop(name: str, output: gradients.Output) -> None:
    model, data = case(name)
    want = loop(model, data, output)
    by_hooks = torch.cat(list(gradients.per_example_hooks(model, data, output)))
    by_vmap = torch.cat(list(gradients.per_example_vmap(model, data, output)))
    torch.testing.assert_close(by_hooks, want)
    torch.testing.assert_close(by_vmap, want)
    torch.testing.assert_close(gradients.per_example(model, data, output), want)


def test_resnet9_in_eval_mode() -> None:
    model, data = case("resnet9", n=2, dtype=torch.float32)
    want = loop(model, data, margin)
    by_hooks = gradients.per_example(model, data, margin)
    by_vmap = torch.cat(list(gradients.per_example_vmap(model, data, margin)))
    scale = want.abs().max()
    torch.testing.assert_close(by_hooks / scale, want / scale, atol=1e-5, rtol=0)
    torch.testing.assert_close(by_vmap / scale, want / scale, atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", [["out"], ["hidden1.0.bias", "out.weight"], "hidden1"])
@pytest.mark.parametrize("way", [gradients.per_example_hooks, gradients.per_example_vmap])
def test_a_block_is_those_columns(way: Callable, block: list[str] | str) -> None:
    model, data = case("mlp")
    whole = gradients.per_example(model, data, margin)
    prefixes = (block,) if isinstance(block, str) else tuple(block)
    columns = [where for name, where in gradients.slices(gradients.select(model)).items()
               if name.startswith(prefixes)]  # fmt: skip
    want = torch.cat([whole[:, where] for where in columns], dim=1)
    torch.testing.assert_close(torch.cat(list(way(model, data, margin, block=block))), want)


class Functional(nn.Module):
    """Uses a layer's weight outside the layer's call: the hooks see half of its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(x) + F.linear(x, self.lin.weight)


class Positions(nn.Module):
    """A layer that is called without the axis of examples."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.where, self.out = nn.Embedding(9, 4), nn.Embedding(3, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((self.embed(x) + self.where(torch.arange(3))).mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(4, 4), nn.Linear(4, 4, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.embed(x).mean(1))


class Coupled(nn.Module):
    """Examples of a batch see one another; alone they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lin(x)
        return h + h.square().mean(0)


def _grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.Flatten())


INDICES = torch.tensor([[1, 2, 3], [0, 2, 2], [3, 1, 0]])
FALLBACKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "weight used elsewhere": (Functional, torch.arange(12.0).view(3, 4) / 9),
    "no axis of examples": (Positions, INDICES),
    "tied": (Tied, INDICES),
    "coupled": (Coupled, torch.arange(12.0).view(3, 4) / 9),
    "groups": (_grouped, torch.arange(54.0).view(3, 2, 3, 3) / 30),
    "never called": (lambda: nn.ModuleDict({"a": nn.Linear(2, 2)}), torch.ones(3, 2)),
}


@pytest.mark.parametrize("name", list(FALLBACKS)[:-1])
def test_what_hooks_cannot_see_falls_back_on_vmap(name: str) -> None:
    build, x = FALLBACKS[name]
    model, data = build().double(), (x.double() if x.is_floating_point() else x, torch.arange(3))
    with pytest.raises(gradients.UnsupportedLayer):
        list(gradients.per_example_hooks(model, data, margin))
    want = loop(model, data, margin)
    torch.testing.assert_close(gradients.per_example(model, data, margin), want)
    torch.testing.assert_close(gradients.kernel(model, data, None, margin), want @ want.T)


@pytest.mark.parametrize("name", NAMES)
def test_factors_multiply_to_the_gradients(name: str) -> None:
    model, data = case(name)
    want, where = loop(model, data, margin), gradients.slices(gradients.select(model))
    chunks = list(gradients.factors(model, data, margin, chunk=3))
    assert [len(next(iter(c.values())).a) for c in chunks] == [3, 3, 1]
    for layer in gradients.factored_layers(model):
        found = torch.cat([c[layer].d.mT @ c[layer].a for c in chunks])
        parts = [want[:, where[f"{layer}.weight"]].view(len(want), found.shape[1], -1)]
        if f"{layer}.bias" in where:
            parts.append(want[:, where[f"{layer}.bias"], None])
        torch.testing.assert_close(found, torch.cat(parts, dim=2))


def test_a_1x1_convolution_is_a_linear_layer_on_positions() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, 2, 2, generator=generator)
    y = torch.tensor([0, 1, 2, 1])
    conv, lin = nn.Conv2d(3, 5, 1), nn.Linear(3, 5)
    lin.load_state_dict({"weight": conv.weight.detach()[:, :, 0, 0], "bias": conv.bias.detach()})

    def pooled(out: Tensor, y: Tensor) -> Tensor:
        return margin(out.tanh().flatten(-2).mean(-1), y)

    def pooled_rows(out: Tensor, y: Tensor) -> Tensor:
        return margin(out.tanh().mean(-2), y)

    rows = x.flatten(2).mT
    by_conv = gradients.per_example(conv, (x, y), pooled)
    by_lin = gradients.per_example(lin, (rows, y), pooled_rows)
    torch.testing.assert_close(by_conv, by_lin, atol=1e-5, rtol=0)
    (a,), (b,) = (
        [next(iter(chunk.values())) for chunk in gradients.factors(m, d, f)]
        for m, d, f in ((conv, (x, y), pooled), (lin, (rows, y), pooled_rows))
    )
    torch.testing.assert_close(a.a, b.a, atol=1e-5, rtol=0)
    torch.testing.assert_close(a.d, b.d, atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", [None, ["out"]])
@pytest.mark.parametrize("name", NAMES)
def test_kernel_is_the_gram_matrix_of_gradients(name: str, block: list[str] | None) -> None:
    model, data = case(name)
    J = gradients.per_example(model, data, margin, block=block)
    K = gradients.kernel(model, data, None, margin, block=block, chunk=3)
    torch.testing.assert_close(K, J @ J.T)
    some = tuple(t[2:5] for t in data)
    K = gradients.kernel(model, data, some, margin, block=block, chunk=2)
    torch.testing.assert_close(K, J @ J[2:5].T)


def test_kernel_in_single_precision() -> None:
    model, data = case("cnn", n=40, dtype=torch.float32)
    J = gradients.per_example(model, data, margin).double()
    K = gradients.kernel(model, data, None, margin).double()
    assert (K - J @ J.T).abs().max() <= 1e-5 * K.abs().max()


def test_functional_gradients_match_the_model_s_own() -> None:
    model, data = case("cnn")

    def f(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return margin(functional_call(model, weights, (x[None],))[0], y)

    want = gradients.per_example(model, data, margin)
    torch.testing.assert_close(gradients.functional_gradients(f, model, data, chunk=2), want)
    out = gradients.functional_gradients(f, model, data, block=["out"])
    torch.testing.assert_close(out, want[:, -out.shape[1] :])


def test_functional_of_the_weights_alone() -> None:
    model, (x, y) = case("mlp")

    def outputs(weights: dict[str, Tensor]) -> Tensor:
        return margin(functional_call(model, weights, (x,)), y)

    want = gradients.per_example(model, (x, y), margin)
    torch.testing.assert_close(gradients.functional_gradient(outputs, model), want)
    mean = gradients.functional_gradient(lambda w: outputs(w).mean(), model)
    torch.testing.assert_close(mean, want.mean(0, keepdim=True))
    last = gradients.functional_gradient(outputs, model, block=["out"])
    torch.testing.assert_close(last, want[:, -last.shape[1] :])


def test_margin_is_the_log_odds_and_finite_where_p_is_one() -> None:
    out = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([0, 2])
    p = out.softmax(-1)[[0, 1], y]
    torch.testing.assert_close(margin(out, y), (p / (1 - p)).log())
    torch.testing.assert_close(gradients.correct_probability(out, y), p)
    torch.testing.assert_close(cross_entropy(out, y), -p.log())
    sure = torch.tensor([200.0, 0.0, -300.0])
    assert margin(sure, torch.tensor(0)) == 200.0
    assert margin(sure, torch.tensor(2)) == -500.0


def test_flat_order_round_trip() -> None:
    model, _ = case("mlp")
    weights = gradients.select(model)
    flat = gradients.flatten(weights)
    assert flat.shape == (gradients.size(weights),)
    for name, weight in gradients.unflatten(flat, weights).items():
        torch.testing.assert_close(weight, dict(model.named_parameters())[name].detach())


def test_a_chunk_is_chosen_by_the_model_s_size() -> None:
    small, _ = case("mlp")
    large = models.build("resnet9", torch.Generator().manual_seed(0))
    assert chunk_size(small, None) == 512
    assert chunk_size(large, None) == 16
    assert chunk_size(large, 100) == 100


def test_a_large_convolution_goes_one_example_at_a_time() -> None:
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(64, 64, 3, stride=(2, 1), dilation=(1, 2), padding=(1, 0))
    model = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(3 * 64, 3)).double()
    data = torch.randn(3, 64, 5, 5, generator=generator).double(), torch.arange(3)
    assert conv.weight.numel() >= hooks.LARGE
    found = torch.cat(list(gradients.per_example_hooks(model, data, margin)))
    torch.testing.assert_close(found, loop(model, data, margin))
