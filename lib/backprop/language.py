"""A small language with an exact grammar, and causal models of it (document 5, open question 3).

    DET NOUN [PREP DET ATTRACTOR] VERB DET OBJECT [ADVERB]

A verb of the present agrees with the first noun in number, not with the attractor; a verb of the
past has one form. The adverb agrees with the tense, and an object is pleasant or not. What a model
must know to write the verb is whether the subject is plural. Every sentence can be parsed, so that
an edit of words can be checked exactly (specification 6.2).

Public names: `WORDS`, `CONCEPTS`, `Sentences`, `sentences`, `is_grammatical`, `CausalModel`,
`Block`, `fetch_model`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import cache
from lib.models import initialise
from lib.training import Recipe, train
from lib.training.loop import SCHEDULES, cross_entropy

NOUNS = ["dog", "cat", "boy", "girl", "king", "nurse", "pilot", "guest"]
VERBS = {"see": "saw", "like": "liked", "help": "helped", "find": "found", "follow": "followed"}
DETERMINERS = ["the", "this", "that", "some"]
PREPOSITIONS = ["near", "behind", "with", "beside"]
PLEASANT = ["cake", "song", "gift", "garden"]
OBJECTS = [*PLEASANT, "wound", "storm", "knife", "swamp"]
PRESENT = ["today", "now", "nowadays", "currently"]
PAST = ["yesterday", "earlier", "once", "formerly"]
WORDS: tuple[str, ...] = (
    "<pad>",
    ".",
    *DETERMINERS,
    *NOUNS,
    *(noun + "s" for noun in NOUNS),
    *PREPOSITIONS,
    *(verb + "s" for verb in VERBS),
    *VERBS,
    *VERBS.values(),
    *OBJECTS,
    *PRESENT,
    *PAST,
)
NUMBER = {word: k for k, word in enumerate(WORDS)}
KINDS: dict[str, tuple[int, ...]] = {
    "determiner": tuple(NUMBER[w] for w in DETERMINERS),
    "singular": tuple(NUMBER[w] for w in NOUNS),
    "plural": tuple(NUMBER[w + "s"] for w in NOUNS),
    "preposition": tuple(NUMBER[w] for w in PREPOSITIONS),
    "verb of singular": tuple(NUMBER[w + "s"] for w in VERBS),
    "verb of plural": tuple(NUMBER[w] for w in VERBS),
    "verb of past": tuple(NUMBER[w] for w in VERBS.values()),
    "object": tuple(NUMBER[w] for w in OBJECTS),
    "adverb of present": tuple(NUMBER[w] for w in PRESENT),
    "adverb of past": tuple(NUMBER[w] for w in PAST),
}
LENGTH = 9  # the longest sentence: 5 words, a verb, an object with its determiner, an adverb
SUBJECT, ATTRACTOR, VERB, OBJECT = 1, 4, 5, 7  # places in a sentence with an attractor
PREFIX = 5  # length of what stands before the verb
CLAUSE = 8  # length of what ends with the object; the next word is an adverb or the end
# concept -> the place of the word that carries it
CONCEPTS = {
    "subject plural": SUBJECT,
    "attractor plural": ATTRACTOR,
    "past tense": VERB,
    "pleasant object": OBJECT,
}
END = NUMBER["."]


@dataclass(frozen=True)
class Sentences:
    """Sentences as word numbers, 0 after their end."""

    words: Tensor  # int64 [n, LENGTH + 1]
    subject_plural: Tensor  # bool [n]
    attractor_plural: Tensor  # bool [n]; False without an attractor
    past: Tensor  # bool [n]
    pleasant: Tensor  # bool [n], of the object
    verb_at: Tensor  # int64 [n]

    @property
    def concepts(self) -> Tensor:
        """The four concepts in the order of `CONCEPTS`, bool `[4, n]`."""
        return torch.stack([self.subject_plural, self.attractor_plural, self.past, self.pleasant])


def sentences(n: int, *, generator: torch.Generator, with_attractor: float = 0.6) -> Sentences:
    """Draw sentences; the numbers of both nouns, the tense and the object are independent.

    Args:
        with_attractor: chance of an attractor.
    """

    def pick(kind: str) -> Tensor:
        ids = torch.tensor(KINDS[kind])
        return ids[torch.randint(len(ids), (n,), generator=generator)]

    def coin(p: float = 0.5) -> Tensor:
        return torch.rand(n, generator=generator) < p

    subject, attractor, long, adverb = coin(), coin(), coin(with_attractor), coin()
    past, thing = coin(), pick("object")
    first = torch.where(subject, pick("plural"), pick("singular"))
    other = torch.where(attractor, pick("plural"), pick("singular"))
    verb = torch.where(subject, pick("verb of plural"), pick("verb of singular"))
    verb = torch.where(past, pick("verb of past"), verb)
    when = torch.where(past, pick("adverb of past"), pick("adverb of present"))
    pad, end = torch.zeros(n, dtype=torch.long), torch.full((n,), END)
    middle = torch.stack([pick("preposition"), pick("determiner"), other], 1)
    tail = torch.stack(
        [verb, pick("determiner"), thing, torch.where(adverb, when, end),
         torch.where(adverb, end, pad)], 1
    )  # fmt: skip
    head = torch.stack([pick("determiner"), first], 1)
    whole = torch.cat([head, middle, tail], 1)
    short = torch.cat([head, tail, torch.zeros(n, 3, dtype=torch.long)], 1)
    return Sentences(
        words=torch.where(long[:, None], whole, short),
        subject_plural=subject,
        attractor_plural=attractor & long,
        past=past,
        pleasant=torch.isin(thing, torch.tensor([NUMBER[w] for w in PLEASANT])),
        verb_at=torch.where(long, PREFIX, 2),
    )


def is_grammatical(words: Tensor) -> Tensor:
    """Whether each row is a sentence or the beginning of one, `[n]` bool.

    Args:
        words: word numbers `[n, t]`; zeros after the end.

    Two sequences of kinds are possible, with and without an attractor; a verb of the present
    agrees with the subject, an adverb with the tense.
    """
    kind = torch.full((len(WORDS),), -1)
    for k, ids in enumerate(KINDS.values()):
        kind[list(ids)] = k
    determiner, singular, plural, preposition, of_one, of_many, past, thing, now, then = range(10)
    nouns = {singular, plural}
    found = []
    for row in words.tolist():
        ended = row.index(END) if END in row else len(row)
        body = [int(kind[w]) for w in row[:ended] if w]
        fine = all(w == 0 for w in row[ended + 1 :])
        agree = {of_many if body[1:2] == [plural] else of_one, past}
        fits = []
        for middle in ([], [{preposition}, {determiner}, nouns]):
            at = 2 + len(middle)
            when = {then if body[at : at + 1] == [past] else now}
            form = [{determiner}, nouns, *middle, agree, {determiner}, {thing}, when]
            matches = all(k in allowed for k, allowed in zip(body, form, strict=False))
            whole = END not in row or len(body) >= len(form) - 1
            fits.append(len(body) <= len(form) and matches and whole)
        found.append(fine and any(fits))
    return torch.tensor(found)


class CausalModel(nn.Module):
    """A causal transformer over the words; what stands at a place predicts the next word."""

    def __init__(self, n_layers: int, width: int, n_heads: int = 4) -> None:
        super().__init__()
        if width % n_heads or min(n_layers, width, n_heads) < 1:
            raise ValueError(
                f"want n_layers >= 1 and a width that is a multiple of {n_heads}, got {n_layers} "
                f"and {width}"
            )
        self.words = nn.Embedding(len(WORDS), width)
        self.places = nn.Embedding(LENGTH + 1, width)
        self.blocks = nn.ModuleList(Block(width, n_heads) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, len(WORDS))

    def embed(self, words: Tensor) -> Tensor:
        """Embeddings of words without their places, `[n, t, width]`."""
        return self.words(words)

    def states(self, embedded: Tensor) -> Tensor:
        """Embeddings to the last layer's states, `[n, t, width]`."""
        h = embedded + self.places.weight[: embedded.shape[1]]
        for block in self.blocks:
            h = block(h)
        return h

    def logits(self, states: Tensor) -> Tensor:
        """Next-word logits `[..., words]`."""
        return self.out(self.norm(states))

    def forward(self, words: Tensor) -> Tensor:
        """Logits of the next word, `[n, words, t]`, as the loss wants them."""
        return self.logits(self.states(self.embed(words))).movedim(-1, 1)


