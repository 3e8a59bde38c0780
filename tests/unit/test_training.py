"""The training loop against steps computed by hand, and the networks it leaves."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from lib import models, training
from lib.cache import state_hash
from lib.training.loop import SCHEDULES, Recipe, flip_crop

SEED = 5


@pytest.fixture
def double():
    """New networks and tensors in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def regression(n: int = 12, d: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, x.sum(1) + torch.randn(n, generator=generator, dtype=torch.float64)


def linear_model(d: int = 3, n_out: int = 1) -> nn.Module:
    return models.build("mlp", torch.Generator().manual_seed(1), widths=(d, n_out))


def by_hand(
    weight: Tensor, bias: Tensor, x: Tensor, y: Tensor, recipe: Recipe, factors: list[float]
) -> tuple[Tensor, Tensor]:
    """Full-batch descent on softmax regression, gradients written out."""
    parameters, velocity = [weight, bias], [torch.zeros_like(weight), torch.zeros_like(bias)]
    moments = [torch.zeros_like(p) for p in parameters]
    for step, factor in enumerate(factors, 1):
        error = torch.softmax(x @ parameters[0].T + parameters[1], 1)
        error = (error - F.one_hot(y, error.shape[1])) / len(x)
        for i, gradient in enumerate((error.T @ x, error.sum(0))):
            g = gradient + recipe.weight_decay * parameters[i]
            if recipe.optimizer == "sgd":
                velocity[i] = g if step == 1 else recipe.momentum * velocity[i] + g
                change = velocity[i]
            else:
                velocity[i] = 0.9 * velocity[i] + 0.1 * g
                moments[i] = 0.999 * moments[i] + 0.001 * g.square()
                change = velocity[i] / (1 - 0.9**step)
                change = change / ((moments[i] / (1 - 0.999**step)).sqrt() + 1e-8)
            parameters[i] = parameters[i] - recipe.lr * factor * change
    return parameters[0], parameters[1]


@pytest.mark.parametrize(
    ("recipe", "factors"),
    [
        (Recipe(1, 100, 0.3, schedule="constant", momentum=0.0), [1.0]),
        (Recipe(1, 100, 0.3, schedule="constant", weight_decay=0.1), [1.0]),
        (Recipe(3, 100, 0.3, weight_decay=0.1), [5 / 6, 3 / 6, 1 / 6]),
        (Recipe(3, 100, 0.03, optimizer="adam", weight_decay=0.1), [5 / 6, 3 / 6, 1 / 6]),
        (
            Recipe(3, 100, 0.3, schedule="cosine", momentum=0.5),
            [0.5 + math.sqrt(3) / 4, 0.5, 0.5 - math.sqrt(3) / 4],
        ),
        (Recipe(2, 100, 0.3, schedule="triangular", peak=0.5), [0.5, 0.5]),
    ],
)
def test_steps_equal_those_computed_by_hand(double: None, recipe: Recipe, factors: list[float]):
    x, y = regression()[0], torch.arange(12) % 4
    model = linear_model(n_out=4)
    start = {k: v.detach().clone() for k, v in model.state_dict().items()}
    training.train(model, x, y, recipe, generator=torch.Generator().manual_seed(0))
    weight, bias = by_hand(start["out.weight"], start["out.bias"], x, y, recipe, factors)
    # the loss is taken in float32, whatever the weights: 6e-8 relative a step; Adam divides by
    # the gradient's size, so that the smallest gradients keep fewer digits
    assert_close(model.get_submodule("out").weight.detach(), weight, rtol=1e-5, atol=1e-6)
    assert_close(model.get_submodule("out").bias.detach(), bias, rtol=1e-5, atol=1e-6)
    assert (weight - start["out.weight"]).abs().min() > 1e-3  # it did move


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("constant", [1, 1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25, 0]),
        ("cosine", [1, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0]),
        ("triangular", [0, 1, 2 / 3, 1 / 3, 0]),
        ("milestones", [1, 1, 0.1, 0.01, 0.01]),
    ],
)
def test_schedules_have_their_closed_forms(name: str, values: list[float]):
    found = [SCHEDULES[name](done, 0.25) for done in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert found == pytest.approx(values, abs=1e-15)


def test_every_row_is_seen_once_an_epoch_in_a_new_order(double: None):
    x = torch.arange(10.0)[:, None]
    seen: list[list[float]] = []

    def watch(batch: Tensor) -> Tensor:
        seen.append(batch[:, 0].tolist())
        return batch

    recipe = Recipe(3, 4, 1e-3)
    training.train(
        linear_model(1, 2), x, torch.arange(10) % 2, recipe,
        generator=torch.Generator().manual_seed(0), prepare=watch,
    )  # fmt: skip
    assert [len(batch) for batch in seen] == [4, 4, 2] * 3
    epochs = [[*seen[i], *seen[i + 1], *seen[i + 2]] for i in (0, 3, 6)]
    assert all(sorted(epoch) == x[:, 0].tolist() for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_training_returns_the_network_in_evaluation_mode_and_the_seed_decides():
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 10
    hashes = []
    for seed in (0, 0, 1):
        model = models.build("cnn", torch.Generator().manual_seed(9))
        returned = training.train(
            model, x, y, Recipe(1, 8, 0.01), generator=torch.Generator().manual_seed(seed)
        )
        assert returned is model
        assert not any(m.training for m in model.modules())
        hashes.append(state_hash(model.state_dict()))
    assert hashes[0] == hashes[1] != hashes[2]


def rings(n: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two classes that a line cannot part: within and without a ring."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    angle = 2 * torch.pi * torch.rand(n, generator=generator)
    radius = 1.0 + 1.5 * y + 0.3 * torch.rand(n, generator=generator)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], 1), y


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), ("adam", 0.02)])
def test_a_network_learns_what_a_line_cannot(optimizer: str, lr: float):
    (x, y), (x_test, y_test) = rings(), rings(seed=1)
    recipe = Recipe(30, 20, lr, optimizer=optimizer)
    model = models.build("mlp", torch.Generator().manual_seed(0), widths=(2, 32, 2))
    before = training.accuracy(model, x_test, y_test)
    training.train(model, x, y, recipe, generator=torch.Generator().manual_seed(0))
    assert before < 0.8
    assert training.accuracy(model, x_test, y_test) > 0.98
    line = linear_model(2, 2)
    training.train(line, x, y, recipe, generator=torch.Generator().manual_seed(0))
    assert training.accuracy(line, x_test, y_test) < 0.8


