"""The networks that document 3's notebooks take apart, with what is known about their examples.

A testbed is a trained classifier with two sets of examples it was not trained on: one to factorise
(`fit`), one to read the components on (`held_out`), as in the paper. Where the data have known
rules (the inference grammar), every example says which rule made it: the truth that the paper did
not have.

Public names: `load`, `judged`, `Testbed`, `Examples`, `TESTBEDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import models
from lib.claims import Measured
from lib.config import Run
from lib.data import cifar10, digits, inference, nlp
from lib.data.base import Provenance, sha256_of
from lib.gradients import flat
from lib.probes.testbeds import fetch_cifar_network
from lib.training import Recipe, fetch_model, predict

RECIPES: Mapping[str, Recipe] = {
    "grammar": Recipe(15, 100, 0.005, optimizer="adam", schedule="triangular"),
    "snli": Recipe(6, 100, 0.003, optimizer="adam", schedule="triangular"),
    "digits": Recipe(20, 50, 0.01, optimizer="adam", schedule="triangular"),
    "cifar10-cnn": Recipe(5, 100, 0.005, optimizer="adam", schedule="triangular"),
}
LEAST_MARGIN = 0.1  # of accuracy above majority and hypothesis-only


@dataclass(frozen=True)
class Examples:
    """Inputs with labels and, where it is known, the rule or class that made each."""

    x: Tensor  # [n, ...]
    y: Tensor  # int64 [n]
    concept: Tensor  # int64 [n], index into the testbed's `concepts`
    text: tuple[tuple[str, str], ...] = ()  # premise and hypothesis, of pairs of sentences

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> Examples:
        """Some of the examples, in the order of `index`."""
        text = tuple(self.text[i] for i in index.tolist()) if self.text else ()
        return Examples(self.x[index], self.y[index], self.concept[index], text)


@dataclass(frozen=True)
class Testbed:
    """A trained network and what it is taken apart on."""

    name: str
    model: nn.Module
    fit: Examples
    held_out: Examples
    classes: tuple[str, ...]
    concepts: tuple[str, ...]  # rules of the grammar; classes where nothing finer is known
    layer: str  # whose activations stand for an example: the paper's CLS token or pooled features
    provenance: Provenance
    accuracy: float  # on `n_judged` examples of neither training nor `fit`
    baselines: Mapping[str, float]  # accuracy of what ignores the question: majority, half inputs
    n_judged: int | None = None  # None: the held-out ones
    block: tuple[str, ...] | None = None  # what Fishers are by; None is every parameter

    @property
    def has_rules(self) -> bool:
        """Whether something finer than the labels is known of every example."""
        return self.concepts != self.classes

    @property
    def drawn(self) -> bool:
        """Whether figures may show the inputs: images without a licence may not."""
        return not self.name.startswith("CIFAR")

    @property
    def margin(self) -> float:
        """Held-out accuracy above the best baseline."""
        return self.accuracy - max(self.baselines.values())

    @property
    def too_weak(self) -> bool:
        """Whether the network is hardly better than a baseline: claims about it are not judged."""
        return self.margin < LEAST_MARGIN

    def __str__(self) -> str:
        weak = "; MODEL TOO WEAK for claims" if self.too_weak else ""
        least = ", ".join(f"{name} {value:.3f}" for name, value in self.baselines.items())
        used = flat.size(flat.select(self.model, self.block))
        part = f", Fishers by {used:,} of them" if self.block else ""
        n = self.n_judged or len(self.held_out)
        return (
            f"{self.name}: {models.n_parameters(self.model):,} parameters{part}, accuracy "
            f"{self.accuracy:.3f} on {n:,} held-out examples ({least}){weak}"
        )


def load(
    name: str,
    run: Run,
    *,
    n_fit: int,
    n_held_out: int,
    n_train: int = 0,
    without: tuple[str, ...] = (),
) -> Testbed:
    """A testbed by name, its network trained once and cached.

    Args:
        name: of `TESTBEDS`.
        run: for the seed of the network and the folder of the data.
        n_fit, n_held_out: examples of each set, none of which the network was trained on.
        n_train: training examples of "grammar"; the others have a fixed number.
        without: rules of "grammar" that training leaves out (not the two sets of examples): what
            they would have corrected becomes a flawed heuristic.

    Raises:
        ValueError: an unknown name, or more examples than there are.
        MissingData: real data that are not there.
    """
    if name not in TESTBEDS:
        raise ValueError(f"want a testbed of {', '.join(TESTBEDS)}, got {name!r}")
    if min(n_fit, n_held_out) < 1:
        raise ValueError(f"want n_fit and n_held_out >= 1, got {n_fit} and {n_held_out}")
    if name == "grammar":
        return grammar(run.seed, n_train, n_fit, n_held_out, without)
    if without or n_train:
        raise ValueError("only the grammar has rules to leave out and a size to choose")
    return TESTBEDS[name](run, n_fit, n_held_out)


def judged(
    measured: Mapping[str, Measured], bed: Testbed, *, beside: Sequence[str] = ()
) -> dict[str, Measured]:
    """The measurements, without those of a network that is too weak to be judged.

    Args:
        beside: claims that are not about this network.
    """
    return {
        name: value if name in beside or not bed.too_weak else None
        for name, value in measured.items()
    }


def grammar(
    seed: int, n_train: int, n_fit: int, n_held_out: int, without: tuple[str, ...] = ()
) -> Testbed:
    """A transformer of 18,627 weights on the inference grammar; concepts are its 13 rules."""
    whole = inference.load(seed, n_train=n_train, n_test=n_fit + n_held_out)
    left_out = torch.tensor([inference.RULES.index(rule) for rule in without])
    keep = ~torch.isin(whole.train.rule, left_out)
    x, y = whole.train.x[keep], whole.train.y[keep]
    spec = {"n_words": len(whole.vocabulary), "length": inference.LENGTH, "n_blocks": 2}
    model = fetch_model(
        "transformer",
        spec,
        lambda: (x, y),
        RECIPES["grammar"],
        seed=seed,
        data_hash=sha256_of(x, y),
    )
    text = tuple(whole.vocabulary.decode(row) for row in whole.test.x)
    both = Examples(whole.test.x, whole.test.y, whole.test.rule, text)
    return _testbed(
        "inference grammar",
        model,
        both,
        n_fit,
        inference.LABELS,
        inference.RULES,
        "norm",
        whole.provenance,
        **{"hypothesis only": hypothesis_only(x, y, both.x[n_fit:], both.y[n_fit:])},
    )


def digit_images(run: Run, n_fit: int, n_held_out: int) -> Testbed:
    """A small convolutional network on the 8x8 digits."""
    whole = digits.load(run.seed)
    model = fetch_model(
        "cnn",
        {},
        lambda: (whole.train.x.view(-1, 1, 8, 8), whole.train.y),
        RECIPES["digits"],
        seed=run.seed,
        data_hash=whole.provenance.sha256,
    )
    rest = torch.cat([whole.probe.x, whole.test.x]).view(-1, 1, 8, 8)
    x, y = _first(rest, n_fit + n_held_out), torch.cat([whole.probe.y, whole.test.y])
    both = Examples(x, y[: len(x)], y[: len(x)])
    return _testbed(
        "digits", model, both, n_fit, whole.names, whole.names, "flatten", whole.provenance
    )


def small_cifar_images(run: Run, n_fit: int, n_held_out: int) -> Testbed:
    """A convolutional network of three layers on test images of CIFAR-10, at a processor's size."""
    whole = cifar10.load(run.data_root)
    model = fetch_model(
        "cnn",
        {"in_channels": 3, "size": 32, "channels": (16, 32, 64)},
        lambda: (whole.train.x, whole.train.y),
        RECIPES["cifar10-cnn"],
        seed=run.seed,
        data_hash=whole.provenance.sha256,
        prepare=cifar10.standardise,
        device=run.device,
    )
    x = cifar10.standardise(_first(whole.test.x, n_fit + n_held_out))
    both = Examples(x.to(run.device), whole.test.y[: len(x)], whole.test.y[: len(x)])
    return _testbed(
        "CIFAR-10", model, both, n_fit, whole.names, whole.names, "flatten", whole.provenance
    )


