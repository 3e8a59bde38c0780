"""Training of the small image-text encoder on scenes and their captions.

The model is open_clip's `CLIP` with a text tower of two layers over the hundred tokens that
captions use, and a small convolutional network in place of its image tower. The loss is the
symmetric contrastive one with several positives: a caption belongs to its own image, and a caption
of bare words to every image of the batch in which all of them are visible. A second term sets the
bare texture words against each other: captions that differ in nothing but the texture.

Public names: `Settings`, `FIRST`, `Tokens`, `build`, `train`, `positives`, `contrastive`,
`among_words`.

Source: specification of document 2, section 4.3.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from lib.data.scenes import captions
from lib.data.scenes.painting import SIDE
from lib.data.scenes.shading import SURFACES
from lib.data.scenes.shapes import SHAPES
from lib.data.scenes.vocabulary import TEXTURES, WORDS, value
from lib.data.scenes.world import SEEDS, chunks, prepare
from lib.models import initialise

Progress = Callable[[range], Iterator[int]]
LARGEST_SCALE = 100.0  # of similarities, as CLIP's
SHORT = 6  # tokens: texts up to this length are encoded apart, so that most are not padded
EMBEDDING_SD = 0.02
NEEDS = (
    "the image-text encoder needs the package open_clip_torch of requirements.txt; Network "
    "Dissection and the coverage oracle work without it"
)


# Swatches and close-ups are more frequent than in the probing set, where textures and things alone
# in an image are rare: the specification's mix, 400 steps and 20,480 pairs left both below their
# floors (.48 of texture swatches and .39 of close-ups right, on probing seed 0).
MIX = (
    ("scene", 0.40),
    ("texture", 0.20),
    ("material", 0.12),
    ("colour", 0.04),
    ("close-up", 0.24),
)


@dataclass(frozen=True)
class Settings:
    """Sizes and recipe; with the world's code and a seed they determine the weights."""

    n_pairs: int = 30_720
    kinds: tuple[tuple[str, float], ...] = MIX  # of the images
    steps: int = 560
    batch_size: int = 192
    embed: int = 128
    length: int = 48  # most tokens of a caption; 32 would not do: "zigzagged" alone has three
    width: int = 128
    heads: int = 4
    layers: int = 2
    lr: float = 2.5e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05  # on matrices and filters alone
    warm_up: int = 40  # steps
    last_lr: float = 0.02  # share of lr at the end of the cosine
    shift: int = 2  # pixels, largest
    texture_weight: float = 1.0  # of the texture words' term in the loss


FIRST = Settings()


class Tower(nn.Module):
    """The image tower: six convolutions; means at three resolutions and the last one's maxima."""

    def __init__(self, embed: int) -> None:
        super().__init__()
        self.high = _block(3, 24, 5, 2)
        self.middle = nn.Sequential(
            _block(24, 32, 3, 2), _block(32, 64, 3, 1), _block(64, 64, 3, 1)
        )
        self.low = nn.Sequential(_block(64, 96, 3, 2), _block(96, 96, 3, 1))
        self.out = nn.Linear(24 + 64 + 96 + 96, embed)

    def forward(self, x: Tensor) -> Tensor:
        high = self.high(x)
        middle = self.middle(high)
        low = self.low(middle)
        means = [h.mean(dim=(2, 3)) for h in (high, middle, low)]
        return self.out(torch.cat([*means, low.amax(dim=(2, 3))], dim=1))


