"""open_clip's published image-text models as encoders, from a local file or its own cache.

Nothing is downloaded here: weights that are not on this machine are named in one sentence.

Public names: `fetch`, `DEFAULT`.

Source: document 2 uses CLIP and does not name its size; CLIP-Dissect's default is ViT-B/16.
Specification section 5 of document 2. Computed in float32, where the reference uses float16.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.data.base import DamagedData, MissingData
from lib.monitoring.encoder import Encoder
from lib.monitoring.encoder_training import NEEDS

DEFAULT = "ViT-B-16-quickgelu"
OPENAI = "openai"
FIXED = (  # their embeddings name the encoder
    *("cat", "car", "tree", "red", "striped"),
    *("wood", "window", "street", "windmill", "field"),
)
STORED = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # names on the hub
MEAN, SD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def fetch(
    name: str = DEFAULT, weights: str | Path = OPENAI, *, device: torch.device | str = "cpu"
) -> Encoder:
    """A published model as an encoder.

    Args:
        name: open_clip's name of the model.
        weights: open_clip's tag, looked for in the caches of open_clip, or a local file.
        device: to compute on.

    Raises:
        ImportError: open_clip is not installed.
        ValueError: an unknown name or tag, or one for the wrong activation function.
        MissingData: the weights are not on this machine.
        DamagedData: a file that does not hold this model's weights.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ImportError(NEEDS) from error
    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"open_clip has no model {name!r}; `open_clip.list_models()` lists them")
    tag = weights if isinstance(weights, str) else weights.name
    details = open_clip.get_pretrained_cfg(name, tag) if isinstance(weights, str) else {}
    if isinstance(weights, str) and not details:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(name))
        raise ValueError(f"no weights {tag!r} for {name}; open_clip knows {known or 'none'}")
    wants_quick = bool(details.get("quick_gelu") or OPENAI in tag.lower())
    if wants_quick and not config.get("quick_gelu"):
        raise ValueError(
            f"weights {tag!r} were trained with QuickGELU, which model {name} lacks: embeddings "
            f"would be slightly wrong; ask for {name}-quickgelu"
        )
    path = weights if isinstance(weights, Path) else _cached(name, tag, details)
    if not path.is_file():
        raise MissingData(f"no weights of {name} at {path}; give the path of a file that is there")
    model = open_clip.create_model(name, pretrained=None)
    try:
        open_clip.load_checkpoint(model, str(path))
    except Exception as error:  # of many kinds: another model, a truncated file, no weights
        raise DamagedData(f"{path} does not hold the weights of {name}: {error}") from error
    model = model.to(device).eval()
    side = config["vision_cfg"]["image_size"]
    digest = _digest(model, open_clip.get_tokenizer(name), f"{name} {tag}", device)
    ready = _preparer(side, details.get("mean", MEAN), details.get("std", SD))
    return Encoder(model, ready, open_clip.get_tokenizer(name), f"{name} ({tag})", digest)


def _cached(name: str, tag: str, details: Mapping[str, object]) -> Path:
    """Where open_clip would have put the weights.

    Raises:
        MissingData: nowhere.
    """
    from huggingface_hub import try_to_load_from_cache

    repository = str(details.get("hf_hub") or "").rstrip("/")
    if repository.count("/") == 1:
        for file in STORED:
            found = try_to_load_from_cache(repository, file)
            if isinstance(found, str):
                return Path(found)
    url = str(details.get("url") or "")
    direct = Path.home() / ".cache" / "clip" / url.rpartition("/")[2]
    if url and direct.is_file():
        return direct
    raise MissingData(
        f"CLIP weights {name} ({tag}) are not on this machine: wanted in open_clip's cache (about "
        f'600 MB; licence: MIT for {OPENAI}); fetch them with `python -c "import open_clip; '
        f"open_clip.create_model_and_transforms('{name}', pretrained='{tag}')\"` or give the path "
        "of a local file as `weights`"
    )


def _preparer(side: int, mean: Sequence[float], sd: Sequence[float]) -> Callable[[Tensor], Tensor]:
    """Preparation of images uint8 `[n, h, w, 3]`: shorter side to `side`, centre, standardised."""
    centre, spread = (torch.tensor(list(x))[:, None, None] for x in (mean, sd))

    def prepare(pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2).float() / 255
        scale = side / min(x.shape[2:])
        size = [max(side, round(scale * k)) for k in x.shape[2:]]
        x = F.interpolate(x, size=size, mode="bicubic", align_corners=False, antialias=True)
        top, left = ((k - side) // 2 for k in size)
        x = x[:, :, top : top + side, left : left + side].clamp(0, 1)
        return (x - centre) / spread

    return prepare


@torch.no_grad()
def _digest(
    model: nn.Module,
    tokens: Callable[[Sequence[str]], Tensor],
    name: str,
    device: torch.device | str,
) -> str:
    """16 hexadecimal digits of the name and of ten fixed words' embeddings, to three decimals."""
    found = F.normalize(model.encode_text(tokens(list(FIXED)).to(device)), dim=-1)  # type: ignore[operator]
    rounded = (found.float().cpu() * 1000).round().to(torch.int16)
    return hashlib.sha256(name.encode() + rounded.numpy().tobytes()).hexdigest()[:16]