def cifar_images(run: Run, n_fit: int, n_held_out: int) -> Testbed:
    """Notebook 11's ResNet-20 on test images of CIFAR-10."""
    whole = cifar10.load(run.data_root)
    recipe = Recipe(
        4,
        128,
        0.1,
        weight_decay=5e-4,
        schedule="triangular",
        augment="flip_crop",
        precision="bfloat16",
    )
    state = fetch_cifar_network("resnet20", recipe, whole.provenance.sha256, run.device, run.seed)
    model = models.build("resnet20", torch.Generator(), run.device)
    model.load_state_dict(state)
    x = cifar10.standardise(_first(whole.test.x, n_fit + n_held_out))
    both = Examples(x.to(run.device), whole.test.y[: len(x)], whole.test.y[: len(x)])
    return _testbed(
        "CIFAR-10", model, both, n_fit, whole.names, whole.names, "layer3", whole.provenance
    )


def published_cifar_images(run: Run, n_fit: int, n_held_out: int) -> Testbed:
    """A published ResNet-20 on the CIFAR-10 images whose lossless pixels are at hand.

    They are training images: the accuracy is no test, which the name says.
    """
    whole = cifar10.load_lossless(run.data_root)
    model = cifar10.load_network(run.data_root).to(run.device)
    x = cifar10.published_inputs(_first(whole.x, n_fit + n_held_out))
    both = Examples(x.to(run.device), whole.y[: len(x)], whole.y[: len(x)])
    name = "CIFAR-10, training images of a published ResNet-20"
    return _testbed(name, model, both, n_fit, whole.names, whole.names, "layer3", whole.provenance)


