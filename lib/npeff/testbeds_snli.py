"""Testbeds on SNLI: a network that aligns sentences, alone and beside tests of its heuristics.

Fishers leave the word embeddings out, nine tenths of the weights: an example touches few of them.

Public names: `snli_pairs`, `snli_and_challenges`, `SHARES`.

Source: document 3, sections 3.1 and 3.5 (BERT, SNLI and MNLI there).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lib.config import Run
from lib.data import challenges, nlp
from lib.data.base import Provenance, sha256_of
from lib.data.challenges import Challenge
from lib.npeff.testbed import Examples, Testbed, assemble, first, hypothesis_only
from lib.training import Recipe, fetch_model, predict

RECIPE = Recipe(6, 100, 0.003, optimizer="adam", schedule="triangular")
BLOCK = ("attend", "compare", "mix", "pooled", "out")  # Fishers are by these modules
LENGTH, N_WORDS = 36, 6000
# of the examples, the rest is SNLI
SHARES: Mapping[str, float] = {
    "counterfactual SNLI": 1 / 8,
    "MNLI": 1 / 8,
    "HANS": 1 / 8,
    "Breaking NLI": 1 / 4,
}
CONCEPTS = (
    "SNLI", "counterfactual SNLI", "MNLI", "HANS, follows", "HANS, does not", "Breaking NLI",
)  # fmt: skip
TRAINED_SHARE = 0.5  # of Breaking NLI's other pairs that are trained on, unless it is left out


def _load(run: Run) -> nlp.SentencePairs:
    """SNLI with counterfactual pairs; forms of a word share a number."""
    return nlp.load_snli(
        run.data_root,
        n_words=N_WORDS,
        length=LENGTH,
        revised=True,
        form=nlp.stems_of,
    )


def _network(x: Tensor, y: Tensor, n_words: int, seed: int) -> nn.Module:
    return fetch_model(
        "alignment",
        {"n_words": n_words},
        lambda: (x, y),
        RECIPE,
        seed=seed,
        data_hash=sha256_of(x, y),
    )


def _shuffled(test: nlp.TextSplit) -> Examples:
    """Held-out pairs; in the file those of a premise lie side by side."""
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
    return Examples(test.x, test.y, test.y, test.text).take(order)


def _baselines(whole: nlp.SentencePairs, test: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Accuracy from the hypothesis alone, with all training pairs and with SNLI's own."""
    x, y = whole.train.x, whole.train.y
    n_own = len(x) - sum(nlp.REVISED_EXPECTED.train)  # the counterfactual pairs come last
    return {
        "hypothesis only": hypothesis_only(x, y, *test),
        "hypothesis only, of SNLI pairs": hypothesis_only(x[:n_own], y[:n_own], *test),
    }


def snli_pairs(run: Run, n_fit: int, n_held_out: int) -> Testbed:
    """A network that aligns sentences, on SNLI's validation and test pairs, split by premise.

    There are too few of them for a transformer, which does not get beyond the hypothesis alone.
    """
    whole = _load(run)
    model = _network(whole.train.x, whole.train.y, len(whole.vocabulary), run.seed)
    every = _shuffled(whole.test)
    both = every.take(torch.arange(len(first(every.x, n_fit + n_held_out))))
    test = every.x[n_fit:], every.y[n_fit:]
    return assemble(
        "SNLI",
        model,
        both,
        n_fit,
        whole.names,
        whole.names,
        "pooled",
        whole.provenance,
        baselines=_baselines(whole, test),
        judged_on=test,
        block=BLOCK,
    )


def snli_and_challenges(
    run: Run, n_fit: int, n_held_out: int, without: tuple[str, ...] = ()
) -> Testbed:
    """The same network on SNLI mixed with tests of its heuristics; concepts are the sets.

    HANS is two of them: pairs whose hypothesis follows, as word overlap suggests, and the others.
    No example of a test shares a sentence with a training pair.

    Accuracy and baselines are those of SNLI's pairs alone: the tests are not its task.

    Args:
        without: sets of `SHARES` that training leaves out. Half of the pairs of Breaking NLI that
            share no sentence with an example are trained on otherwise; the other sets never are.
            The vocabulary is SNLI's either way.
    """
    if set(without) - set(SHARES):
        raise ValueError(f"want sets of {', '.join(SHARES)} to leave out, got {without}")
    whole = _load(run)
    every = _shuffled(whole.test)
    n, generator = n_fit + n_held_out, torch.Generator().manual_seed(0)
    sizes = {name: round(share * n) for name, share in SHARES.items()}
    n_own = n - sum(sizes.values())
    own = every.take(torch.arange(len(first(every.x, n_own))))
    drawn, rest = {}, {}
    for name, size in sizes.items():
        pairs = challenges.unseen(challenges.load(name, run.data_root), whole.train.text)
        if size > len(pairs):
            raise ValueError(f"want at most {len(pairs):,} unseen pairs of {name}, got {size:,}")
        order = torch.randperm(len(pairs), generator=generator)
        drawn[name], rest[name] = pairs.take(order[:size]), pairs.take(order[size:])
    x, y = whole.train.x, whole.train.y
    if "Breaking NLI" not in without:
        examples = sum((pairs.text for pairs in drawn.values()), every.text)
        more = challenges.unseen(rest["Breaking NLI"], examples)
        more = more.take(torch.arange(round(TRAINED_SHARE * len(more))))
        x, y = torch.cat([x, _encoded(whole, more)]), torch.cat([y, more.y])
    model = _network(x, y, len(whole.vocabulary), run.seed)
    parts = [Examples(own.x, own.y, torch.zeros_like(own.y), own.text)]
    for name, pairs in drawn.items():
        rows = _encoded(whole, pairs)
        labels = challenges.as_classes(pairs.y, predict(model, rows).cpu())
        names = [f"{name}, {'does not' if c else 'follows'}" for c in pairs.y.tolist()]
        names = names if name == "HANS" else [name] * len(pairs)
        concept = torch.tensor([CONCEPTS.index(one) for one in names])
        parts.append(Examples(rows, labels, concept, pairs.text))
    mixed = torch.randperm(n, generator=generator)
    test = every.x[n_own:], every.y[n_own:]
    sources = [whole.provenance, *(pairs.provenance for pairs in drawn.values())]
    return assemble(
        "SNLI with tests of heuristics",
        model,
        _together(parts).take(mixed),
        n_fit,
        whole.names,
        CONCEPTS,
        "pooled",
        _mixed(sources, n),
        baselines=_baselines(whole, test),
        judged_on=test,
        block=BLOCK,
    )


def _encoded(whole: nlp.SentencePairs, pairs: Challenge) -> Tensor:
    words = [(nlp.stems_of(premise), nlp.stems_of(other)) for premise, other in pairs.text]
    return whole.vocabulary.encode(words, LENGTH)


def _together(parts: Sequence[Examples]) -> Examples:
    x, y, concept = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("x", "y", "concept")
    )
    return Examples(x, y, concept, sum((part.text for part in parts), ()))


def _mixed(sources: Sequence[Provenance], n: int) -> Provenance:
    together = (
        ", ".join(getattr(one, name) for one in sources) for name in ("name", "source", "licence")
    )
    name, source, licence = together
    whole = sha256_of(torch.tensor([list(one.sha256.encode()) for one in sources]))
    kept = ", ".join(one.note for one in sources[1:])
    note = f"examples drawn from {len(sources)} sets; with training {kept}"
    return Provenance(name, source, licence, whole, n, note)
