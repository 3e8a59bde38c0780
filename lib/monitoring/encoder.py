"""Image-text encoders: images and words as unit vectors of one space.

`Encoder`  what a concept detector needs: embeddings of images and of words, a name and a digest.
`fetch`    the small encoder that is trained here on captions of scenes, through the cache.
`save`, `load`  the same as a file for somebody else; another world or recipe is refused.
`oracle`   the perfect encoder of annotated images: similarity is standardised coverage.

How it is trained is in `encoder_training.py`, how good it is in `encoder_floors.py`, open_clip's
published weights are in `encoder_pretrained.py`.

Source: document 2 uses CLIP's two towers; the small one is specification section 4.3 of document
2. Words are embedded bare, without a prompt (section 1.1).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import cache
from lib.data.annotations import Annotations
from lib.data.scenes.world import prepare
from lib.features import evaluating
from lib.files import write_whole
from lib.monitoring import encoder_training
from lib.monitoring.encoder_training import FIRST, Settings, Tokens

IMAGE_CHUNK, WORD_CHUNK = 512, 512
NAME = "scenes"
SMALLEST_SD = 1e-6  # of coverage: a concept that varies less is in no image, or in all


@dataclass(frozen=True)
class Encoder:
    """Two towers with what they read."""

    model: nn.Module  # with open_clip's encode_image and encode_text
    prepare: Callable[[Tensor], Tensor]  # images uint8 [n, h, w, 3] to what the model reads
    tokens: Callable[[Sequence[str]], Tensor]  # texts to rows of token numbers
    name: str
    digest: str  # names the encoder in every result

    @torch.no_grad()
    def images(self, x: Tensor) -> Tensor:
        """Unit embeddings of images uint8 `[n, h, w, 3]`: float32 `[n, D]`, on the CPU.

        Raises:
            ValueError: another shape or type.
        """
        if x.ndim != 4 or x.shape[-1] != 3 or x.dtype != torch.uint8 or not len(x):
            raise ValueError(f"want images uint8 [n, h, w, 3], got {x.dtype} {list(x.shape)}")
        return self._embedded(x.split(IMAGE_CHUNK), self.prepare, "encode_image")

    @torch.no_grad()
    def words(self, words: Sequence[str]) -> Tensor:
        """Unit embeddings of words or captions: float32 `[c, D]`, on the CPU.

        Raises:
            ValueError: no words, or one that the encoder was not taught.
        """
        if isinstance(words, str) or not len(words):
            raise ValueError(f"want a list of words with at least one, got {words!r}")
        rows = self.tokens(words)
        return self._embedded(rows.split(WORD_CHUNK), lambda t: t, "encode_text")

    def similarities(self, x: Tensor, words: Sequence[str]) -> Tensor:
        """Cosines of images uint8 `[n, h, w, 3]` and words: float32 `[n, c]`."""
        return self.images(x) @ self.words(words).T

    def _embedded(
        self, parts: Sequence[Tensor], ready: Callable[[Tensor], Tensor], method: str
    ) -> Tensor:
        device = next(self.model.parameters()).device
        with evaluating(self.model):
            encode = getattr(self.model, method)
            return torch.cat(
                [
                    F.normalize(encode(ready(part).to(device)), dim=-1).float().cpu()
                    for part in parts
                ]
            )


def fetch(
    seed: int = 0,
    settings: Settings = FIRST,
    *,
    progress: encoder_training.Progress | None = None,
) -> Encoder:
    """The encoder trained on captions of scenes, at most once (3 minutes on two cores).

    Raises:
        ImportError: open_clip is not installed.
    """
    state = cache.fetch(
        "encoder",
        encoder_training.config(settings, seed),
        lambda: encoder_training.train(settings, seed, progress=progress),
        code=encoder_training.CODE,
    )
    return _encoder(settings, state, digest_of(settings, seed))


def digest_of(settings: Settings = FIRST, seed: int = 0) -> str:
    """16 hexadecimal digits: a hash of the world's and the training's code, settings and seed."""
    return cache.key_of("encoder", encoder_training.config(settings, seed), encoder_training.CODE)


def _encoder(settings: Settings, state: dict[str, Tensor], digest: str) -> Encoder:
    model = encoder_training.build(settings, torch.Generator().manual_seed(0))
    model.load_state_dict(state)
    return Encoder(model.eval(), prepare, Tokens(settings.length), NAME, digest)


def save(encoder: Encoder, path: Path) -> None:
    """Write the small encoder's weights with its digest, whole or not at all."""
    from safetensors.torch import save as serialised

    state = {k: v.detach().cpu().contiguous() for k, v in encoder.model.state_dict().items()}
    write_whole(path, serialised(state, {"encoder": json.dumps([encoder.name, encoder.digest])}))


def load(path: Path, seed: int = 0, settings: Settings = FIRST) -> Encoder:
    """Read an encoder that `save` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, or the weights are of another world, recipe or seed.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no encoder at {path}; `fetch` trains one")
    try:
        with safe_open(path, "pt") as file:
            note = (file.metadata() or {}).get("encoder")
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path.name} is not a whole file of weights ({error})") from error
    wanted = [NAME, digest_of(settings, seed)]
    came = json.loads(note) if note else None
    if came != wanted:
        raise ValueError(
            f"{path.name} holds encoder {came}, want {wanted}: its scenes, recipe or seed are not "
            "these; train it again with `fetch`"
        )
    return _encoder(settings, state, wanted[1])


def oracle(annotations: Annotations) -> Tensor:
    """Similarities of the perfect encoder: coverage, each concept standardised, `[N, C]`.

    A concept that no image shows, or all alike, has zeros. Source: specification section 4.4: run
    next to the trained encoder it separates an encoder's error from the network's behaviour.
    """
    coverage = annotations.coverage()
    sd = coverage.std(0, correction=0)
    centred = coverage - coverage.mean(0)
    return torch.where(sd > SMALLEST_SD, centred / sd.clamp_min(SMALLEST_SD), 0.0)