def _block(fan_in: int, fan_out: int, size: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(fan_in, fan_out, size, stride, size // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(fan_out), nn.ReLU())


def build(settings: Settings, generator: torch.Generator) -> nn.Module:
    """The untrained model, every weight drawn from `generator`.

    Raises:
        ImportError: open_clip is not installed.
    """
    try:
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    except ImportError as error:
        raise ImportError(NEEDS) from error
    text = CLIPTextCfg(
        context_length=settings.length,
        vocab_size=len(compact_ids()),
        width=settings.width,
        heads=settings.heads,
        layers=settings.layers,
    )
    vision = CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=SIDE, image_size=SIDE)
    with torch.random.fork_rng(devices=[]):  # its constructor draws weights of its own
        model = CLIP(settings.embed, vision, text)
    model.visual = Tower(settings.embed)
    return _initialise(model, generator)


@torch.no_grad()
def _initialise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    initialise(model.visual, generator)  # type: ignore[arg-type]
    for name, weight in model.named_parameters():
        last = name.rpartition(".")[2]
        if name.startswith("visual.") or name == "logit_scale":
            continue
        if "embedding" in name:
            weight.normal_(0.0, EMBEDDING_SD, generator=generator)
        elif weight.ndim >= 2:  # `text_projection` has its inputs first
            fan_in = len(weight) if last == "text_projection" else weight[0].numel()
            weight.normal_(0.0, fan_in**-0.5, generator=generator)
        elif last == "weight":  # of layer normalisation
            weight.fill_(1.0)
        else:
            weight.zero_()
    return model


class Tokens:
    """open_clip's own tokens, numbered by rank among those that captions can have."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Rows of token numbers `[n, length]`: start, text, end, zeros.

        Raises:
            ValueError: a word that no caption has, or a text that is too long.
        """
        rank = {token: k for k, token in enumerate(compact_ids())}
        start, end = rank[special()[0]], rank[special()[1]]
        rows = torch.zeros(len(texts), self.length, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            numbers = [start]
            for word in text.lower().split():
                tokens = bpe(word)
                if any(token not in rank for token in tokens):
                    raise ValueError(
                        f"the encoder was never taught the word {word!r} (in {text!r}); it knows "
                        f"{', '.join(WORDS)}"
                    )
                numbers += [rank[token] for token in tokens]
            if len(numbers) >= self.length:
                raise ValueError(f"{text!r} has more than {self.length - 2} tokens; shorten it")
            row[: len(numbers) + 1] = torch.tensor([*numbers, end])
        return rows


@functools.cache
def _tokenizer() -> object:
    try:
        from open_clip.tokenizer import SimpleTokenizer
    except ImportError as error:
        raise ImportError(NEEDS) from error
    return SimpleTokenizer()


@functools.cache
def bpe(word: str) -> tuple[int, ...]:
    """open_clip's token numbers of one word."""
    return tuple(_tokenizer().encode(word))  # type: ignore[attr-defined]


def special() -> tuple[int, int]:
    """Token numbers of the start and of the end of a text; the end is the largest of all."""
    tokenizer = _tokenizer()
    return tokenizer.sot_token_id, tokenizer.eot_token_id  # type: ignore[attr-defined]


@functools.cache
def compact_ids() -> tuple[int, ...]:
    """Sorted token numbers of everything that a caption can say, with start and end.

    The end stays the largest, so the tower still finds it by its largest number; number 0 also
    fills rows up, which does no harm after the end.
    """
    words = [*WORDS, *captions.GRAMMAR.split(), captions.SEPARATOR]
    return tuple(sorted({token for word in words for token in bpe(word)} | set(special())))


def encode_texts(model: nn.Module, rows: Tensor) -> Tensor:
    """Unit embeddings `[b, D]` of token rows; as the model's own, without computing on padding.

    Attention looks back only, so what follows the end changes nothing: each half, the short texts
    and the others, is cut to its longest.
    """
    lengths = rows.argmax(1) + 1
    out = torch.empty(len(rows), model.text_projection.shape[1])  # type: ignore[arg-type, index]
    for part in (lengths <= SHORT, lengths > SHORT):
        at = part.nonzero()[:, 0]
        if len(at):
            n = int(lengths[at].max())
            cut = {
                "positional_embedding": model.positional_embedding[:n],  # type: ignore[index]
                "attn_mask": model.attn_mask[:n, :n],  # type: ignore[index]
            }
            found = functional_call(model, cut, (None, rows[at, :n]))[1]
            out = out.index_copy(0, at, found)
    return out


def positives(short: Tensor, visible: Tensor) -> Tensor:
    """Which captions belong to which images of a batch: float32 `[b, b]`, images in rows.

    Args:
        short: words of short captions as label values, 0 for none, `[b, 2]`; zeros for long ones.
        visible: which concepts each image shows, bool `[b, C]`.
    """
    shows = F.pad(visible, (1, 0), value=True)  # no word is always there
    both = shows[:, short[:, 0]] & shows[:, short[:, 1]]
    both &= short[:, 0] > 0
    return (both | torch.eye(len(short), dtype=torch.bool)).float()


def contrastive(similarity: Tensor, belongs: Tensor) -> Tensor:
    """Mean cross-entropy of images among captions and captions among images.

    Args:
        similarity: scaled cosines `[b, b]`, images in rows.
        belongs: 1 where a caption is a positive of an image, `[b, b]`; targets are its rows and
            columns, each divided by its sum.
    """
    of_images = belongs / belongs.sum(1, keepdim=True)
    of_texts = belongs.T / belongs.T.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(similarity, of_images) + F.cross_entropy(similarity.T, of_texts))


def among_words(similarity: Tensor, shows: Tensor) -> Tensor:
    """Mean cross-entropy of images among alternative words, and of words among images.

    Args:
        similarity: scaled cosines `[b, c]` of images and words.
        shows: which of the words each image shows, bool `[b, c]`; images that show none count
            among a word's images alone, and words that no image shows among an image's words.

    Source: ours. In a batch the captions that name a texture differ in much else, so the
    contrastive loss hardly asks which texture it is.
    """
    loss = similarity.new_zeros(())
    for scores, belongs in ((similarity, shows), (similarity.T, shows.T)):
        some = belongs.any(1)
        if some.any():
            target = belongs[some].float()
            loss = loss + F.cross_entropy(scores[some], target / target.sum(1, keepdim=True))
    return 0.5 * loss


def train(settings: Settings, seed: int, *, progress: Progress | None = None) -> dict[str, Tensor]:
    """The trained model's state.

    Raises:
        ImportError: open_clip is not installed.
        ValueError: the loss became NaN or infinite.
    """
    generator = torch.Generator().manual_seed(seed)
    model = build(settings, generator).train()
    images, texts, short, visible = _pairs(settings, seed)
    bare, columns = Tokens(settings.length)(TEXTURES), [value(word) - 1 for word in TEXTURES]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        settings.lr,
        settings.betas,
    )
    order = _order(len(images), settings, generator)
    steps = range(settings.steps)
    for step in progress(steps) if progress else steps:
        rows = next(order)
        for group in optimizer.param_groups:
            group["lr"] = settings.lr * rate(step, settings)
        x = _moved(prepare(images[rows]), settings.shift, generator)
        # as in `lib.training.loop.train`: convolutions are fastest on this layout
        a = F.normalize(model.visual(x.contiguous(memory_format=torch.channels_last)), dim=-1)  # type: ignore[operator]
        b = encode_texts(model, torch.cat([texts[rows], bare]))
        s = model.logit_scale.exp() * a @ b.T  # type: ignore[operator]
        loss = contrastive(s[:, : len(rows)], positives(short[rows], visible[rows]))
        textures = among_words(s[:, len(rows) :], visible[rows][:, columns])
        loss = loss + settings.texture_weight * textures
        if not torch.isfinite(loss):
            raise ValueError(f"the loss is {loss.item()} at step {step}; lower the lr")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(LARGEST_SCALE))  # type: ignore[operator]
    return {k: v.detach().contiguous() for k, v in model.state_dict().items()}