class Block(nn.Module):
    """Self-attention and two layers, each after a normalisation and added: `[n, t, width]`."""

    def __init__(self, width: int, n_heads: int, *, is_causal: bool = True) -> None:
        super().__init__()
        self.n_heads, self.is_causal = n_heads, is_causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        parts = self.query_key_value(self.norm1(h)).unflatten(-1, (3 * self.n_heads, -1))
        query, key, value = parts.transpose(1, 2).chunk(3, dim=1)
        read = F.scaled_dot_product_attention(query, key, value, is_causal=self.is_causal)
        h = h + self.mix(read.transpose(1, 2).flatten(2))
        return h + self.back(F.gelu(self.hidden(self.norm2(h))))


def untrained(n_layers: int, width: int, *, seed: int) -> CausalModel:
    """The model with the weights that training starts from, frozen."""
    model = CausalModel(n_layers, width)
    initialise(model, torch.Generator().manual_seed(seed))
    return model.eval().requires_grad_(False)


def fetch_model(
    n_layers: int, width: int, *, n: int, epochs: int, lr: float, seed: int
) -> CausalModel:
    """A model trained on `n` sentences, or taken from the cache; frozen.

    The same seed draws sentences and weights.
    """
    recipe = Recipe(epochs=epochs, batch_size=64, lr=lr, optimizer="adam", schedule="linear")
    model = CausalModel(n_layers, width)
    config = {"layers": n_layers, "width": width, "n": n, "seed": seed, "recipe": asdict(recipe)}

    def build() -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        words = sentences(n, generator=generator).words
        x, y = words[:, :-1], words[:, 1:].clone()
        y[y == 0] = -100  # what cross entropy passes over
        initialise(model, torch.Generator().manual_seed(seed))
        train(model, x, y, recipe, generator=generator)
        return dict(model.state_dict())

    parts: list[Callable[..., object]] = [
        CausalModel,
        Block,
        sentences,
        initialise,
        train,
        cross_entropy,
    ]
    parts.append(SCHEDULES[recipe.schedule])
    model.load_state_dict(cache.fetch("model-causal", config, build, code=parts))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def excess_loss(model: CausalModel, words: Tensor) -> float:
    """Mean next-word loss minus the grammar's own entropy, nats a word; 0 is perfect."""
    logits = model(words[:, :-1])
    y = words[:, 1:]
    loss = F.cross_entropy(logits, y, reduction="none")[y != 0].mean()
    return (loss - _entropy(words)).item()


def _entropy(words: Tensor) -> Tensor:
    """Mean over words of -log p under the grammar that drew them, nats."""
    size = {name: len(ids) for name, ids in KINDS.items()}
    total, n_words = 0.0, 0
    for row in words.tolist():
        body = [w for w in row if w]
        long = body[2] in KINDS["preposition"]
        nouns = torch.tensor(2.0 * size["singular"]).log()
        p = nouns - torch.tensor(0.6 if long else 0.4).log()  # first noun; attractor or not
        if long:
            p = p + torch.tensor(float(size["preposition"] * size["determiner"])).log() + nouns
        p = p + torch.tensor(2.0 * size["verb of plural"]).log()  # a tense, a verb in its form
        p = p + torch.tensor(float(size["determiner"] * size["object"])).log()
        p = p + torch.tensor(2.0).log()  # an adverb or none
        if any(w in KINDS["adverb of present"] + KINDS["adverb of past"] for w in body):
            p = p + torch.tensor(float(size["adverb of past"])).log()  # the tense is known
        total, n_words = total + p.item(), n_words + len(body) - 1
    return torch.tensor(total / n_words)
