"""Settings of attribution for language: a small transformer on pairs of sentences.

The lecture's second panel fine-tunes BERT on QNLI; what a processor can retrain often enough is a
one-block transformer from random weights. The grammar's rules are known, so its attributions can
be read against the truth; SNLI's cannot, and the network is far weaker there.

Public names: `grammar_transformer`, `snli_transformer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from lib.attribution.truth import Setting
from lib.data import inference, nlp
from lib.data.base import Split
from lib.training import Recipe

N_TARGETS = 200
RECIPE = Recipe(15, 50, 0.01, optimizer="adam", schedule="triangular")
STACK = 10  # larger stacks are no faster (measured), and a killed run loses less


def grammar_transformer(n_train: int = 1000) -> Setting:
    """GRAMMAR: pairs of the inference grammar; a network of 10,083 weights; 200 other pairs."""
    data = inference.load(0, n_train=n_train)
    spec = {"n_words": len(data.vocabulary), "length": inference.LENGTH, "n_blocks": 1}
    return _setting("grammar-transformer", spec, data.train, data.test)


def snli_transformer(root: Path, n_train: int = 2000) -> Setting:
    """SNLI-mini: the first of SNLI's (shuffled) training pairs, and 200 pairs of other premises.

    Args:
        root: folder that holds `nlp/snli_validation_test.csv.gz`.
        n_train: pairs to train on, at most 15,000.

    Raises:
        MissingData: the file is not there.
    """
    data = nlp.load_snli(root, n_words=1000)
    spec = {"n_words": len(data.vocabulary), "length": data.train.x.shape[1], "n_blocks": 1}
    train = Split(data.train.x[:n_train], data.train.y[:n_train])
    return _setting("snli-transformer", spec, train, data.test)


def _setting(name: str, spec: Mapping[str, object], train: Split, test: Split) -> Setting:
    targets = Split(test.x[:N_TARGETS], test.y[:N_TARGETS])
    return Setting(name, "transformer", spec, RECIPE, train, targets, stack=STACK)
