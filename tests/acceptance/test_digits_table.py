"""The digits table of the specification of document 1 (section 4), on seeds never used before.

The table gives the accuracy of sparse probes of k units, mean over ten networks, to be met within
0.04. Its data seed is the table's; networks and frequency patches are fresh. A hundred networks
and three draws of patches, because ten networks leave 0.015 (one sd) on the accuracy of a single
unit and one draw of patches 0.02, which is half the band.

One sentence of acceptance check 5 is not met: that the dense frequency concept is read better in
the first layer. The table has it by 0.026, from ten networks and one draw of patches; here the
second layer is ahead by 0.005, 0.005 and 0.000 in three draws (standard error 0.005 each).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lib import probes, training
from lib.data import concepts, digits
from lib.probes.testbeds import ROUND

SIZES = (1, 2, 4, 8, 16, 32)
BAND = 0.04
TABLE = {
    ("round", "hidden1"): (0.733, 0.779, 0.827, 0.887, 0.926, 0.945),
    ("round", "hidden2"): (0.792, 0.844, 0.885, 0.933, 0.953, 0.968),
    ("hilo", "hidden1"): (0.557, 0.588, 0.607, 0.638, 0.670, 0.717),
    ("hilo", "hidden2"): (0.575, 0.566, 0.589, 0.614, 0.637, 0.691),
}
SPEC = {"widths": (64, 32, 32, 10)}
FRESH = range(500, 600)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    data = digits.load(0)
    recipe = training.Recipe(epochs=30, batch_size=50, lr=0.1, weight_decay=5e-4)
    return training.fetch_stack("mlp", SPEC, data.train.x, data.train.y, recipe, seeds=FRESH)


def accuracies(
    state: dict[str, Tensor], fit: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """Layer -> accuracy of each k, mean over networks."""
    layers = ["hidden1", "hidden2"]
    seen = [training.forward_stacked("mlp", SPEC, state, x, layers)[1] for x, _ in (fit, test)]
    found = {}
    for layer in layers:
        z, y = seen[0][layer], fit[1]
        probe = probes.fit_sparse(z, y, probes.rank_channels(z, y), SIZES)
        found[layer] = probes.accuracy(probe.score(seen[1][layer]), test[1]).mean(1)
    return found


@pytest.fixture(scope="module")
def measured(state: dict[str, Tensor]) -> dict[tuple[str, str], Tensor]:
    data, loops = digits.load(0), torch.tensor(ROUND)
    fit, test = data.probe, data.test
    labels = [torch.isin(part.y, loops).long() for part in (fit, test)]
    found = accuracies(state, (fit.x, labels[0]), (test.x, labels[1]))
    table = {("round", layer): values for layer, values in found.items()}
    draws = []
    for seed in (500, 501, 502):
        x, y = concepts.hilo_patches(800, torch.Generator().manual_seed(seed))
        x = x.flatten(1)
        draws.append(accuracies(state, (x[:400], y[:400]), (x[400:], y[400:])))
    for layer in draws[0]:
        table["hilo", layer] = torch.stack([draw[layer] for draw in draws]).mean(0)
    return table


@pytest.mark.parametrize("cell", TABLE, ids="-".join)
def test_accuracy_of_sparse_probes_is_within_the_band(
    cell: tuple[str, str], measured: dict[tuple[str, str], Tensor]
) -> None:
    difference = measured[cell] - torch.tensor(TABLE[cell])
    assert difference.abs().max() <= BAND, difference.tolist()


def test_the_object_concept_rises_with_depth_at_every_k(
    measured: dict[tuple[str, str], Tensor],
) -> None:
    gain = measured["round", "hidden2"] - measured["round", "hidden1"]
    assert (gain > 0).all(), gain.tolist()


def test_the_frequency_concept_is_read_alike_in_both_layers(
    measured: dict[tuple[str, str], Tensor],
) -> None:
    """In place of the sentence that the module's text says is not met."""
    dense = [measured["hilo", layer][-1].item() for layer in ("hidden1", "hidden2")]
    assert abs(dense[0] - dense[1]) <= 0.02, dense


@pytest.mark.xfail(strict=True, reason="other draws of patches favour neither layer")
def test_the_frequency_concept_is_read_better_in_the_first_layer(
    measured: dict[tuple[str, str], Tensor],
) -> None:
    """Check 5's last sentence, by half of the difference that the table has at least."""
    first, second = (TABLE["hilo", layer][-1] for layer in ("hidden1", "hidden2"))
    gap = measured["hilo", "hidden1"][-1] - measured["hilo", "hidden2"][-1]
    assert gap >= (first - second) / 2


@pytest.mark.parametrize("cell", TABLE, ids="-".join)
def test_accuracy_does_not_fall_with_more_units(
    cell: tuple[str, str], measured: dict[tuple[str, str], Tensor]
) -> None:
    """Check 9, second half."""
    assert (measured[cell].diff() >= 0).all(), measured[cell].tolist()


def test_networks_are_as_accurate_as_the_table_says(state: dict[str, Tensor]) -> None:
    test = digits.load(0).test
    out, _ = training.forward_stacked("mlp", SPEC, state, test.x)
    assert abs((out.argmax(-1) == test.y).double().mean().item() - 0.976) < 0.01


def test_shuffled_labels_leave_the_probe_at_chance(state: dict[str, Tensor]) -> None:
    data, loops = digits.load(0), torch.tensor(ROUND)
    y, y_test = (torch.isin(part.y, loops).long() for part in (data.probe, data.test))
    z = training.forward_stacked("mlp", SPEC, state, data.probe.x, ["hidden2"])[1]["hidden2"]
    z_test = training.forward_stacked("mlp", SPEC, state, data.test.x, ["hidden2"])[1]["hidden2"]
    scores, draws = [], range(10)
    for seed in draws:
        shuffled = probes.shuffled_labels(
            y, len(z), generator=torch.Generator().manual_seed(500 + seed)
        )
        scores.append(probes.roc_auc(probes.fit_logistic(z, shuffled).score(z_test), y_test))
    # the area under the curve, since accuracy's chance depends on the balance of the classes
    assert abs(torch.stack(scores).mean().item() - 0.5) <= 0.03
