"""A small language with an exact grammar, and causal models of it (document 5, open question 3).

    DET NOUN [PREP DET ATTRACTOR] VERB DET OBJECT [ADVERB]

The verb agrees with the first noun in number, not with the attractor: what a model must know to
write the verb is whether the subject is plural. Every sentence can be parsed, so that an edit of
words can be checked exactly (specification 6.2).

Public names: `WORDS`, `Sentences`, `sentences`, `is_grammatical`, `CausalModel`, `fetch_model`.
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
VERBS = ["see", "like", "help", "find", "follow"]
DETERMINERS = ["the", "this", "that", "some"]
PREPOSITIONS = ["near", "behind", "with", "beside"]
OBJECTS = ["cake", "song", "gift", "garden", "wound", "storm", "knife", "swamp"]
ADVERBS = ["today", "often", "gladly", "slowly"]
WORDS: tuple[str, ...] = (
    "<pad>",
    ".",
    *DETERMINERS,
    *NOUNS,
    *(noun + "s" for noun in NOUNS),
    *PREPOSITIONS,
    *(verb + "s" for verb in VERBS),
    *VERBS,
    *OBJECTS,
    *ADVERBS,
)
NUMBER = {word: k for k, word in enumerate(WORDS)}
KINDS: dict[str, tuple[int, ...]] = {
    "determiner": tuple(NUMBER[w] for w in DETERMINERS),
    "singular": tuple(NUMBER[w] for w in NOUNS),
    "plural": tuple(NUMBER[w + "s"] for w in NOUNS),
    "preposition": tuple(NUMBER[w] for w in PREPOSITIONS),
    "verb of singular": tuple(NUMBER[w + "s"] for w in VERBS),
    "verb of plural": tuple(NUMBER[w] for w in VERBS),
    "object": tuple(NUMBER[w] for w in OBJECTS),
    "adverb": tuple(NUMBER[w] for w in ADVERBS),
}
LENGTH = 9  # the longest sentence: 5 words, a verb, an object with its determiner, an adverb
SUBJECT, ATTRACTOR = 1, 4  # places in a prefix with an attractor
PREFIX = 5  # its length; the next word is the verb
END = NUMBER["."]


@dataclass(frozen=True)
class Sentences:
    """Sentences as word numbers, 0 after their end."""

    words: Tensor  # int64 [n, LENGTH + 1]
    subject_plural: Tensor  # bool [n]
    attractor_plural: Tensor  # bool [n]; False without an attractor
    verb_at: Tensor  # int64 [n]


def sentences(n: int, *, generator: torch.Generator, with_attractor: float = 0.6) -> Sentences:
    """Draw sentences; numbers of subject and attractor are independent coins.

    Args:
        with_attractor: chance of an attractor.
    """

    def pick(kind: str) -> Tensor:
        ids = torch.tensor(KINDS[kind])
        return ids[torch.randint(len(ids), (n,), generator=generator)]

    def coin(p: float = 0.5) -> Tensor:
        return torch.rand(n, generator=generator) < p

    subject, attractor, long, adverb = coin(), coin(), coin(with_attractor), coin()
    first = torch.where(subject, pick("plural"), pick("singular"))
    other = torch.where(attractor, pick("plural"), pick("singular"))
    verb = torch.where(subject, pick("verb of plural"), pick("verb of singular"))
    pad, end = torch.zeros(n, dtype=torch.long), torch.full((n,), END)
    middle = torch.stack([pick("preposition"), pick("determiner"), other], 1)
    tail = torch.stack(
        [verb, pick("determiner"), pick("object"), torch.where(adverb, pick("adverb"), end),
         torch.where(adverb, end, pad)], 1
    )  # fmt: skip
    head = torch.stack([pick("determiner"), first], 1)
    whole = torch.cat([head, middle, tail], 1)
    short = torch.cat([head, tail, torch.zeros(n, 3, dtype=torch.long)], 1)
    return Sentences(
        words=torch.where(long[:, None], whole, short),
        subject_plural=subject,
        attractor_plural=attractor & long,
        verb_at=torch.where(long, PREFIX, 2),
    )


def is_grammatical(words: Tensor) -> Tensor:
    """Whether each row is a sentence or the beginning of one, `[n]` bool.

    Args:
        words: word numbers `[n, t]`; zeros after the end.

    Two sequences of kinds are possible, with and without an attractor; a verb must agree.
    """
    kind = torch.full((len(WORDS),), -1)
    for k, ids in enumerate(KINDS.values()):
        kind[list(ids)] = k
    determiner, singular, plural, preposition, of_one, of_many, thing, adverb = range(8)
    nouns, tail = {singular, plural}, [{determiner}, {thing}]
    found = []
    for row in words.tolist():
        ended = row.index(END) if END in row else len(row)
        body = [int(kind[w]) for w in row[:ended] if w]
        fine = all(w == 0 for w in row[ended + 1 :])
        agree = {of_many} if len(body) > 1 and body[1] == plural else {of_one}
        short = [{determiner}, nouns, agree, *tail, {adverb}]
        whole = [{determiner}, nouns, {preposition}, {determiner}, nouns, agree, *tail, {adverb}]
        fits = [
            len(body) <= len(form)
            and all(k in allowed for k, allowed in zip(body, form, strict=False))
            and (END not in row or len(body) >= len(form) - 1)
            for form in (short, whole)
        ]
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
        self.blocks = nn.ModuleList(_Block(width, n_heads) for _ in range(n_layers))
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


class _Block(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.hidden, self.back = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        parts = self.query_key_value(self.norm1(h)).unflatten(-1, (3 * self.n_heads, -1))
        query, key, value = parts.transpose(1, 2).chunk(3, dim=1)
        read = F.scaled_dot_product_attention(query, key, value, is_causal=True)
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
        _Block,
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
        p = p + torch.tensor(float(size["verb of plural"])).log()
        p = p + torch.tensor(float(size["determiner"] * size["object"])).log()
        p = p + torch.tensor(2.0).log()  # an adverb or none
        if any(w in KINDS["adverb"] for w in body):
            p = p + torch.tensor(float(size["adverb"])).log()
        total, n_words = total + p.item(), n_words + len(body) - 1
    return torch.tensor(total / n_words)
