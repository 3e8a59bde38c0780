"""The document's own networks from tiny folders; a stand-in plays the package transformers."""

from __future__ import annotations

import csv
import gzip
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from lib.config import Run
from lib.data import imagenet
from lib.data.base import DamagedData, MissingData
from lib.npeff import testbeds, testbeds_paper

NAMES = ("Contradiction", "Entailment", "Neutral")  # in an order of the network's own


class TinyBert(nn.Module):
    """Takes what BERT takes; the second sentence's first token says the class."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(id2label=dict(enumerate(NAMES)))
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor):
        first = (input_ids * attention_mask * token_type_ids).amax(1)
        return SimpleNamespace(logits=self.scale * nn.functional.one_hot(first, 3).float())


def tokenise(first: list[str], second: list[str], *, max_length: int, **_: object) -> dict:
    ids = torch.zeros(len(first), max_length, dtype=torch.int64)
    ids[:, 1] = torch.tensor([int(word) for word in second])
    sides = torch.zeros_like(ids)
    sides[:, 1] = 1
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": sides}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    auto = {
        "AutoModelForSequenceClassification": SimpleNamespace(
            from_pretrained=lambda at, local_files_only: TinyBert()
        ),
        "AutoTokenizer": SimpleNamespace(from_pretrained=lambda at, local_files_only: tokenise),
    }
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace(**auto))
    return SimpleNamespace(data_root=tmp_path, device="cpu", seed=0)  # type: ignore[return-value]


def write_pairs(root: Path, rows: list[tuple[str, str, str]], folder: str = "bert_mnli") -> None:
    (root / folder).mkdir(exist_ok=True)
    (root / folder / "config.json").write_text("{}")
    with gzip.open(root / folder / testbeds_paper.PAIRS, "wt", encoding="utf8", newline="") as file:
        csv.writer(file).writerows([("sentence1", "sentence2", "label"), *rows])


def test_labels_are_read_by_name_in_the_networks_order(run: Run, tmp_path: Path):
    write_pairs(tmp_path, [("a", str(k % 3), NAMES[k % 3].lower()) for k in range(12)])
    bed = testbeds.load("bert-mnli", run, n_fit=6, n_held_out=4)
    assert bed.accuracy == 1
    assert bed.classes == tuple(name.lower() for name in NAMES)
    assert bed.fit.x.shape == (6, 3, testbeds_paper.LENGTH)
    assert bed.held_out.text[0] == ("a", "0")
    assert bed.held_out.y.tolist() == [0, 1, 2, 0]
    assert not bed.model.training
    assert str(tmp_path) not in str(bed.provenance)


def test_bert_says_what_is_missing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(MissingData, match=r"wanted bert_qqp/config\.json"):
        testbeds.load("bert-qqp", run, n_fit=1, n_held_out=1)
    write_pairs(tmp_path, [("a", "0", "contradiction"), ("a", "1", "maybe")])
    with pytest.raises(DamagedData, match="row 1: wanted sentence1, sentence2 and a label of con"):
        testbeds.load("bert-mnli", run, n_fit=1, n_held_out=1)
    write_pairs(tmp_path, [("a", "0", "contradiction")])
    with pytest.raises(ValueError, match=r"want 2 pairs, pairs\.csv\.gz has 1"):
        testbeds.load("bert-mnli", run, n_fit=1, n_held_out=1)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match="pip install transformers"):
        testbeds.load("bert-mnli", run, n_fit=1, n_held_out=1)


def colour(root: Path, name: str, k: int, shade: tuple[int, int, int]) -> None:
    folder = root / imagenet.FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (300 + 20 * k, 260), shade).save(folder / f"{k}.png")


def two_classes() -> nn.Module:
    """Red above blue, by the mean of the channels."""
    made = nn.Sequential()
    made.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    made.add_module("flatten", nn.Flatten())
    made.add_module("fc", nn.Linear(3, 2))
    return made


def test_images_come_from_folders_in_the_order_of_their_names(run: Run, tmp_path: Path):
    for k in range(3):
        colour(tmp_path, "n01", k, (255, 0, 0))
        colour(tmp_path, "n02", k, (0, 0, 255))
    model = two_classes()
    nn.init.zeros_(model.fc.bias)
    model.fc.weight.data = torch.tensor([[1.0, 0, -1], [-1.0, 0, 1]])
    (tmp_path / imagenet.RESNET50).parent.mkdir()
    torch.save(model.state_dict(), tmp_path / imagenet.RESNET50)
    bed = testbeds_paper.resnet50_images(run, 4, 2, n_classes=2, build=two_classes)
    assert bed.accuracy == 1
    assert bed.classes == ("n01", "n02")
    assert bed.fit.x.shape == (4, 3, 224, 224)
    assert bed.eps == testbeds_paper.CLASS_THRESHOLD
    assert not bed.drawn
    again = imagenet.load_folder(tmp_path, n=6, n_classes=2)
    assert sorted(again.y.tolist()) == [0, 0, 0, 1, 1, 1]
    assert set(np.unique(again.x.numpy())) == {0, 255}


def test_folders_that_are_no_imagenet_are_refused(tmp_path: Path):
    with pytest.raises(MissingData, match=r"imagenet/val with 1,000 folders \(there are 0\)"):
        imagenet.load_folder(tmp_path, n=1)
    colour(tmp_path, "n01", 0, (9, 9, 9))
    with pytest.raises(ValueError, match="want 1 to 1 images"):
        imagenet.load_folder(tmp_path, n=2, n_classes=1)
    (tmp_path / imagenet.FOLDER / "n01" / "0.png").write_bytes(b"no image")
    with pytest.raises(DamagedData, match=r"0\.png is no image"):
        imagenet.load_folder(tmp_path, n=1, n_classes=1)
    with pytest.raises(MissingData, match=r"wanted imagenet_resnet50/resnet50\.pth"):
        imagenet.load_resnet50(tmp_path)
    (tmp_path / imagenet.RESNET50).parent.mkdir()
    torch.save({"other": torch.zeros(1)}, tmp_path / imagenet.RESNET50)
    with pytest.raises(DamagedData, match="holds no weights of a Sequential"):
        imagenet.load_resnet50(tmp_path, build=two_classes)
