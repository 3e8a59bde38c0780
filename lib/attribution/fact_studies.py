"""The study of fact tracing of notebook 46: who ranks proponents, and whose rows a fact needs.

Document 4, applying TRAK to fact tracing; specification section 7.3. A masked language model is
trained on sentences that state facts. For every fact that it answers right after training and wrong
before, methods rank the sentences: by words (BM25), by what the model makes of them (embedding), by
gradients (TracIn, TRAK). First they are judged by the annotated proponents; then by training again
without what each ranks highest.

Retrainings are shared: a group of facts loses its rows together, each fact the k it ranks highest,
in turn, so that every method and every group loses as many rows.

Public names: `prepare`, `Tracing`, `retrieve`, `gap`, `removed_rows`, `remove`, `Removal`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib import models, training
from lib.attribution import baselines, retrieval, trak, truth
from lib.attribution.brittleness import paired_difference
from lib.attribution.ground import trajectory
from lib.config import Run
from lib.data import facts
from lib.data.base import Split
from lib.data.nlp import PAD
from lib.gradients import margin
from lib.training import Recipe
from lib.training.loop import Progress

CORPORA: dict[str, Callable[[Run], facts.Facts]] = {
    "world": lambda run: facts.load_world(0, n_people=run.size.facts["n_people"]),
    "trex": lambda run: facts.load_trex(run.data_root, n_facts=run.size.facts["n_facts"]),
}
REMOVED = ("TRAK", "TracIn", "embedding", "BM25", "random")
PROPONENTS, N_PROPONENTS = "proponents", facts.N_SENTENCES
REMOVAL = 2000  # added to the seed for networks of the removals


@dataclass(frozen=True)
class Tracing:
    """A trained corpus and what every method says about it."""

    corpus: facts.Facts
    setting: truth.Setting  # its targets are the questions of all facts
    scores: Mapping[str, Tensor]  # method -> [n, F]
    known: Tensor  # int64 [Q]: facts that are wrong before and right after training
    n_right: int  # facts right after training
    candidates: Tensor  # bool [n, F]


@dataclass(frozen=True)
class Removal:
    """Margins of facts after training without what each method ranks highest."""

    facts: Tensor  # int64 [Q]
    before: Tensor  # margins of networks trained on everything, [Q, R]
    after: Mapping[tuple[str, int], Tensor]  # (method, rows a fact) -> margins [Q, R]

    def fall(self, method: str, k: int) -> Tensor:
        """Fall of the share of right answers, `[Q]`."""
        return _right(self.before) - _right(self.after[method, k])

    def margin_fall(self, method: str, k: int) -> Tensor:
        """Fall of the mean margin, `[Q]`."""
        return (self.before - self.after[method, k]).double().mean(1)

    def difference(self, a: tuple[str, int], b: tuple[str, int]) -> tuple[float, float]:
        """By how much more the share falls without a's rows than b's: value, half its interval."""
        return gap(self.fall(*a), self.fall(*b))

    def rows(self) -> list[dict[str, object]]:
        """The arms for a table: two falls, each with half of its 95% interval over facts."""
        found: list[dict[str, object]] = []
        for method, k in self.after:
            right, margins = (
                gap(fall, torch.zeros_like(fall))
                for fall in (self.fall(method, k), self.margin_fall(method, k))
            )
            found.append(
                {
                    "removed": method,
                    "rows a fact": k,
                    "fall of right answers": right,
                    "fall of the margin": margins,
                }
            )
        return found


def prepare(run: Run) -> Tracing:
    """Train what the methods read, and score every sentence for every fact."""
    size = run.size.facts
    corpus = CORPORA[size["corpus"]](run)
    spec: dict[str, object] = {"n_words": len(corpus.vocabulary), "width": size["width"]}
    spec |= {"length": corpus.train.x.shape[1], "n_heads": 2}
    recipe = Recipe(
        size["epochs"], size["batch_size"], size["lr"], optimizer="adam", schedule="triangular"
    )
    setting = truth.Setting(
        f"facts-{size['corpus']}",
        "masked_word",
        spec,
        recipe,
        corpus.train,
        corpus.questions,
        stack=size["stack"],
    )
    path, rates = trajectory(setting, run.seed)
    generator = torch.Generator().manual_seed(run.seed)
    untrained = models.build(setting.network, generator, "cpu", **spec).eval()
    asked = corpus.questions
    before, after = (margin(training.predict(m, asked.x), asked.y) for m in (untrained, path[-1]))
    known = ((before < 0) & (after > 0)).nonzero()[:, 0]
    train, targets = _data(corpus.train), _data(asked)
    lexical = retrieval.bm25(
        _with_answers(corpus.train), _with_answers(asked), len(corpus.vocabulary), ignored=(PAD,)
    )
    embedding = baselines.representation(path[-1], train, targets)
    networks = truth.checkpoints(setting, size["n_models"], seed=run.seed)
    tracin = baselines.tracin(path, rates, train, targets)
    scores = {
        "BM25": lexical,
        "embedding": embedding,
        "TracIn": tracin,
        "TracIn, cosines": baselines.gas(path, train, targets),
        "TracIn + embedding": retrieval.combined(tracin, embedding),
        "TRAK": trak.trak(networks, train, targets, k=size["k"], ridge=0.1, seed=run.seed).tau,
        "random": baselines.random(
            len(corpus.train), len(asked), torch.Generator().manual_seed(run.seed)
        ),
    }
    chosen = retrieval.candidates(
        corpus.proponents, lexical, corpus.train.y, asked.y, size["n_candidates"], seed=run.seed
    )
    return Tracing(corpus, setting, scores, known, int((after > 0).sum()), chosen)


def retrieve(tracing: Tracing) -> dict[str, retrieval.Retrieval]:
    """How well every method finds the proponents of the known facts among the candidates."""
    known = tracing.known
    relevant, chosen = tracing.corpus.proponents[:, known], tracing.candidates[:, known]
    return {
        method: retrieval.evaluate(scores[:, known], relevant, chosen)
        for method, scores in tracing.scores.items()
    }


def gap(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean of `a - b` over facts, each `[Q]`, and half of its 95% interval."""
    value, low, high = paired_difference(a, b)
    return value, (high - low) / 2