def test_squared_error_finds_the_least_squares_solution():
    x, y = (t.float() for t in regression(40))
    model = linear_model()
    recipe = Recipe(400, 40, 0.1, loss="mse")
    training.train(model, x, y, recipe, generator=torch.Generator())
    design = torch.cat([x, torch.ones(40, 1)], 1)
    wanted = torch.linalg.lstsq(design, y[:, None]).solution[:, 0]
    got = torch.cat([model.get_submodule("out").weight[0], model.get_submodule("out").bias])
    assert_close(got.detach(), wanted, rtol=0, atol=1e-4)


def test_accuracy_counts_and_predict_does_not_depend_on_the_chunk():
    x = torch.eye(4)
    model = models.build("mlp", torch.Generator(), widths=(4, 4))
    with torch.no_grad():
        model.get_submodule("out").weight.copy_(torch.eye(4))
    model.train()
    assert training.accuracy(model, x, torch.tensor([0, 1, 2, 0])) == 0.75
    assert_close(training.predict(model, x, chunk=3), x)
    assert_close(training.predict(model, x, prepare=lambda rows: 2 * rows), 2 * x)
    assert model.training


def test_flip_crop_shifts_and_mirrors_and_nothing_else():
    """Pixels numbered from 1 tell where each came from; 0 is the border that came in."""
    n, height, width, pad = 400, 6, 5, 2
    numbers = torch.arange(1.0, height * width + 1).reshape(1, 1, height, width)
    image = numbers * torch.tensor([1.0, 100.0])[:, None, None]  # two channels, one move
    out = flip_crop(image.expand(n, -1, -1, -1), torch.Generator().manual_seed(0), pad=pad)
    padded = F.pad(image, (pad,) * 4)
    moves = {}
    for down in range(2 * pad + 1):
        for right in range(2 * pad + 1):
            window = padded[0, :, down : down + height, right : right + width]
            moves[down, right, False] = window
            moves[down, right, True] = window.flip(-1)
    found = [[move for move, wanted in moves.items() if torch.equal(o, wanted)] for o in out]
    assert all(len(matches) == 1 for matches in found)
    used = [matches[0] for matches in found]
    assert {move[0] for move in used} == {move[1] for move in used} == set(range(2 * pad + 1))
    mirrored = sum(move[2] for move in used) / n
    assert abs(mirrored - 0.5) < 4 * math.sqrt(0.25 / n)
    assert len(set(used)) == 50  # rows and columns move apart from each other


def test_augmentation_follows_the_generator_and_leaves_its_input():
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    first = flip_crop(x, torch.Generator().manual_seed(1))
    assert_close(first, flip_crop(x, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, flip_crop(x, torch.Generator().manual_seed(2)))
    assert_close(x, kept)


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_network_is_trained_once_and_fetched_as_it_was(cache_dir: Path):
    x, y = rings(40)
    recipe, spec = Recipe(2, 10, 0.1), {"widths": (2, 8, 2)}
    loads = []

    def load() -> tuple[Tensor, Tensor]:
        loads.append(1)
        return x, y

    def fetch(how: Recipe = recipe, seed: int = SEED, data: str = "rings") -> nn.Module:
        return training.fetch_model("mlp", spec, load, how, seed=seed, data_hash=data)

    generator = torch.Generator().manual_seed(SEED)
    alone = models.build("mlp", generator, **spec)
    training.train(alone, x, y, recipe, generator=generator)
    for model in (fetch(), fetch()):
        assert state_hash(model.state_dict()) == state_hash(alone.state_dict())
        assert not model.training
    assert len(loads) == 1
    fetch(how=replace(recipe, lr=0.2))
    fetch(seed=SEED + 1)
    fetch(data="other rings")
    assert len(loads) == 4


def test_a_stack_is_trained_once_for_the_same_rows_labels_and_subsets(cache_dir: Path):
    x, y = rings(40)
    recipe, spec = Recipe(1, 10, 0.1), {"widths": (2, 8, 2)}

    def fetch(**changes: object) -> str:
        given = {"x": x, "y": y, "seeds": [1, 2], "subsets": None, **changes}
        return state_hash(training.fetch_stack("mlp", spec, recipe=recipe, **given))  # type: ignore[arg-type]

    direct = training.train_stacked("mlp", spec, x, y, recipe, seeds=[1, 2])
    assert fetch() == fetch() == state_hash(direct)
    assert len(list(cache_dir.glob("*.safetensors"))) == 1
    halves = torch.arange(40).reshape(2, 20)
    others = [fetch(subsets=halves), fetch(y=1 - y), fetch(x=x + 1), fetch(seeds=[2, 1])]
    assert len({*others, fetch()}) == 5
    assert len(list(cache_dir.glob("*.safetensors"))) == 5
