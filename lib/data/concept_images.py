"""Real images with labels of pixels: street scenes, clothing with body parts, ten textures.

Layout below DATA_ROOT: three archives of JPEG images with masks in `concept_images/`. Together they
are one annotated probing set:

    object    CamVid's eleven labels and garments of Clothing Co-Parsing
    part      skin and hair of Clothing Co-Parsing
    texture   the class of an image of the Describable Textures Dataset, as a whole-image label
    color     nearest of eleven colours, computed here from the pixels of every image

There are no labels of materials and scenes: such claims cannot be judged on these images.

Public names: `load`, `ConceptImages`, `nearest_colours`, `FILES`.

Source: stands in for Broden in document 2 (issue of part 2). CamVid: CC BY-NC 4.0; Clothing
Co-Parsing: Apache-2.0; DTD: none stated.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lib import config
from lib.data import imagenet
from lib.data.annotations import CATEGORIES, Annotations, Concept
from lib.data.base import (
    DamagedData,
    Expected,
    MissingData,
    Progress,
    Provenance,
    decode_images,
    open_archive,
    sha256_of,
    verify_file,
)
from lib.data.scenes.vocabulary import COLOURS

CAMVID, CLOTHING = "concept_images/camvid.npz", "concept_images/clothing_parsing.npz"
FILES = (CAMVID, CLOTHING, imagenet.TEXTURES)
NOTHING = ("unlabelled", "null")  # labels that name no concept
BODY_PARTS = ("skin", "hair")
LEVELS = 64  # of a channel, in the table of nearest colours
WHOLE = Expected(
    {
        CAMVID: "sha256:06b267500ea2a3ed7b3a2cc0acc905bb94e305ae38c21d18499c85c251047764",
        CLOTHING: "sha256:8239d297020bbc2f952b2e84d5bb16b5c5d6903e40fca81659936216bf04f014",
        **imagenet.DTD.checksums,
    },
    train=imagenet.DTD.train,
)
LICENCE = "CC BY-NC 4.0 (CamVid), Apache-2.0 (clothing), none stated (DTD)"


@dataclass(frozen=True)
class ConceptImages:
    """The annotated set."""

    images: Tensor  # uint8 [n, 112, 112, 3]
    annotations: Annotations  # planes at half the side: colour, then objects and parts
    ids: tuple[str, ...]
    groups: tuple[str, ...]  # the photograph an image was cut from: split by it
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.ids)


def load(
    root: Path | None = None, *, expected: Expected = WHOLE, progress: Progress | None = None
) -> ConceptImages:
    """Read the three archives.

    Args:
        root: default DATA_ROOT.
        expected: checksums, and rows of each texture.
        progress: wraps the loops that decode images.

    Raises:
        MissingData: an archive is not there.
        DamagedData: a checksum, mask or label is not as it should be.
    """
    root = root or config.data_root()
    for file in FILES:
        if not (root / file).is_file():
            raise MissingData(
                f"the segmented images are not found: wanted {root / file} (archives of 4,610 "
                f"images, 21 MiB; licence: {LICENCE}); set DATA_ROOT to a folder that has them"
            )
    street = _segmented(root, CAMVID, expected, progress)
    clothes = _segmented(root, CLOTHING, expected, progress)
    textures = imagenet.load_textures(root, expected=expected, progress=progress)
    names = [_category(word) for part in (street, clothes) for word in part.names]
    names += [("texture", word) for word in textures.names]
    concepts = _concepts(names)
    place = {(c.category, c.word): k for k, c in enumerate(concepts, 1)}
    labels = []
    for part in (street, clothes):
        table = torch.tensor([0, *(place[_category(word)] for word in part.names)])
        labels.append(table[part.masks.long()])
    squares = textures.x.permute(0, 2, 3, 1)
    images = torch.cat([street.images, clothes.images, squares])
    labels.append(torch.zeros(squares.shape[:3], dtype=torch.int64))
    planes = torch.stack([nearest_colours(images), torch.cat(labels)[:, ::2, ::2]], 1)
    row = torch.arange(len(images))
    is_street, is_texture = row < len(street.images), row >= len(images) - len(squares)
    whole = torch.zeros(len(images), 1, dtype=torch.int32)
    texture = torch.tensor([place["texture", word] for word in textures.names])
    whole[is_texture, 0] = texture[textures.y].int()
    annotated = torch.zeros(len(images), len(CATEGORIES), dtype=torch.bool)
    annotated[:, CATEGORIES.index("color")] = True
    annotated[:, CATEGORIES.index("object")] = ~is_texture
    annotated[:, CATEGORIES.index("part")] = ~is_street & ~is_texture
    annotated[:, CATEGORIES.index("texture")] = is_texture
    groups = [f"camvid/{x}" for x in street.sources] + [f"clothing/{x}" for x in clothes.sources]
    groups += [f"dtd/{k}" for k in range(len(squares))]
    provenance = Provenance(
        "segmented images",
        "CamVid, Clothing Co-Parsing, Describable Textures Dataset (10 of 47 classes)",
        LICENCE,
        sha256_of(images, planes, whole),
        len(images),
        "squares of 112 pixels; colours computed from pixels",
    )
    found = Annotations(concepts, planes.to(torch.int16), whole, annotated)
    ids = tuple(f"{group}/{k}" for k, group in enumerate(groups))
    return ConceptImages(images, found, ids, tuple(groups), provenance)


@dataclass(frozen=True)
class _Segmented:
    images: Tensor  # uint8 [n, h, w, 3]
    masks: Tensor  # uint8 [n, h, w]: 0 none, else place in names plus one
    names: tuple[str, ...]  # of the labels that some pixel has
    sources: tuple[str, ...]


def _segmented(root: Path, file: str, expected: Expected, progress: Progress | None) -> _Segmented:
    if file in expected.checksums:
        verify_file(root / file, expected.checksums[file])
    wanted = ["jpeg", "offsets", "masks", "label_names", "source"]
    arrays = open_archive(root / file, wanted)
    pixels = decode_images(arrays["jpeg"], arrays["offsets"], progress=progress)  # type: ignore[arg-type]
    masks, words = arrays["masks"], [str(word) for word in arrays["label_names"]]
    if masks.shape != pixels.shape[:3] or len(arrays["source"]) != len(pixels):
        raise DamagedData(
            f"{file}: masks {list(masks.shape)} and {len(arrays['source'])} sources do not fit "
            f"images {list(pixels.shape)}; fetch it again"
        )
    counts = np.bincount(masks.reshape(-1), minlength=len(words))
    if len(counts) > len(words):
        raise DamagedData(f"{file}: label {len(counts) - 1} has no name; fetch it again")
    kept = [k for k, word in enumerate(words) if word not in NOTHING and counts[k]]
    table = np.zeros(len(words), np.uint8)
    table[kept] = np.arange(1, len(kept) + 1)
    return _Segmented(
        torch.from_numpy(pixels),
        torch.from_numpy(table[masks]),
        tuple(words[k] for k in kept),
        tuple(str(x) for x in arrays["source"]),
    )


def _category(word: str) -> tuple[str, str]:
    return ("part" if word in BODY_PARTS else "object", word)


def _concepts(names: list[tuple[str, str]]) -> tuple[Concept, ...]:
    """Colours first, then the others by category; a name that two sets share is one concept."""
    colours = [("color", word) for word, _ in COLOURS]
    order = {category: k for k, category in enumerate(CATEGORIES)}
    own = sorted(dict.fromkeys(colours + names), key=lambda pair: order[pair[0]])
    return tuple(
        Concept(k, word + ("-c" if category == "color" else ""), word, category)
        for k, (category, word) in enumerate(own, 1)
    )


def nearest_colours(images: Tensor, *, chunk: int = 256) -> Tensor:
    """Label of the nearest of the eleven basic colours, for every 2x2 pixels.

    Means of 2x2 pixels, rounded to 64 levels a channel so that a table answers, and the palette of
    `lib.data.scenes` are compared in CIELAB, where distance is about what an eye sees. Broden's
    colour labels come from names that people gave to colours; this is a substitute.

    Args:
        images: uint8 `[n, h, w, 3]`.

    Returns:
        int64 `[n, h // 2, w // 2]`, 1 to 11 in the order of the palette.
    """
    palette = _lab(torch.tensor([rgb for _, rgb in COLOURS]))
    level = (torch.arange(LEVELS) + 0.5) / LEVELS
    table = torch.cdist(_lab(torch.cartesian_prod(level, level, level)), palette).argmin(1) + 1
    found = []
    for part in images.split(chunk):
        small = F.avg_pool2d(part.permute(0, 3, 1, 2).float(), 2).permute(0, 2, 3, 1)
        red, green, blue = (small * (LEVELS / 256)).long().unbind(-1)
        found.append(table[(red * LEVELS + green) * LEVELS + blue])
    return torch.cat(found)


def _lab(rgb: Tensor) -> Tensor:
    """CIELAB of sRGB colours `[..., 3]` in 0 to 1, white point D65."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor(
        [
            [0.4124564, 0.3575761, 0.1804375],
            [0.2126729, 0.7151522, 0.0721750],
            [0.0193339, 0.1191920, 0.9503041],
        ]
    )
    xyz = linear @ to_xyz.T / to_xyz.sum(1)
    f = torch.where(xyz > (6 / 29) ** 3, xyz.clamp_min(1e-9) ** (1 / 3), xyz * 841 / 108 + 4 / 29)
    x, y, z = f.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)