def rate(step: int, settings: Settings) -> float:
    """Factor on the learning rate: linear up, then a cosine down to `last_lr`."""
    if step < settings.warm_up:
        return (step + 1) / settings.warm_up
    done = (step - settings.warm_up) / max(1, settings.steps - settings.warm_up)
    return settings.last_lr + (1 - settings.last_lr) * 0.5 * (1 + math.cos(math.pi * done))


def _pairs(settings: Settings, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images uint8, token rows, words of short captions, visible concepts; piece by piece."""
    tokens = Tokens(settings.length)
    images, rows, short, visible = [], [], [], []
    for part in chunks(settings.n_pairs, SEEDS["encoder"] + seed, kinds=settings.kinds):
        images.append(part.images)
        rows.append(tokens(part.captions))
        short.append(part.short)
        visible.append(part.visible())
    return torch.cat(images), torch.cat(rows), torch.cat(short), torch.cat(visible)


def _order(n: int, settings: Settings, generator: torch.Generator) -> Iterator[Tensor]:
    """Batches of rows without end; each pass over the data is in a new order."""
    if n < settings.batch_size:
        raise ValueError(f"want at least a batch of {settings.batch_size} pairs, got {n}")
    while True:
        for rows in torch.randperm(n, generator=generator).split(settings.batch_size):
            if len(rows) == settings.batch_size:
                yield rows


def _moved(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Images shifted by up to `most` pixels, edges repeated, and mirrored with chance 1/2."""
    n, _, h, w = x.shape
    down, right = torch.randint(-most, most + 1, (2, n, 1), generator=generator)
    mirror = torch.rand(n, 1, generator=generator) < 0.5
    rows = (torch.arange(h) + down).clamp(0, h - 1)
    columns = (torch.arange(w) + right).clamp(0, w - 1)
    columns = torch.where(mirror, columns.flip(1), columns)
    image = torch.arange(n)[:, None, None]
    return x.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def config(settings: Settings, seed: int) -> dict[str, object]:
    """What the cache's key is made of, beside the code."""
    kinds = [list(pair) for pair in settings.kinds]
    return {**asdict(settings), "betas": list(settings.betas), "kinds": kinds, "seed": seed}


# what following names from `train` does not find: methods reached through tables
CODE: tuple[Callable[..., object], ...] = (
    train,
    *SHAPES.values(),
    *SURFACES.values(),
    *captions.LONG.values(),
)
