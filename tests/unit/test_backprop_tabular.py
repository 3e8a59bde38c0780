"""The tabular experiment in small, stacks of networks, and the study of entanglement."""

from __future__ import annotations

import json
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch

from lib import backprop, config, models
from lib.backprop import L1, L2, Objective, entanglement, tabular
from lib.backprop.stacked import StackedPrefix, StackedProbe
from lib.data import housing
from lib.training import initial_stack, unstack

SIZE = {"seed": 0, "n_models": 2, "epochs": 2, "n_rows": 400, "rho": 0.7}


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield tabular.prepare("shared", Path(), **SIZE)


@pytest.fixture(scope="module")
def probe(bed):
    return tabular.validated_probe(bed, seed=0)[0]


def test_a_stack_explains_each_network_as_if_alone():
    spec = {"widths": (6, 8, 5, 1), "activation": "selu"}
    state = initial_stack("mlp", spec, [3, 4])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 6, generator=generator)
    weight, bias = torch.randn(2, 5, generator=generator), torch.randn(2, generator=generator)
    layer, probe = StackedPrefix("mlp", spec, state, "hidden2"), StackedProbe(weight, bias)
    terms = [(0.1, L1())]
    whole = backprop.maximise(Objective(layer, probe, terms), x.repeat(2, 1), 2.0)
    for k in range(2):
        alone_layer = backprop.Prefix(unstack("mlp", spec, state, k).eval(), "hidden2")
        read = lambda h, k=k: h @ weight[k] + bias[k]  # noqa: E731
        alone = backprop.maximise(Objective(alone_layer, read, terms), x, 2.0)
        mine = slice(4 * k, 4 * k + 4)
        torch.testing.assert_close(whole.probe_before[mine], alone.probe_before)
        torch.testing.assert_close(whole.objective[mine], alone.objective, rtol=1e-3, atol=1e-5)


def test_weights_of_a_stack_are_seen_by_the_check_of_frozen_weights():
    spec = {"widths": (6, 8, 5, 1), "activation": "selu"}
    layer = StackedPrefix("mlp", spec, initial_stack("mlp", spec, [3, 4]), "hidden2")
    before = backprop.weights_hash(layer)
    layer.get_buffer("weight0").add_(1e-3)
    assert backprop.weights_hash(layer) != before


def test_a_stacked_layer_that_is_not_there_is_refused():
    spec = {"widths": (6, 8, 1)}
    with pytest.raises(ValueError, match="no layer hidden9"):
        StackedPrefix("mlp", spec, initial_stack("mlp", spec, [0]), "hidden9")


def test_log_changes_add_up_to_the_change_of_rooms_per_person(bed, probe):
    rows = bed.lowest(5)
    edit = tabular.constrained(bed, probe, rows, L2(scale=bed.sd))
    ratio = housing.rooms_per_person(edit.after) / housing.rooms_per_person(edit.before)
    fine = edit.possible
    assert fine.any()
    torch.testing.assert_close(
        edit.log_rooms_per_person[fine].exp(), ratio[fine], rtol=1e-4, atol=1e-5
    )
    assert ((edit.probe_after - bed.target).abs() < 0.02 * bed.target).all()


def test_lowest_rows_are_the_lowest(bed):
    rows = bed.lowest(10)
    assert bed.ratio[rows].max() <= bed.ratio.sort().values[10]
    assert (bed.ratio[rows].diff() >= 0).all()


def test_faithful_run_is_no_shorter_than_the_shortest_with_its_effect(bed):
    generator = torch.Generator().manual_seed(0)
    official, r2 = tabular.official_probe(bed, generator=generator)
    edit = tabular.faithful(bed, official, bed.lowest(5), generator=generator)
    shortest = tabular.shortest_like(bed, official, bed.lowest(5), edit)
    assert r2.shape == (2,)
    assert (shortest.distance.mean() <= edit.distance.mean() * 1.001).all()
    torch.testing.assert_close(shortest.probe_after.relu(), edit.probe_after, rtol=1e-3, atol=1e-3)


def test_interval_over_networks_and_rows_covers_the_mean_and_skips_nan():
    x = torch.randn(5, 200, generator=torch.Generator().manual_seed(0)) + 1
    x[0, :50] = float("nan")
    mean, low, high = tabular.interval(x, generator=torch.Generator().manual_seed(0))
    assert low < mean < high
    assert mean.item() == pytest.approx(x.nanmean().item())
    assert 0.05 < (high - low).item() < 0.5


def test_predicted_leak_has_the_values_of_the_specification():
    assert entanglement.predicted_leak(0.6, 1.0).item() == pytest.approx(0.366, abs=5e-4)
    assert entanglement.predicted_leak(0.9, 0.1).item() == pytest.approx(0.310, abs=5e-4)
    assert entanglement.predicted_leak(0.9, 0.0).item() == 0


def test_linear_layers_leak_as_predicted_and_not_after_the_intervention():
    rhos = (0.0, 0.6, 0.9)
    found = entanglement._measure("linear", rhos, 0.5, 0, 1, 20_000, 8, 1)
    separate = torch.tensor([w == "separate" for w in found.world])
    want = entanglement.predicted_leak(torch.tensor(rhos), 0.5)
    # one sd of the leak is about 1 / sqrt(20,000) = .007
    torch.testing.assert_close(found.observed[separate], want, rtol=0, atol=0.03)
    assert (found.intervened[separate] < 0.03).all()
    merged = torch.full((3,), 0.75, dtype=torch.float64)
    torch.testing.assert_close(found.observed[~separate], merged, rtol=0, atol=1e-3)
    torch.testing.assert_close(found.intervened[~separate], merged, rtol=0, atol=1e-3)
    assert found.accuracy(found.low)[0] == 1


def test_the_ten_lines_for_your_own_model_run():
    notebook = json.loads((config.ROOT / "notebooks" / "51_tabular.ipynb").read_text())
    last = "".join(notebook["cells"][-1]["source"])
    block = re.search(r"```python\n(.*?)```", last, re.DOTALL)
    assert block is not None
    assert len(block[1].strip().split("\n")) <= 12
    names: dict[str, object] = {}
    with redirect_stdout(StringIO()):
        exec(block[1], names)
    edit, target = names["edit"], names["concept"].quantile(0.9)
    assert isinstance(names["model"], models.MLP)
    assert edit.delta.shape == (5, 6)
    assert (edit.probe_after >= target - 1e-2)[edit.converged].all()
