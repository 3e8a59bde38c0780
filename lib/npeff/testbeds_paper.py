"""The document's own networks, from folders below DATA_ROOT that a reader provides.

| testbed | folder | what it holds |
| --- | --- | --- |
| bert-mnli | `bert_mnli` | BERT fine-tuned on MNLI, `pairs.csv.gz` of SNLI |
| bert-qqp | `bert_qqp` | BERT fine-tuned on QQP, `pairs.csv.gz` of QQP |
| resnet50 | `imagenet_resnet50`, `imagenet/val` | see `lib.data.imagenet` |

A folder of BERT is what `save_pretrained` of the package transformers writes, network and
tokenizer, and a table of pairs with the columns sentence1, sentence2 and label. Labels are the
names of the network's classes (`id2label`), in the network's own order: data and network may
number their labels differently. That package is needed for these two testbeds alone.

Public names: `bert_pairs`, `PairNetwork`, `resnet50_images`, `CLASS_THRESHOLD`.

Source: document 3, section 3.1; specification section 7 (sizes) and 1.3 (threshold).
"""

from __future__ import annotations

import csv
import gzip
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.config import Run
from lib.data import imagenet
from lib.data.base import DamagedData, Provenance, missing, sha256_of
from lib.npeff.testbed import Examples, Testbed, assemble

PAIRS = "pairs.csv.gz"
LENGTH = 128  # tokens of a pair
CLASS_THRESHOLD = 3e-3  # of the document's ImageNet PEFs


class PairNetwork(nn.Module):
    """A sequence classifier of the package transformers as a function of one tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Tokens, mask and sides int64 `[n, 3, t]` to logits `[n, C]`."""
        tokens, mask, sides = x.unbind(1)
        return self.network(input_ids=tokens, attention_mask=mask, token_type_ids=sides).logits


def bert_pairs(run: Run, n_fit: int, n_held_out: int, *, folder: str) -> Testbed:
    """A fine-tuned BERT on pairs of sentences, in the order of the table.

    Raises:
        MissingData: no such folder, or no table in it.
        DamagedData: a label that the network does not have.
        ModuleNotFoundError: the package transformers is not installed.
    """
    at = run.data_root / folder
    for name in ("config.json", PAIRS):
        if not (at / name).is_file():
            raise missing(folder, run.data_root, [f"{folder}/{name}"], public=False)
    try:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{folder} is a network of the package transformers; pip install transformers"
        ) from error
    network = AutoModelForSequenceClassification.from_pretrained(at, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(at, local_files_only=True)
    names = network.config.id2label
    classes = tuple(str(names[k]).lower() for k in range(len(names)))
    pairs, y = _read(at / PAIRS, classes, n_fit + n_held_out)
    coded = tokenizer(
        [a for a, _ in pairs],
        [b for _, b in pairs],
        padding="max_length",
        truncation=True,
        max_length=LENGTH,
        return_tensors="pt",
        return_token_type_ids=True,
    )
    parts = (coded["input_ids"], coded["attention_mask"], coded["token_type_ids"])
    x = torch.stack(parts, 1).to(run.device)
    model = PairNetwork(network).eval().to(run.device)
    provenance = Provenance(
        folder, "a folder of the reader's", "the reader's", sha256_of(x, y), len(y)
    )
    both = Examples(x, y, y, pairs)
    return assemble(folder, model, both, n_fit, classes, classes, "network", provenance)


def _read(
    path: Path, classes: tuple[str, ...], n: int
) -> tuple[tuple[tuple[str, str], ...], Tensor]:
    """The first n pairs of a table, and their labels as numbers."""
    pairs: list[tuple[str, str]] = []
    labels: list[int] = []
    with gzip.open(path, "rt", encoding="utf8", newline="") as lines:
        for i, row in enumerate(csv.DictReader(lines)):
            if len(labels) == n:
                break
            label = str(row.get("label")).lower()
            if label not in classes or None in (row.get("sentence1"), row.get("sentence2")):
                raise DamagedData(
                    f"{path.name}, row {i}: wanted sentence1, sentence2 and a label of "
                    f"{', '.join(classes)}, got {row}"
                )
            pairs.append((row["sentence1"], row["sentence2"]))
            labels.append(classes.index(label))
    if len(labels) < n:
        raise ValueError(f"want {n:,} pairs, {path.name} has {len(labels):,}; ask for fewer")
    return tuple(pairs), torch.tensor(labels)


def resnet50_images(
    run: Run,
    n_fit: int,
    n_held_out: int,
    *,
    n_classes: int = 1000,
    build: Callable[[], nn.Module] | None = None,
) -> Testbed:
    """A ResNet-50 on random images of ImageNet's validation part.

    The document takes training images to factorise and validation images to read; here both are
    of the validation part.
    """
    model = imagenet.load_resnet50(run.data_root, build=build).to(run.device)
    whole = imagenet.load_folder(
        run.data_root, n=n_fit + n_held_out, n_classes=n_classes, seed=run.seed
    )
    x = imagenet.standardise(whole.x).to(run.device)
    both = Examples(x, whole.y, whole.y)
    return assemble(
        "ImageNet", model, both, n_fit, whole.names, whole.names, "avgpool", whole.provenance,
        eps=CLASS_THRESHOLD,
    )  # fmt: skip
