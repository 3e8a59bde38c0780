"""Truth of data attribution: exact subsets, seeds of their own, one entry a stack, a manifest."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lib import training
from lib.attribution import truth
from lib.attribution.brittleness import data_support, is_flipped, margins_without
from lib.attribution.settings import digits_cnn, digits_mlp
from lib.attribution.subsets import membership, sample_subsets
from lib.data.base import DamagedData, Split
from lib.training import Recipe

N, T = 60, 7


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def setting() -> truth.Setting:
    whole = digits_mlp()
    return dataclasses.replace(
        whole,
        spec={"widths": (64, 8, 10)},
        recipe=Recipe(epochs=2, batch_size=10, lr=0.1),
        train=Split(whole.train.x[:N], whole.train.y[:N]),
        targets=Split(whole.targets.x[:T], whole.targets.y[:T]),
        stack=2,
    )


def halved(x: Tensor) -> Tensor:
    return x / 2


def test_subsets_have_the_exact_size_and_do_not_depend_on_how_many_are_drawn():
    subsets = sample_subsets(50, 40, 0.3, seed=1)
    assert subsets.shape == (40, 15)
    assert all(len(set(row)) == 15 and row == sorted(row) for row in subsets.tolist())
    assert torch.equal(subsets[:5], sample_subsets(50, 5, 0.3, seed=1))
    assert not torch.equal(subsets[:5], sample_subsets(50, 5, 0.3, seed=2))


def test_every_row_is_drawn_equally_often():
    shares = membership(sample_subsets(20, 4000, 0.25, seed=0), 20).mean(0)
    assert (shares - 0.25).abs().max() < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_membership_marks_the_rows_of_a_subset():
    assert membership(torch.tensor([[0, 2], [1, 3]]), 4).tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]


def test_a_stack_gives_what_networks_trained_alone_give(setting: truth.Setting):
    subsets = sample_subsets(N, 4, 0.5, seed=0)
    alone = dataclasses.replace(setting, stack=1)
    a, b = (truth.subset_outputs(s, subsets, repeats=2, seed=3) for s in (setting, alone))
    assert a.shape == (4, 2, T)
    assert a.dtype == torch.float32
    assert_close(a, b, atol=1e-4, rtol=0)  # two epochs in single precision


def test_an_output_is_the_margin_of_a_network_trained_on_the_subset(setting: truth.Setting):
    short = dataclasses.replace(setting, recipe=Recipe(epochs=60, batch_size=10, lr=0.1))
    rows = (short.train.y < 5).nonzero()[:, 0][None]  # half of the classes never seen
    outputs = truth.subset_outputs(short, rows, seed=0)[0, 0]
    assert (outputs[short.targets.y >= 5] < 0).all()
    assert outputs[short.targets.y < 5].mean() > 0


def test_preparing_inputs_is_the_same_alone_and_in_a_stack(setting: truth.Setting):
    prepared = dataclasses.replace(setting, prepare=halved)
    by_hand = dataclasses.replace(
        setting,
        train=Split(setting.train.x / 2, setting.train.y),
        targets=Split(setting.targets.x / 2, setting.targets.y),
    )
    subsets = sample_subsets(N, 2, 0.5, seed=0)
    wanted = truth.subset_outputs(by_hand, subsets)
    assert_close(truth.subset_outputs(prepared, subsets), wanted)
    one_by_one = dataclasses.replace(prepared, stack=1)
    assert_close(truth.subset_outputs(one_by_one, subsets), wanted, atol=1e-4, rtol=0)


def test_more_subsets_and_repeats_begin_with_those_of_fewer(setting: truth.Setting):
    few = truth.measure(setting, 4, repeats=1, seed=5)
    more = truth.measure(setting, 6, repeats=2, seed=5)
    assert torch.equal(more.subsets[:4], few.subsets)
    assert torch.equal(more.outputs[:4, :1], few.outputs)
    assert not torch.equal(more.outputs[:, 0], more.outputs[:, 1])  # another seed
    assert_close(more.mean, (more.outputs[:, 0] + more.outputs[:, 1]) / 2)


def test_a_run_that_was_killed_trains_only_what_is_missing(setting: truth.Setting, cache_dir: Path):
    first = truth.measure(setting, 6, seed=0)
    entries = sorted(cache_dir.glob("*.safetensors"), key=os.path.getmtime)
    assert len(entries) == 3
    entries[1].unlink()
    kept = {path: path.stat().st_mtime_ns for path in (entries[0], entries[2])}
    again = truth.measure(setting, 6, seed=0)
    assert torch.equal(first.outputs, again.outputs)
    assert entries[1].is_file()
    assert kept == {path: path.stat().st_mtime_ns for path in kept}


def test_another_row_of_data_is_another_entry(setting: truth.Setting):
    changed = setting.train.x.clone()
    changed[0] += 1
    other = dataclasses.replace(setting, train=Split(changed, setting.train.y))
    subsets = torch.arange(N // 2)[None]
    a, b = (truth.subset_outputs(s, subsets) for s in (setting, other))
    assert not torch.equal(a, b)


def test_truth_is_the_same_after_saving(setting: truth.Setting, tmp_path: Path):
    found = truth.measure(setting, 4, repeats=2)
    found.save(tmp_path / "truth")
    back = truth.Truth.load(tmp_path / "truth")
    assert torch.equal(back.subsets, found.subsets)
    assert torch.equal(back.outputs, found.outputs)
    assert back.manifest["data_sha256"] == setting.data_hash
    for fact in ("seed", "versions", "recipe", "wall_seconds", "cpu_seconds", "subset_size"):
        assert fact in back.manifest


def test_truth_beside_another_manifest_is_refused(setting: truth.Setting, tmp_path: Path):
    truth.measure(setting, 4).save(tmp_path)
    manifest = json.loads((tmp_path / "truth.json").read_text())
    (tmp_path / "truth.json").write_text(json.dumps(manifest | {"sha256": "0" * 64}))
    with pytest.raises(DamagedData, match="measure again"):
        truth.Truth.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"truth\.json"):
        truth.Truth.load(tmp_path / "elsewhere")


def test_checkpoints_begin_with_those_of_fewer_and_know_their_share(setting: truth.Setting):
    half = truth.checkpoints(setting, 3)
    again = truth.checkpoints(setting, 2)
    for a, b in zip(half, again, strict=False):
        assert_close(a.out.weight, b.out.weight)
    whole = truth.checkpoints(setting, 3, share=1.0)
    assert not torch.equal(half[0].out.weight, half[1].out.weight)
    assert not torch.equal(half[0].out.weight, whole[0].out.weight)
    assert not half[0].training
    assert all(p.requires_grad for p in half[0].parameters())


def test_checkpoints_alone_are_those_of_a_stack(setting: truth.Setting):
    stacked = truth.checkpoints(setting, 2)
    alone = truth.checkpoints(dataclasses.replace(setting, stack=1), 2)
    for a, b in zip(stacked, alone, strict=True):
        assert_close(a.out.weight, b.out.weight, atol=1e-4, rtol=0)


def test_digits_settings_are_those_of_the_specification():
    setting = digits_mlp()
    assert len(setting.train) == 1000
    assert len(setting.targets) == 200
    assert setting.spec == {"widths": (64, 64, 10)}
    assert setting.recipe == Recipe(30, 50, 0.1, "sgd", 0.9, 5e-4, "linear")
    assert digits_cnn().train.x.shape == (1000, 1, 8, 8)
    assert torch.equal(digits_cnn().targets.y, setting.targets.y)


def test_removal_trains_without_the_rows_that_score_highest(setting: truth.Setting):
    scores = torch.zeros(N, 2)
    scores[[3, 5], 0] = 1.0
    scores[[7, 9], 1] = 2.0
    margins = margins_without(setting, scores, [4, 6], [2], repeats=2, seed=1)
    left = torch.stack(
        [torch.tensor([i for i in range(N) if i not in x]) for x in ((3, 5), (7, 9))]
    )
    outputs = truth.subset_outputs(setting, left, repeats=2, seed=1)
    assert torch.equal(margins[0], torch.stack([outputs[0, :, 4], outputs[1, :, 6]]))


def test_data_support_interpolates_between_the_last_right_and_the_first_wrong():
    means = torch.tensor([[2.0, 4.0, -1.0], [-2.0, 3.0, -3.0]])  # at k = 10 and 20
    margins = torch.stack([means - 0.5, means + 0.5], -1)
    before = torch.tensor([3.0, 5.0, 1.0])
    assert is_flipped(margins).tolist() == [[False, False, True], [True, False, True]]
    assert data_support(margins, before, [10, 20]).tolist() == [15.0, torch.inf, 5.0]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"m": 0}, "at least|m >= 1"),
        ({"m": 3, "alpha": 1.0}, "inside"),
        ({"m": 3, "alpha": 0.001}, "inside"),
        ({"m": 3, "repeats": 0}, "repeats"),
    ],
)
def test_impossible_sizes_are_refused(
    setting: truth.Setting, wrong: dict[str, float], sentence: str
):
    with pytest.raises(ValueError, match=sentence):
        truth.measure(setting, **wrong)


@pytest.mark.parametrize(
    ("subsets", "sentence"),
    [
        (torch.tensor([[0, 0, 1]]), "twice"),
        (torch.tensor([[2, 1]]), "not sorted"),
        (torch.tensor([[0, N]]), f"0..{N}"),
        (torch.tensor([0, 1]), "unequal size"),
        (torch.tensor([[0.0, 1.0]]), "int64"),
        ([torch.tensor([0]), torch.tensor([0, 1])], "unequal size"),
    ],
)
def test_what_is_no_list_of_subsets_is_refused(
    setting: truth.Setting, subsets: Tensor, sentence: str
):
    with pytest.raises(ValueError, match=sentence):
        truth.subset_outputs(setting, subsets)


def test_a_training_that_diverges_is_named(setting: truth.Setting):
    wild = dataclasses.replace(setting, recipe=Recipe(epochs=3, batch_size=10, lr=1e30))
    with pytest.raises(RuntimeError, match=r"subsets 0 to 1, repeat 0.*lower the lr"):
        truth.measure(wild, 2)


def test_impossible_checkpoints_are_refused(setting: truth.Setting):
    for n_models, share in ((0, 0.5), (2, 0.0), (2, 1.5)):
        with pytest.raises(ValueError, match="share in"):
            truth.checkpoints(setting, n_models, share=share)


def test_a_checkpoint_is_a_trained_network(setting: truth.Setting):
    longer = dataclasses.replace(setting, recipe=Recipe(epochs=40, batch_size=10, lr=0.1))
    model = truth.checkpoints(longer, 1, share=1.0)[0]
    assert training.accuracy(model, setting.train.x, setting.train.y) > 0.9
