"""Open question 3 of document 5: does an edit for one concept leave other concepts alone?

Four concepts of one sentence, all read from the last layer at its object: the subject is plural,
the attractor is plural, the tense is past, the object is pleasant. By the grammar they are
independent of one another, and each is carried by one word. One is brought to .9, in embeddings
and by one word; what the other three probes read meanwhile is the leak. A concept that the next
word does not need may have faded from that state, so the probes' own scores stand beside it.

Specification 6.2. Public names: `Bed`, `prepare`, `Specificity`, `study`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lib import probes
from lib.backprop import language
from lib.backprop.distances import GroupL2
from lib.backprop.language import CLAUSE, CONCEPTS, CausalModel
from lib.backprop.language_studies import TARGET, LastState, substitute
from lib.backprop.maximisation import maximise_to
from lib.backprop.objective import Objective, Operator

PAST = list(CONCEPTS).index("past tense")
HELD_OUT = 2000  # sentences on which the probes are scored, and from which prefixes come


@dataclass(frozen=True)
class Bed:
    """A model, one probe a concept, and clauses that lack the concept."""

    model: CausalModel
    probes: tuple[probes.Probe, ...]  # in the order of CONCEPTS
    score: Tensor  # [c], S on held-out clauses
    words: Tensor  # int64 [c, n, CLAUSE]

    def readings(self, states: Tensor) -> Tensor:
        """P of every concept from states `[..., width]`, `[..., c]`."""
        weight = torch.stack([p.weight for p in self.probes])
        return torch.sigmoid(states @ weight.T + torch.stack([p.bias for p in self.probes]))


@dataclass(frozen=True)
class Specificity:
    """What edits for each of c concepts did to n clauses and to all c probes."""

    score: Tensor  # [c], S of the probes
    before: Tensor  # [c, n, c], P; the first axis says which concept is asked for
    after: Tensor  # [c, n, c], after the edit of embeddings
    replaced: Tensor  # [c, n, c], after one word was replaced
    mass: Tensor  # [c, n], share of the embeddings' edit on the word that carries the concept
    place: Tensor  # [c, n], which word was replaced; -1 for none that reaches .9
    grammatical: Tensor  # [c, n], bool, of the words after the replacement
    converged: Tensor  # [c, n], bool, of the embeddings' edit

    def change(self, *, words: bool) -> Tensor:
        """Change of P of concept b when a is asked for, mean over clauses, `[a, b]`."""
        return ((self.replaced if words else self.after) - self.before).mean(1)

    def leak(self, *, words: bool) -> float:
        """Mean absolute change of the other concepts' P, over ordered pairs and clauses."""
        size = ((self.replaced if words else self.after) - self.before).abs().mean(1)
        others = ~torch.eye(len(size), dtype=torch.bool)
        return size[others].mean().item()


def prepare(model: CausalModel, *, n_probe: int, n: int, seed: int) -> Bed:
    """Fit four probes on clauses with an attractor; choose n that lack each concept.

    A clause lacks a concept by its label and by the probe. It stands in the past (unless the past
    is what is asked for), where one word can change the subject's number and keep the grammar.

    Raises:
        ValueError: fewer than n such clauses among the held-out ones.
    """
    generator = torch.Generator().manual_seed(seed + 2)
    drawn = language.sentences(n_probe + HELD_OUT, generator=generator, with_attractor=1.0)
    words, labels = drawn.words[:, :CLAUSE], drawn.concepts.long()
    with torch.no_grad():
        h = model.states(model.embed(words))[:, -1]
    fit = probes.fit_logistic(h[:n_probe], labels[:, :n_probe], C=1.0)
    each = tuple(
        probes.Probe(weight, bias, fit.steps, done)
        for weight, bias, done in zip(fit.weight, fit.bias, fit.converged, strict=True)
    )
    rest, chosen, scores = labels[:, n_probe:], [], []
    for k, (name, probe) in enumerate(zip(CONCEPTS, each, strict=True)):
        read = probe.score(h[n_probe:])
        lacks = (rest[k] == 0) & (read < 0) & ((rest[PAST] == 1) | (k == PAST))
        rows = lacks.nonzero()[:n, 0]
        if len(rows) < n:
            raise ValueError(f"{len(rows)} held-out clauses lack {name!r}, wanted {n}; ask fewer")
        scores.append(probes.detection_score(read, rest[k]))
        chosen.append(words[n_probe:][rows])
    return Bed(model, each, torch.stack(scores), torch.stack(chosen))


def study(bed: Bed) -> Specificity:
    """Bring each concept to .9 in embeddings and by one word, and read all probes."""
    model, layer, (c, n, _) = bed.model, LastState(bed.model), bed.words.shape
    flat = bed.words.flatten(0, 1)
    which = torch.arange(c).repeat_interleave(n)
    weight = torch.stack([p.weight for p in bed.probes])[which]
    bias = torch.stack([p.bias for p in bed.probes])[which]
    objective = Objective(
        layer,
        lambda h: (h * weight).sum(1) + bias,  # every row has the probe of its own concept
        [(1.0, GroupL2())],
        Operator(torch.add, modules=(model,)),
        link="sigmoid",
    )
    embedded = model.embed(flat)
    edit = maximise_to(objective, embedded, TARGET, max_steps=100)
    mass = edit.delta.norm(dim=2)
    carrier = torch.tensor(list(CONCEPTS.values()))[which]
    replaced, place = zip(
        *(
            substitute(model, layer, probe.score, words)
            for probe, words in zip(bed.probes, bed.words, strict=True)
        ),
        strict=True,
    )
    other = torch.stack(replaced)
    with torch.no_grad():
        return Specificity(
            score=bed.score,
            before=bed.readings(layer(embedded)).unflatten(0, (c, n)),
            after=bed.readings(layer(edit.result)).unflatten(0, (c, n)),
            replaced=bed.readings(layer(model.embed(other.flatten(0, 1)))).unflatten(0, (c, n)),
            mass=(mass[torch.arange(c * n), carrier] / mass.sum(1).clamp_min(1e-12)).view(c, n),
            place=torch.stack(place),
            grammatical=language.is_grammatical(other.flatten(0, 1)).view(c, n),
            converged=edit.converged.view(c, n),
        )
