"""Case studies on real data: counts on planted traces, and the whole path on tiny folders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch

from lib import cache, figures
from lib.data import cifar10
from lib.data.base import Expected, MissingData
from lib.monitoring import lottery_tables, real_cases, real_pairs, real_pictures, real_tickets
from lib.monitoring.activations import ConceptSet
from lib.monitoring.record import Record
from lib.monitoring.space import Space
from lib.profiles import SIZES
from lib.training.adversarial import Robustness
from tests.planted_traces import trace
from tests.real_folders import write_cifar10, write_concept_images, write_imagenet_sample

ARMS = ("standard", "robust")
WORDS = {"red": "color", "banded": "texture", "car": "object", "tree": "object", "skin": "part"}
SPACE = Space.of(ConceptSet(tuple(WORDS), tuple(WORDS.values())), torch.eye(len(WORDS)))


def pair() -> SimpleNamespace:
    """Ten units a layer: the robust arm has colours where the plain one has textures and cars."""
    words = {
        "standard": ["banded"] * 4 + ["car"] * 3 + ["red", "tree", "skin"],
        "robust": ["red"] * 7 + ["banded", "car", "tree"],
    }
    passes = {"standard": [1] * 10, "robust": [1] * 7 + [0] * 3}
    options = {"space": SPACE, "epochs": (0, 1)}
    traces = [
        trace(
            [["red"] * 10, words[arm]],
            [[0] * 10, passes[arm]],
            layer=layer,
            arm=arm,
            detector=name,
            **options,
        )
        for arm in ARMS
        for layer in real_cases.LAYERS
        for name in real_cases.DETECTORS
    ]
    images = torch.arange(100)
    measured = {
        "standard": Robustness(images < 70, images < 2),
        "robust": Robustness(images < 45, images < 25),
    }
    basis = SimpleNamespace(points=torch.zeros(5, 2), digest=SPACE.digest)
    record = Record(tuple(traces), SPACE, basis)
    at = SimpleNamespace(concepts=SPACE.concepts)
    return SimpleNamespace(at=at, record=record, chance=record, measured=measured, epochs=[0, 1])


def test_what_was_planted_is_counted() -> None:
    standard, robust = (real_pairs.counts_of(pair(), arm) for arm in ARMS)
    layers = {"layer1": 10, "layer2": 10, "layer3": 10}
    kinds = {"object": 12, "part": 3, "texture": 12, "color": 3, "classes": 3}
    assert {k: int(v.sum()) for k, v in standard.items()} == layers | kinds
    assert {k: int(v.sum()) for k, v in robust.items()} == {
        **dict.fromkeys(layers, 7),
        "object": 0,
        "part": 0,
        "texture": 0,
        "color": 21,
        "classes": 0,
    }


def test_claims_have_the_signs_that_they_name() -> None:
    found = real_pairs.claims_of([pair()], n_draws=50)
    assert {name: value for name, (value, _) in found.items()} == pytest.approx(
        {
            "P2-70": 0.25,
            "P2-71": 0.23,
            "P2-72": 0.3,
            "P2-73": -0.3,
            "P2-74": 18 / 30,
            "P2-75": 12 / 30,
            "P2-76": 0.3,
            "P2-77": 0.9,
        }
    )


def test_rows_hold_both_arms_the_null_and_the_document() -> None:
    rows = {row["units"]: row for row in real_pairs.pair_rows(pair())}
    assert rows["layer3"]["oracle"] == "10 (10) / 7 (7)"
    assert rows["layer3"]["document"] == "293 / 215 of 512"
    assert rows["colour words"]["of"] == 30
    assert rows['named "car"']["Network Dissection"] == "3 (3) / 0 (0)"


def test_without_sizes_nothing_is_read_and_nothing_is_claimed(tmp_path: Path) -> None:
    assert real_pairs.fetch_pairs((), tmp_path, seed=0) == []
    assert real_tickets.fetch_tickets((), tmp_path, seed=0) == []
    for module in (real_pairs, real_tickets):
        assert set(module.claims_of([]).values()) == {None}
        assert "`full`" in module.said([])


def test_full_alone_has_real_data() -> None:
    for name in ("23_lottery_ticket", "24_adversarial_training"):
        assert SIZES[name]["quick"]["real"] == ()
        assert len(SIZES[name]["full"]["real"]) == 1


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, real_cases.Against]:
    """A folder with a few images of each set, in true formats, and a cache of its own."""
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "sources", lambda code: {})  # most of the time, at this size
    root = tmp_path / "data"
    root.mkdir()
    write_concept_images(root, 14, side=64)
    write_imagenet_sample(root, 24, side=128)
    against = real_cases.Against(
        cifar=write_cifar10(root, 4, 2),
        concepts=Expected({}, train=(7, 7)),
        second=Expected({}, train=(1,) * 24),
    )
    return root, against


RECIPE = {"batch_size": 20, "lr": 0.05, "augment": "flip_crop"}
few = pytest.mark.filterwarnings("ignore:.*K = ")  # ten top images of a few dozen


@few
def test_a_pair_from_folders_to_figure(world: tuple[Path, real_cases.Against]) -> None:
    root, against = world
    size = {
        "n_train": 40,
        "n_test": 20,
        "recipe": {"epochs": 1, **RECIPE},
        "attack": {"n_steps": 1, "step": 4 / 255},
        "evaluation": {"n_steps": 2, "n_restarts": 1},
        "keep": (1,),
        "fewest": 5,
    }
    (found,) = real_pairs.fetch_pairs([size], root, seed=0, against=against)
    first, other = (found.checkpoints[arm] for arm in ARMS)
    assert all(first[0][k].equal(other[0][k]) for k in first[0])
    assert not first[1]["conv1.weight"].equal(other[1]["conv1.weight"])
    assert found.epochs == [0, 1]
    assert set(found.at.concepts.category()) == {"object", "part", "texture", "color"}
    assert set(found.second.space.concepts.category()) == {"color"}
    widths = [found.record.trace("oracle", x, "robust").label.shape for x in real_cases.LAYERS]
    assert widths == [(2, 16), (2, 32), (2, 64)]
    same = found.record.trace("oracle", "layer3", "standard")
    null = found.chance.trace("oracle", "layer3", "standard")
    assert not same.h.equal(null.h)
    claims = real_pairs.claims_of([found], n_draws=20)
    assert claims.pop("P2-76") is None  # no image shows a car
    assert all(-1 <= value <= 1 for value, _ in claims.values())
    assert len(real_pairs.pair_rows(found)) == 7
    assert [row["of"] for row in real_pairs.colour_rows(found)] == [16, 32, 64]
    rows = real_pairs.denominator_rows(found)
    assert [(row["network"], row["units"]) for row in rows[:4]] == [
        *(("standard", m) for m in (16, 32, 64)),
        ("robust", 16),
    ]
    assert "14 camvid" in real_pairs.said([found])
    figures.use_style()
    fig = real_pictures.pair_counts(found)
    plt.close(fig)
    assert len(fig.axes) == 6


@few
def test_tickets_from_folders_to_figure(world: tuple[Path, real_cases.Against]) -> None:
    root, against = world
    size = {
        "n_train": 40,
        "n_test": 20,
        "recipe": {"epochs": 2, **RECIPE},
        "rewinds": (0, 1),
        "n_stages": 2,
        "amount": 0.4,
        "n_random": 1,
        "n_batches": 1,
        "fewest": 5,
    }
    (found,) = real_tickets.fetch_tickets([size], root, seed=0, against=against)
    study = found.study
    assert study.left == pytest.approx([1.0, 0.6], abs=1e-4)
    assert study.trace("rewound", 0).label.shape == (2, 64)
    assert study.control("re-estimated random", "net_dissection").label.shape == (1, 64)
    rows = real_tickets.stage_rows(found)
    assert "null, epoch 1" in rows[1]
    assert len(lottery_tables.retention_rows(study)) == 2
    claims = real_tickets.claims_of([found], n_draws=20)
    assert claims["P2-81"] is None  # no arm rewinds to a late epoch
    assert claims["P2-84"] is None
    assert claims["P2-80"] is not None
    figures.use_style()
    fig = real_pictures.ticket_counts(found)
    plt.close(fig)
    assert len(fig.axes) == 3


def test_missing_images_are_named_before_anything_is_trained(
    world: tuple[Path, real_cases.Against], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, against = world
    monkeypatch.setattr(real_pairs, "train", lambda *a, **k: pytest.fail("trained"))
    size = {"n_train": 40, "n_test": 20, "fewest": 5}
    (root / "concept_images" / "camvid.npz").unlink()
    with pytest.raises(MissingData, match=r"camvid.npz.*set DATA_ROOT"):
        real_pairs.fetch_pairs([size], root, seed=0, against=against)
    (root / cifar10.JPEG).unlink()
    with pytest.raises(MissingData, match=r"CIFAR-10.*set DATA_ROOT"):
        real_pairs.fetch_pairs([size], root, seed=0, against=against)
    with pytest.raises(ValueError, match="1 to 40 training"):
        real_cases.task(41, 20, root, expected=write_cifar10(root, 4, 2))
