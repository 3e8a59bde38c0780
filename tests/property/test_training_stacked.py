"""A network of a stack is the network trained alone with its seed, whatever stands beside it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lib import features, models, training
from lib.training import Recipe

MLP = ("mlp", {"widths": (6, 5, 4, 3)}, (6,))
CNN = ("cnn", {"channels": (4, 4), "n_out": 3}, (1, 8, 8))
RESNET = ("resnet20", {"n_out": 3}, (3, 8, 8))
SEEDS = [3, 11, 4]

# Losses are taken in float32 from float64 weights, so one step differs by about 1e-7 relative.
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(autouse=True)
def _double():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def rows(shape: tuple[int, ...], n: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, *shape, generator=generator), torch.randint(3, (n,), generator=generator)


def alone(
    name: str, spec: Mapping[str, object], x: Tensor, y: Tensor, recipe: Recipe, seed: int
) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = models.build(name, generator, **spec)
    return training.train(model, x, y, recipe, generator=generator)


def assert_member(stack: Mapping[str, Tensor], index: int, model: nn.Module) -> None:
    state = model.state_dict()
    assert set(stack) == set(state)
    for key, value in state.items():
        assert stack[key][index].dtype == value.dtype
        assert_close(stack[key][index], value, **CLOSE, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(
    ("network", "recipe"),
    [
        (MLP, Recipe(3, 5, 0.1, weight_decay=1e-2)),
        (MLP, Recipe(3, 5, 0.01, optimizer="adam", schedule="cosine")),
        (MLP, Recipe(2, 12, 0.1, schedule="triangular", momentum=0.0)),
        (CNN, Recipe(2, 5, 0.05, weight_decay=1e-2)),
        (CNN, Recipe(2, 5, 0.05, augment="flip_crop")),
        (RESNET, Recipe(1, 6, 0.05, weight_decay=1e-2)),
    ],
    ids=["mlp", "mlp-adam", "mlp-one-batch", "cnn", "cnn-augmented", "resnet20"],
)
def test_a_stack_equals_its_networks_trained_alone(
    network: tuple[str, dict[str, object], tuple[int, ...]], recipe: Recipe
):
    name, spec, shape = network
    seeds = SEEDS if name != "resnet20" else SEEDS[:2]
    x, y = rows(shape)
    stack = training.train_stacked(name, spec, x, y, recipe, seeds=seeds)
    start = training.initial_stack(name, spec, seeds)
    for index, seed in enumerate(seeds):
        assert_member(stack, index, alone(name, spec, x, y, recipe, seed))
    moved = [key for key in stack if not torch.allclose(stack[key].double(), start[key].double())]
    assert set(moved) == set(stack)  # every tensor, so that equality says something
    if name == "resnet20":
        assert stack["bn1.num_batches_tracked"].tolist() == [2, 2]


def test_each_network_trains_on_its_own_subset_and_labels():
    name, spec, shape = MLP
    x, _ = rows(shape, n=14)
    y = torch.randint(3, (3, 14), generator=torch.Generator().manual_seed(1))
    subsets = torch.stack(
        [torch.randperm(14, generator=torch.Generator().manual_seed(k))[:9] for k in range(3)]
    )
    recipe = Recipe(2, 4, 0.1)
    stack = training.train_stacked(name, spec, x, y, recipe, seeds=SEEDS, subsets=subsets)
    for k, (seed, chosen) in enumerate(zip(SEEDS, subsets, strict=True)):
        assert_member(stack, k, alone(name, spec, x[chosen], y[k, chosen], recipe, seed))


def test_rows_outside_a_subset_have_no_influence():
    name, spec, shape = MLP
    x, y = rows(shape)
    subsets = torch.arange(8).expand(3, -1)
    recipe = Recipe(2, 4, 0.1)
    first = training.train_stacked(name, spec, x, y, recipe, seeds=SEEDS, subsets=subsets)
    x[8:], y[8:] = 50.0, 0
    again = training.train_stacked(name, spec, x, y, recipe, seeds=SEEDS, subsets=subsets)
    for key in first:
        assert_close(again[key], first[key], rtol=0, atol=0)


@pytest.mark.parametrize("network", [MLP, CNN], ids=["mlp", "cnn"])
def test_a_permutation_of_the_seeds_permutes_the_stack(
    network: tuple[str, dict[str, object], tuple[int, ...]],
):
    name, spec, shape = network
    x, y = rows(shape)
    order = [2, 0, 1]
    recipe = Recipe(2, 5, 0.1)
    first = training.train_stacked(name, spec, x, y, recipe, seeds=SEEDS)
    again = training.train_stacked(name, spec, x, y, recipe, seeds=[SEEDS[k] for k in order])
    for key in first:
        assert_close(again[key], first[key][order], rtol=1e-9, atol=1e-12)


def test_a_network_does_not_feel_the_others():
    name, spec, shape = MLP
    x, y = rows(shape)
    recipe = Recipe(2, 5, 0.1)
    single = training.train_stacked(name, spec, x, y, recipe, seeds=[11])
    three = training.train_stacked(name, spec, x, y, recipe, seeds=SEEDS)
    for key in single:
        assert_close(single[key][0], three[key][1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("network", "layers"),
    [(MLP, ["hidden1", "hidden2"]), (CNN, ["conv1", "out"]), (RESNET, ["layer1.0.conv2"])],
    ids=["mlp", "cnn", "resnet20"],
)
def test_a_stacks_outputs_and_activations_are_those_of_its_members(
    network: tuple[str, dict[str, object], tuple[int, ...]], layers: list[str]
):
    name, spec, shape = network
    x, _ = rows(shape, n=5)
    state = training.initial_stack(name, spec, SEEDS)
    out, seen = training.forward_stacked(name, spec, state, x, layers)
    assert list(seen) == layers
    for k, seed in enumerate(SEEDS):
        member = training.unstack(name, spec, state, k)
        assert not member.training
        built = models.build(name, torch.Generator().manual_seed(seed), **spec)
        assert_close(member.state_dict(), built.state_dict())
        assert_close(out[k], training.predict(member, x))
        wanted = features.activations(member, x, layers, pool=False)
        for layer in layers:
            assert_close(seen[layer][k], wanted[layer])


def test_training_leaves_the_global_generator_and_its_inputs_alone():
    name, spec, shape = MLP
    x, y = rows(shape)
    kept, before = (x.clone(), y.clone()), torch.get_rng_state()
    training.train_stacked(name, spec, x, y, Recipe(1, 5, 0.1), seeds=SEEDS)
    alone(name, spec, x, y, Recipe(1, 5, 0.1), 0)
    assert_close(torch.get_rng_state(), before)
    assert_close((x, y), kept)
