"""Masks, rewinding and batch norms against counts, snapshots and means taken by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from lib import models, training
from lib.training import Recipe, pruning
from lib.training.checkpoints import Checkpoints, Stage

SPEC = {"n_out": 3}
RECIPE = Recipe(2, 8, 0.05, weight_decay=1e-3, schedule="constant")


def data(n: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 3, 16, 16, generator=generator), torch.arange(n) % 3


def network(seed: int = 0) -> nn.Module:
    return models.build("scene_resnet", torch.Generator().manual_seed(seed), **SPEC)


def weights(n: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    state = {name: torch.randn(k, generator=generator) for name, k in (("a", n // 3), ("b", n))}
    state["b"] = state["b"][: n - n // 3]
    return state, {name: torch.ones_like(value, dtype=torch.bool) for name, value in state.items()}


def test_seven_prunings_of_forty_percent_leave_two_point_eight_and_none_returns():
    state, masks = weights(10_000)
    left = [10_000]
    for _ in range(7):
        before = masks
        masks = pruning.prune(state, masks, 0.4)
        assert all((~before[name] & masks[name]).sum() == 0 for name in masks)
        left.append(sum(int(mask.sum()) for mask in masks.values()))
        assert left[-1] == left[-2] - round(0.4 * left[-2])
    assert abs(left[-1] - 280) <= 3


def test_the_smallest_weights_go_over_all_layers_together():
    state = {"a": torch.tensor([0.1, -5.0, 0.4]), "b": torch.tensor([[-0.2, 0.3]])}
    masks = {k: torch.ones_like(v, dtype=torch.bool) for k, v in state.items()}
    found = pruning.prune(state, masks, 0.6)
    assert found["a"].tolist() == [False, True, True]
    assert found["b"].tolist() == [[False, False]]


def test_what_is_pruned_does_not_count_as_small_again():
    state = {"a": torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0])}
    masks = {"a": torch.tensor([False, True, True, True, True])}
    assert pruning.prune(state, masks, 0.5)["a"].tolist() == [False, False, False, True, True]


def test_first_convolution_linear_layer_and_norms_stay_dense():
    names = pruning.prunable(network())
    assert "conv1.weight" not in names
    assert not any(name.startswith("fc") or "bn" in name for name in names)
    assert {"layer1.conv1.weight", "layer4.shortcut.0.weight"} <= set(names)
    assert len(names) == 4 * 2 + 3


def test_rewinding_gives_the_snapshot_bit_for_bit_outside_the_masks():
    x, y = data()
    model, generator = network(), torch.Generator().manual_seed(1)
    found = training.train_checkpointed(model, x, y, RECIPE, keep=[1, 2], generator=generator)
    masks = pruning.prune(found[2], pruning.dense_masks(model), 0.4)
    rewound = pruning.masked(found[1], masks)
    assert rewound.keys() == found[1].keys()
    for name, value in rewound.items():
        kept = masks.get(name, torch.ones_like(value, dtype=torch.bool))
        assert torch.equal(value[kept], found[1][name][kept])
        assert (value[~kept] == 0).all()
    assert not torch.equal(found[1]["bn1.running_mean"], found[2]["bn1.running_mean"])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_masked_weights_stay_zero_and_the_others_move(optimizer: str):
    x, y = data()
    model = network()
    masks = pruning.prune(dict(model.state_dict()), pruning.dense_masks(model), 0.5)
    recipe = Recipe(2, 8, 0.05, optimizer=optimizer, weight_decay=1e-3)
    found = training.train_checkpointed(
        model, x, y, recipe, keep=[0, 1, 2], masks=masks, generator=torch.Generator().manual_seed(1)
    )
    for state in (*found.values(), model.state_dict()):
        assert all((state[name][~mask] == 0).all() for name, mask in masks.items())
    moved = found[2]["layer4.conv2.weight"] != found[0]["layer4.conv2.weight"]
    assert moved[masks["layer4.conv2.weight"]].all()


def test_masks_that_keep_all_change_nothing():
    x, y = data()
    found = []
    for masks in (None, pruning.dense_masks(network())):
        generator = torch.Generator().manual_seed(1)
        found.append(
            training.train_checkpointed(
                network(), x, y, RECIPE, keep=[2], masks=masks, generator=generator
            )[2]
        )
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_checkpoints_are_those_of_the_plain_loop():
    x, y = data()
    found = training.train_checkpointed(
        network(), x, y, RECIPE, keep=[0, 2], generator=torch.Generator().manual_seed(1)
    )
    plain = training.train(network(), x, y, RECIPE, generator=torch.Generator().manual_seed(1))
    start = network().state_dict()
    assert all(torch.equal(found[2][k], v) for k, v in plain.state_dict().items())
    assert all(torch.equal(found[0][k], v) for k, v in start.items())


def test_a_random_mask_has_the_sparsity_of_each_layer_and_other_weights():
    model = network()
    masks = pruning.prune(dict(model.state_dict()), pruning.dense_masks(model), 0.7)
    found = pruning.random_masks(masks, torch.Generator().manual_seed(0))
    assert all(found[name].sum() == mask.sum() for name, mask in masks.items())
    assert any(not torch.equal(found[name], mask) for name, mask in masks.items())
    assert pruning.share_left(found) == pruning.share_left(masks) == pytest.approx(0.3, abs=1e-5)


def test_batch_norms_are_estimated_as_means_over_batches_and_nothing_else_changes():
    x, _ = data(32)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pruning.reestimate_batch_norms(
        model, x, generator=torch.Generator().manual_seed(0), n_batches=4, batch_size=8
    )
    with torch.no_grad():
        h = model[0](x)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0)).split(8)
    means = torch.stack([h[rows].mean((0, 2, 3)) for rows in order]).mean(0)
    variances = torch.stack([h[rows].var((0, 2, 3)) for rows in order]).mean(0)
    assert_close(model[1].running_mean, means)
    assert_close(model[1].running_var, variances)
    after = model.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if "weight" in k or "bias" in k)
    assert not any(m.training for m in model.modules())
    assert model[1].momentum == 0.1


def test_batch_norms_are_estimated_from_whole_batches_where_there_is_one():
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(3))
    for n, expected in ((9, 8), (5, 5)):
        model = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).eval()
        pruning.reestimate_batch_norms(
            model, x[:n], generator=torch.Generator().manual_seed(0), n_batches=1, batch_size=8
        )
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:expected]
        assert_close(model[0].running_mean, x[order].mean(0))
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).eval()
    pruning.reestimate_batch_norms(
        model, x, generator=torch.Generator().manual_seed(0), n_batches=2, batch_size=8
    )
    g = torch.Generator().manual_seed(0)
    orders = [torch.randperm(9, generator=g)[:8] for _ in range(2)]
    assert_close(model[0].running_mean, torch.stack([x[rows].mean(0) for rows in orders]).mean(0))


def dense() -> Checkpoints:
    x, y = data()
    generator = torch.Generator().manual_seed(1)
    return training.train_checkpointed(network(), x, y, RECIPE, keep=[0, 1, 2], generator=generator)


def chain(first: Checkpoints, rewind: int, n_stages: int) -> Iterator[Stage]:
    x, y = data()

    def train(start: pruning.State, masks: pruning.Masks, stage: int) -> pruning.State:
        model = training.network_of("scene_resnet", SPEC, start)
        generator = torch.Generator().manual_seed(stage)
        return training.train_checkpointed(
            model, x, y, RECIPE, keep=[2], masks=masks, generator=generator
        )[2]

    return training.tickets(
        "scene_resnet",
        SPEC,
        first,
        RECIPE,
        rewind=rewind,
        n_stages=n_stages,
        amount=0.4,
        train=train,
    )


def test_a_chain_of_tickets_rewinds_every_stage_to_the_same_epoch():
    first = dense()
    stages = list(chain(first, 1, 4))
    assert [stage.number for stage in stages] == [0, 1, 2, 3]
    shares = [pruning.share_left(stage.masks) for stage in stages]
    assert shares == pytest.approx([1.0, 0.6, 0.36, 0.216], abs=1e-4)
    for stage in stages:
        for name, value in stage.rewound.items():
            kept = stage.masks.get(name, torch.ones_like(value, dtype=torch.bool))
            assert torch.equal(value[kept], first[1][name][kept])
            assert (stage.trained[name][~kept] == 0).all()


def test_arms_side_by_side_have_the_weights_of_one_at_a_time():
    first, n_threads = dense(), torch.get_num_threads()
    runs = []
    for n in (1, 3):
        arms = {rewind: chain(first, rewind, 3) for rewind in (0, 1)}
        torch.set_num_threads(n)
        try:
            runs.append(training.tickets_together(arms, 3))
        finally:
            torch.set_num_threads(n_threads)
    for rewind in (0, 1):
        alone, beside = (run[rewind] for run in runs)
        assert [stage.number for stage in alone] == [stage.number for stage in beside] == [0, 1, 2]
        for a, b in zip(alone, beside, strict=True):
            assert all(torch.equal(b.trained[name], value) for name, value in a.trained.items())
    last = [alone.trained["fc.weight"] for alone in (runs[0][0][-1], runs[0][1][-1])]
    assert not torch.equal(*last)


def test_an_arm_that_fails_ends_the_others():
    def failing() -> Iterator[Stage]:
        yield next(chain(first, 0, 1))
        raise RuntimeError("no more")

    first = dense()
    with pytest.raises(RuntimeError, match="no more"):
        training.tickets_together({0: failing(), 1: chain(first, 1, 3)}, 3)


def test_a_new_head_leaves_every_other_layer():
    state = dict(network().state_dict())
    found = training.with_new_head(
        "scene_resnet",
        {"n_out": 5},
        state,
        head="fc",
        generator=torch.Generator().manual_seed(9),
    )
    assert found["fc.weight"].shape == (5, 96)
    assert all(torch.equal(found[k], v) for k, v in state.items() if not k.startswith("fc."))


def test_the_scene_network_has_the_specified_size_and_maps():
    model = models.build("scene_resnet", torch.Generator().manual_seed(0), n_out=10)
    assert round(models.n_parameters(model), -3) == 224_000
    seen: list[torch.Size] = []
    model.layer4.register_forward_hook(lambda m, i, o: seen.append(o.shape))
    assert model(torch.zeros(2, 3, 48, 48)).shape == (2, 10)
    assert seen == [torch.Size([2, 96, 6, 6])]


FAULTS = {
    "amount": (lambda s, m: pruning.prune(s, m, 1.0), r"amount in \(0, 1\), got 1"),
    "other masks": (lambda s, m: pruning.prune({"a": s["a"]}, m, 0.5), "b has shape .* no such"),
    "shape": (lambda s, m: pruning.masked({**s, "a": s["b"]}, m), "take masks of the same network"),
    "no masks": (lambda s, m: pruning.masked(s, {}), "at least one weight, got none"),
    "one convolution": (
        lambda s, m: pruning.prunable(nn.Conv2d(1, 1, 1)),
        "at least two convolutions, got 1",
    ),
}


@pytest.mark.parametrize(("call", "sentence"), FAULTS.values(), ids=FAULTS)
def test_what_cannot_be_pruned_is_refused(call, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        call(*weights(9))


def test_a_checkpoint_that_is_not_trained_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match=r"want checkpoints after 0 to 2 epochs, got .*5"):
        training.train_checkpointed(
            network(), x, y, RECIPE, keep=[0, 5], generator=torch.Generator()
        )
    with pytest.raises(ValueError, match="want checkpoints after 1 and 2 epochs"):
        next(
            training.tickets(
                "scene_resnet",
                SPEC,
                {0: {}},
                RECIPE,
                rewind=1,
                n_stages=2,
                amount=0.4,
                train=lambda *a: {},
            )
        )
