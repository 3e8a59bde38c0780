"""A network that document 3's notebooks take apart, and whether it is good enough for claims.

A testbed is a trained classifier with two sets of examples it was not trained on: one to factorise
(`fit`), one to read the components on (`held_out`), as in the paper. Where the data have known
rules (the inference grammar), every example says which rule made it: the truth that the paper did
not have. A network that hardly beats a baseline is marked in its name, and `judged` leaves its
claims out.

Public names: `Testbed`, `Examples`, `assemble`, `first`, `judged`, `hypothesis_only`,
`LEAST_MARGIN`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import models
from lib.claims import Measured
from lib.data import nlp
from lib.data.base import Provenance
from lib.gradients import flat
from lib.training import predict

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
    eps: float = 0.0  # classes of a smaller probability are left out of Fishers

    @property
    def has_rules(self) -> bool:
        """Whether something finer than the labels is known of every example."""
        return self.concepts != self.classes

    @property
    def drawn(self) -> bool:
        """Whether figures may show the inputs: images without a licence may not."""
        return not self.name.startswith(("CIFAR", "ImageNet"))

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


def first(x: Tensor, n: int) -> Tensor:
    """The first n rows, if there are so many."""
    if n > len(x):
        raise ValueError(f"want at most {len(x):,} examples in both sets together, got {n:,}")
    return x[:n]


def assemble(
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
    eps: float = 0.0,
    baselines: Mapping[str, float] | None = None,
) -> Testbed:
    """Split the examples in two; accuracies are of `judged_on`, or of the held-out ones."""
    order = torch.arange(len(both.y))
    fit, held_out = both.take(order[:n_fit]), both.take(order[n_fit:])
    x, y = judged_on or (held_out.x, held_out.y)
    most = int(torch.bincount(fit.y).argmax())
    right = predict(model, x).argmax(1).cpu() == y
    chance = {"majority": float((y == most).double().mean()), **(baselines or {})}
    accuracy = float(right.double().mean())
    if accuracy < max(chance.values()) + LEAST_MARGIN:
        name += ", model too weak"  # heads every figure
    return Testbed(
        name, model, fit, held_out, classes, concepts, layer, provenance, accuracy, chance,
        len(y), block, eps,
    )  # fmt: skip
