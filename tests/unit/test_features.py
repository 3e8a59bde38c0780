"""Activations of named layers against a forward pass written out, and the model left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from lib import features, models


@pytest.fixture
def cnn() -> nn.Module:
    return models.build("cnn", torch.Generator().manual_seed(0)).double()


@pytest.fixture
def x() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 1, 8, 8, generator=generator, dtype=torch.float64)


def by_hand(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The small CNN, operation by operation."""
    p = model.state_dict()
    found = {}
    for i in (1, 2):
        h = F.conv2d(x, p[f"conv{i}.0.weight"], p[f"conv{i}.0.bias"], padding=1)
        groups = h.unflatten(1, (2, -1))
        mean = groups.mean(dim=(2, 3, 4), keepdim=True)
        var = groups.var(dim=(2, 3, 4), keepdim=True, correction=0)
        h = ((groups - mean) / (var + 1e-5).sqrt()).flatten(1, 2)
        h = h * p[f"conv{i}.1.weight"][:, None, None] + p[f"conv{i}.1.bias"][:, None, None]
        found[f"conv{i}"] = h.clamp_min(0)
        x = found[f"conv{i}"].unflatten(2, (-1, 2)).unflatten(4, (-1, 2)).amax(dim=(3, 5))
    found["out"] = x.flatten(1) @ p["out.weight"].T + p["out.bias"]
    return found


def test_activations_equal_a_forward_pass_by_hand(cnn: nn.Module, x: Tensor):
    wanted = by_hand(cnn, x)
    got = features.activations(cnn, x, ["conv1", "conv2", "out"], pool=False)
    assert list(got) == ["conv1", "conv2", "out"]
    for name, value in wanted.items():
        assert_close(got[name], value)
        assert not got[name].requires_grad
    pooled = features.activations(cnn, x, ["conv2", "out"])
    assert_close(pooled["conv2"], wanted["conv2"].mean(dim=(2, 3)))
    assert_close(pooled["out"], wanted["out"])


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 100])
def test_the_result_does_not_depend_on_the_chunk(cnn: nn.Module, x: Tensor, chunk: int):
    whole = features.activations(cnn, x, ["conv1", "out"])
    parts = features.activations(cnn, x, ["conv1", "out"], chunk=chunk)
    for name in whole:
        assert_close(parts[name], whole[name])


def test_half_precision_is_a_rounding_of_what_is_stored_only(cnn: nn.Module, x: Tensor):
    full = features.activations(cnn, x, ["conv2", "out"])
    half = features.activations(cnn, x, ["conv2", "out"], dtype=torch.float16)
    for name in full:
        assert half[name].dtype == torch.float16
        assert_close(half[name], full[name].half(), rtol=0, atol=0)


def test_inputs_are_prepared_chunk_by_chunk(cnn: nn.Module, x: Tensor):
    pixels = (x * 40 + 100).clamp(0, 255).byte()

    def prepare(rows: Tensor) -> Tensor:
        assert len(rows) <= 3
        return rows.double() / 255

    got = features.activations(cnn, pixels, ["out"], prepare=prepare, chunk=3)["out"]
    assert_close(got, by_hand(cnn, pixels.double() / 255)["out"])


def test_progress_sees_each_chunk_once(cnn: nn.Module, x: Tensor):
    seen: list[int] = []

    def progress(starts: range):
        for start in starts:
            seen.append(start)
            yield start

    features.activations(cnn, x, ["out"], chunk=3, progress=progress)
    assert seen == [0, 3, 6]


def mixed() -> nn.Module:
    """Dropout and batch norm that would show if they ran in training mode; modes unequal."""
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model[1].eval()
    return model


def test_reading_is_in_evaluation_mode_and_every_modules_own_mode_returns():
    model, x = mixed(), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    modes = [m.training for m in model.modules()]
    assert modes == [True, True, False, True, True]
    statistics = {k: v.clone() for k, v in model.state_dict().items()}
    first = features.activations(model, x, ["2", "3"])
    again = features.activations(model, x, ["2", "3"], chunk=2)
    assert_close(first["2"], again["2"])  # nothing dropped, nothing normed by the chunk
    assert_close(first["2"], model[1](model[0](x)).detach())
    assert [m.training for m in model.modules()] == modes
    for name, value in model.state_dict().items():
        assert_close(value, statistics[name])


class Branches(nn.Module):
    """One layer that is skipped, one that returns a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.skipped = nn.Linear(3, 3), nn.Linear(3, 3)
        self.pair = nn.GRU(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(self.used(x))[0]


FAULTS: dict[str, tuple[list[str], type[Exception], str]] = {
    "unknown": (["nope"], ValueError, "no layer nope in this model; it has used, skipped, pair"),
    "some unknown": (["used", "a", "b"], ValueError, "no layer a, b in this model"),
    "skipped": (["used", "skipped"], ValueError, "forward pass does not reach layer 'skipped'"),
    "tuple": (["pair"], TypeError, "layer 'pair' returns a tuple, want one tensor"),
    "none": ([], ValueError, "want at least one row and one layer, got 4 and 0"),
}


@pytest.mark.parametrize(("layers", "kind", "sentence"), FAULTS.values(), ids=FAULTS)
def test_layers_that_cannot_be_read_are_named_and_leave_no_trace(
    layers: list[str], kind: type[Exception], sentence: str
):
    model = Branches()
    model.used.eval()
    with pytest.raises(kind, match=sentence):
        features.activations(model, torch.zeros(4, 3), layers)
    assert not any(m._forward_hooks for m in model.modules())
    assert [m.training for m in model.modules()] == [True, False, True, True]


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="got 0 and 1"):
        features.activations(Branches(), torch.zeros(0, 3), ["used"])


def test_a_forward_pass_that_fails_leaves_no_hooks(cnn: nn.Module):
    with pytest.raises(RuntimeError):
        features.activations(cnn, torch.zeros(2, 3, 8, 8).double(), ["conv1"])  # 3 channels, not 1
    assert not any(m._forward_hooks for m in cnn.modules())
    assert all(m.training for m in cnn.modules())


def test_a_model_without_weights_is_read_where_the_inputs_are(x: Tensor):
    got = features.activations(nn.Sequential(nn.Flatten(), nn.Tanh()), x, ["1"])
    assert_close(got["1"], x.flatten(1).tanh())


def test_an_inplace_activation_does_not_overwrite_what_was_read() -> None:
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 8)
    model = torch.nn.Sequential(layer, torch.nn.ReLU(inplace=True), torch.nn.Linear(8, 1))
    x = torch.randn(6, 4)
    with torch.no_grad():
        wanted = layer(x)
    assert (wanted < 0).any()
    torch.testing.assert_close(features.activations(model, x, ["0"])["0"], wanted)