def removed_rows(scores: Tensor, k: int) -> Tensor:
    """Rows that a group of facts loses: each in turn its highest that is still there, k times.

    Args:
        scores: `[n, g]`, a column a fact of the group.
        k: rows a fact.

    Returns:
        Sorted rows, int64 `[g k]`, all different.

    Raises:
        ValueError: as many rows as there are, or more.
    """
    n, n_facts = scores.shape
    if k < 1 or n_facts * k >= n:
        raise ValueError(f"want 1 <= k and {n_facts} facts times k < {n} rows, got k = {k}")
    ranked = scores.argsort(dim=0, descending=True, stable=True).T
    orders = [iter(order.tolist()) for order in ranked]
    taken: set[int] = set()
    for _ in range(k):
        for order in orders:
            taken.add(next(row for row in order if row not in taken))
    return torch.tensor(sorted(taken))


def remove(run: Run, tracing: Tracing, progress: Progress | None = None) -> Removal:
    """Train again without what each method ranks highest, and look at the facts.

    Raises:
        ValueError: fewer known facts than are to be looked at.
    """
    size = run.size.facts
    n_groups, n_facts, repeats = size["n_groups"], size["group"], size["repeats"]
    known = tracing.known
    if len(known) < n_groups * n_facts:
        raise ValueError(
            f"want {n_groups} groups of {n_facts} known facts, the model knows {len(known)}; "
            "train longer or ask for fewer"
        )
    pick = torch.randperm(len(known), generator=torch.Generator().manual_seed(run.seed))
    chosen = known[pick[: n_groups * n_facts]]
    groups = chosen.split(n_facts)
    n = len(tracing.corpus.train)
    arms = [(method, k) for k in size["ks"] for method in REMOVED]
    scores = dict(tracing.scores)
    luck = torch.rand(n, len(tracing.corpus.facts), generator=torch.Generator().manual_seed(7))
    scores[PROPONENTS] = tracing.corpus.proponents.double() + 0.5 * luck  # ties at random
    arms.append((PROPONENTS, N_PROPONENTS))
    steps = progress(range(1 + len(arms))) if progress else range(1 + len(arms))
    found: dict[tuple[str, int], Tensor] = {}
    before = torch.empty(0)
    for step in steps:
        if step == 0:
            before = _margins(run, tracing, groups, torch.arange(n).expand(n_groups, -1), repeats)
            continue
        method, k = arms[step - 1]
        kept = []
        for group in groups:
            mask = torch.ones(n, dtype=torch.bool)
            mask[removed_rows(scores[method][:, group], k)] = False
            kept.append(mask.nonzero()[:, 0])
        found[method, k] = _margins(run, tracing, groups, torch.stack(kept), repeats)
    return Removal(chosen, before, found)


def _margins(
    run: Run, tracing: Tracing, groups: Sequence[Tensor], subsets: Tensor, repeats: int
) -> Tensor:
    """Margins `[Q, R]` of each group's facts by the networks of its own subset."""
    outputs = truth.subset_outputs(
        tracing.setting, subsets.contiguous(), repeats=repeats, seed=run.seed + REMOVAL
    )
    return torch.cat([out[:, group].T for out, group in zip(outputs, groups, strict=True)])


def _right(margins: Tensor) -> Tensor:
    return (margins > 0).double().mean(1)


def _data(split: Split) -> trak.Data:
    return split.x, split.y


def _with_answers(split: Split) -> Tensor:
    """Rows with the masked word restored."""
    return torch.where(split.x == facts.MASK, split.y[:, None], split.x)
