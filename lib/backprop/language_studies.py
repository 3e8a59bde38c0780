"""Open question 3 of document 5: concept backpropagation in a transformer, with a known answer.

Concept: the subject is plural, read from the last layer at the word before the verb. The one word
that carries it is the subject noun; the attractor noun stands nearer to the verb. Two kinds of
edit of the words before the verb:

- embeddings: `e + delta` with a sum of norms over words, so that few words move;
- words: the one substitution that raises the probe most among those that keep the grammar.

Specification 6.2; what an edit does to other concepts is in `specificity_studies`.
Public names: `Subject`, `prepare`, `Outcome`, `explain`, `substitute`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib import probes
from lib.backprop import language
from lib.backprop.distances import GroupL2
from lib.backprop.language import KINDS, PREFIX, VERB, WORDS, CausalModel
from lib.backprop.maximisation import maximise_to
from lib.backprop.objective import Objective, Operator

TARGET = 0.9
PLURAL = KINDS["plural"]
CANDIDATES = 24  # substitutions of the best first-order scores that are read exactly


@dataclass(frozen=True)
class Subject:
    """A model, a probe of the concept on it, and sentences to explain."""

    model: CausalModel
    probe: probes.Probe
    score: float  # S on held-out prefixes
    prefix: Tensor  # int64 [n, PREFIX], subject singular
    excess: float  # next-word loss above the grammar's entropy, nats


@dataclass(frozen=True)
class Outcome:
    """What both kinds of edit did to n prefixes."""

    before: Tensor  # [n], P
    after: Tensor  # [n], P of edited embeddings
    rounded: Tensor  # [n], P when every edited embedding becomes its nearest word
    mass: Tensor  # [n, PREFIX], share of the edit on each word
    behaviour: Tensor  # [n], change of log-odds of plural against singular verbs, embeddings
    place: Tensor  # [n], which word the discrete edit replaced; -1 for none that reaches .9
    discrete: Tensor  # [n], P after the discrete edit
    grammatical: Tensor  # [n], bool, of the discrete edit's prefix
    discrete_behaviour: Tensor  # [n]
    steps: Tensor  # [n], gradients of the embedding edit


def prepare(model: CausalModel, *, n_probe: int, n: int, seed: int) -> Subject:
    """Fit the probe on prefixes with an attractor; choose some that it reads as singular."""
    generator = torch.Generator().manual_seed(seed + 1)
    drawn = language.sentences(n_probe + 2000, generator=generator, with_attractor=1.0)
    words, label = drawn.words[:, :PREFIX], drawn.subject_plural.long()
    with torch.no_grad():
        h = model.states(model.embed(words))[:, -1]
    probe = probes.fit_logistic(h[:n_probe], label[:n_probe], C=1.0)
    scores = probe.score(h[n_probe:])
    held_out = label[n_probe:]
    chosen = ((held_out == 0) & (scores < 0)).nonzero()[:n, 0]
    return Subject(
        model=model,
        probe=probe,
        score=probes.detection_score(scores, held_out).item(),
        prefix=words[n_probe:][chosen],
        excess=language.excess_loss(model, drawn.words[-500:]),
    )


class LastState(nn.Module):
    """Embeddings `[n, t, width]` to the last word's state, flat."""

    def __init__(self, model: CausalModel) -> None:
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, embedded: Tensor) -> Tensor:
        return self.model.states(embedded)[:, -1]


def explain(subject: Subject) -> Outcome:
    """Edit every prefix until the probe reads "plural" at .9, in embeddings and in words."""
    model, read = subject.model, subject.probe.score
    layer = LastState(model)
    operator = Operator(torch.add, modules=(model,))
    embedded = model.embed(subject.prefix)
    objective = Objective(layer, read, [(1.0, GroupL2())], operator, link="sigmoid", any_rows=True)
    edit = maximise_to(objective, embedded, TARGET, max_steps=100)
    nearest = torch.cdist(edit.result.flatten(0, 1), model.words.weight).argmin(1)
    rounded = nearest.view(subject.prefix.shape)
    mass = edit.delta.norm(dim=2)
    best, place = substitute(model, layer, read, subject.prefix)
    with torch.no_grad():
        odds = _log_odds(model, embedded)
        return Outcome(
            before=edit.probe_before,
            after=edit.probe_after,
            rounded=torch.sigmoid(read(layer(model.embed(rounded)))),
            mass=mass / mass.sum(1, keepdim=True).clamp_min(1e-12),
            behaviour=_log_odds(model, edit.result) - odds,
            place=place,
            discrete=torch.sigmoid(read(layer(model.embed(best)))),
            grammatical=language.is_grammatical(best),
            discrete_behaviour=_log_odds(model, model.embed(best)) - odds,
            steps=edit.steps,
        )