def snli_pairs(run: Run, n_fit: int, n_held_out: int) -> Testbed:
    """A network that aligns sentences, on SNLI's validation and test pairs, split by premise.

    There are too few of them for a transformer, which does not get beyond the hypothesis alone.
    Counterfactual pairs are added to the training rows, forms of a word share a number. Fishers
    leave the word embeddings out, nine tenths of the weights: an example touches few of them.
    """
    whole = nlp.load_snli(run.data_root, n_words=6000, length=36, revised=True, form=nlp.stems_of)
    x, y = whole.train.x, whole.train.y
    model = fetch_model(
        "alignment",
        {"n_words": len(whole.vocabulary)},
        lambda: (x, y),
        RECIPES["snli"],
        seed=run.seed,
        data_hash=sha256_of(x, y),
    )
    # rows of a premise lie side by side
    order = torch.randperm(len(whole.test), generator=torch.Generator().manual_seed(0))
    every = Examples(whole.test.x, whole.test.y, whole.test.y, whole.test.text).take(order)
    both = every.take(torch.arange(len(_first(every.x, n_fit + n_held_out))))
    n_own = len(x) - sum(nlp.REVISED_EXPECTED.train)  # the counterfactual pairs come last
    test = every.x[n_fit:], every.y[n_fit:]
    return _testbed(
        "SNLI",
        model,
        both,
        n_fit,
        whole.names,
        whole.names,
        "pooled",
        whole.provenance,
        **{
            "hypothesis only": hypothesis_only(x, y, *test),
            "hypothesis only, of SNLI pairs": hypothesis_only(x[:n_own], y[:n_own], *test),
        },
        judged_on=test,
        block=("attend", "compare", "mix", "pooled", "out"),
    )


def hypothesis_only(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> float:
    """Accuracy of a linear classifier on the words of the hypothesis alone.

    Args:
        x: rows of word numbers with a separator before the hypothesis.
    """
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    n_words = int(max(x.max(), x_test.max())) + 1

    def bag(rows: Tensor) -> csr_matrix:
        behind = (rows == nlp.SEPARATOR).cumsum(1) > 0
        row, at = (behind & (rows != nlp.SEPARATOR) & (rows != nlp.PAD)).nonzero(as_tuple=True)
        cells = torch.stack([row, rows[row, at]]).unique(dim=1).numpy()  # a word counts once
        ones = torch.ones(cells.shape[1], dtype=torch.float64).numpy()
        return csr_matrix((ones, (cells[0], cells[1])), shape=(len(rows), n_words))

    fitted = LogisticRegression(C=0.3, max_iter=300).fit(bag(x), y.numpy())
    return float(fitted.score(bag(x_test), y_test.numpy()))


def _first(x: Tensor, n: int) -> Tensor:
    if n > len(x):
        raise ValueError(f"want at most {len(x):,} examples in both sets together, got {n:,}")
    return x[:n]


def _testbed(
    name: str,
    model: nn.Module,
    both: Examples,
    n_fit: int,
    classes: tuple[str, ...],
    concepts: tuple[str, ...],
    layer: str,
    provenance: Provenance,
    *,
    judged_on: tuple[Tensor, Tensor] | None = None,
    block: tuple[str, ...] | None = None,
    **baselines: float,
) -> Testbed:
    """Split the examples in two; accuracies are of `judged_on`, or of the held-out ones."""
    order = torch.arange(len(both.y))
    fit, held_out = both.take(order[:n_fit]), both.take(order[n_fit:])
    x, y = judged_on or (held_out.x, held_out.y)
    most = int(torch.bincount(fit.y).argmax())
    right = predict(model, x).argmax(1).cpu() == y
    chance = {"majority": float((y == most).double().mean()), **baselines}
    accuracy = float(right.double().mean())
    if accuracy < max(chance.values()) + LEAST_MARGIN:
        name += ", model too weak"  # heads every figure
    return Testbed(
        name, model, fit, held_out, classes, concepts, layer, provenance, accuracy, chance,
        len(y), block,
    )  # fmt: skip


TESTBEDS: Mapping[str, Callable[..., Testbed]] = {
    "grammar": grammar,
    "digits": digit_images,
    "snli": snli_pairs,
    "cifar10": cifar_images,
    "cifar10-cnn": small_cifar_images,
    "cifar10-published": published_cifar_images,
}