def _log_odds(model: CausalModel, embedded: Tensor) -> Tensor:
    """Log-odds of all plural against all singular verbs as the next word, `[n]`."""
    logits = model.logits(model.states(embedded)[:, -1])
    many, one = (list(KINDS[k]) for k in ("verb of plural", "verb of singular"))
    return logits[:, many].logsumexp(1) - logits[:, one].logsumexp(1)


def substitute(
    model: CausalModel,
    layer: nn.Module,
    read: Callable[[Tensor], Tensor],
    words: Tensor,
) -> tuple[Tensor, Tensor]:
    """The best single substitution of each beginning of a sentence, and where it is.

    Substitutions are scored to first order, `grad_t . (e_new - e_old)`; those of the best scores
    that keep the grammar are read exactly.

    Args:
        layer: embeddings to the state that is read.
        read: states `[n, width]` to logits `[n]`.
        words: grammatical, with an attractor, `[n, t]`, no longer than to the object.

    Returns:
        Edited words `[n, t]`, and the place of the edit `[n]`, -1 where the probe stays below
        `TARGET`.
    """
    embedded = model.embed(words).requires_grad_()
    (slope,) = torch.autograd.grad(read(layer(embedded)).sum(), embedded)
    with torch.no_grad():
        table = model.words.weight
        first_order = slope @ table.T - (slope * embedded).sum(2, keepdim=True)  # [n, t, words]
        score = torch.where(_legal(words), first_order, -torch.inf).flatten(1)
        order = score.topk(CANDIDATES, dim=1).indices  # [n, k]
        where, word = order // len(WORDS), order % len(WORDS)
        tried = words[:, None].repeat(1, CANDIDATES, 1)
        tried.scatter_(2, where[..., None], word[..., None])
        exact = read(layer(model.embed(tried.flatten(0, 1)))).unflatten(0, order.shape)
        best = exact.argmax(1)
        n = torch.arange(len(best))
        reached = torch.sigmoid(exact[n, best]) >= TARGET
        return tried[n, best], torch.where(reached, where[n, best], -1)


def _legal(words: Tensor) -> Tensor:
    """Which substitutions keep a beginning with an attractor grammatical, `[n, t, words]`.

    A word gives way to others of its kind; so does a noun to one of the other number, unless a
    verb of the present agrees with it, and a verb to one of the other tense.
    """
    kinds = ("determiner", "noun", "preposition", "determiner", "noun", "verb", "determiner",
             "object")  # fmt: skip
    one, many, past = (KINDS[f"verb of {k}"] for k in ("singular", "plural", "past"))
    ids: dict[str, Sequence[int]] = {
        **KINDS,
        "noun": KINDS["singular"] + KINDS["plural"],
        "verb": one + many + past,
    }
    t = words.shape[1]
    allowed = torch.zeros(t, len(WORDS), dtype=torch.bool)
    for place, kind in enumerate(kinds[:t]):
        allowed[place, list(ids[kind])] = True
    legal = allowed.expand(len(words), -1, -1).clone()
    if t > VERB:
        is_plural = torch.isin(words[:, language.SUBJECT], torch.tensor(PLURAL))
        fixed = ~torch.isin(words[:, VERB], torch.tensor(past))
        for number, nouns, verbs in ((~is_plural, "plural", many), (is_plural, "singular", one)):
            legal[:, language.SUBJECT, list(KINDS[nouns])] &= ~(fixed & number)[:, None]
            legal[:, VERB, list(verbs)] &= ~number[:, None]
    return legal.scatter_(2, words[..., None], False)  # the word that stands there is no edit
