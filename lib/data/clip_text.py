"""CLIP's text embeddings of 1,203 object names: a basis and anchors where no CLIP is installed.

Layout below DATA_ROOT: ``clip_text/lvis_clip_vitb32_text.npz``, embeddings of "a <name>" by CLIP
ViT-B/32 for the names of LVIS. The image side is not there, so nothing can be said of images.

Public names: `load`, `WordVectors`, `FILE`.

Source: document 2 takes its embedding space from CLIP's text tower (issue of part 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lib import config
from lib.data.base import (
    DamagedData,
    Expected,
    Provenance,
    missing,
    open_archive,
    sha256_of,
    verify_file,
)

FILE = "clip_text/lvis_clip_vitb32_text.npz"
WHOLE = Expected(
    {FILE: "sha256:5962bfd50be11b7f3225298d250d6c4f5fcd987320899e2aacf7793f33d4b6cd"}, train=(1203,)
)


@dataclass(frozen=True)
class WordVectors:
    """Words and their unit vectors."""

    words: tuple[str, ...]
    vectors: Tensor  # float32 [n, 512]
    provenance: Provenance

    def of(self, words: Sequence[str]) -> Tensor:
        """Vectors of some words, `[m, 512]`.

        Raises:
            ValueError: a word that has none.
        """
        place = {word: k for k, word in enumerate(self.words)}
        unknown = [word for word in words if word not in place]
        if unknown:
            raise ValueError(
                f"no stored CLIP embedding of {', '.join(map(repr, unknown))}; choose among the "
                f"{len(self.words):,} names in `words`, or use an encoder"
            )
        return self.vectors[[place[word] for word in words]]


def load(root: Path | None = None, *, expected: Expected = WHOLE) -> WordVectors:
    """The names, without underscores and what they put in brackets kept, with their vectors.

    Raises:
        MissingData: the file is not there.
        DamagedData: another checksum, or arrays that do not fit.
    """
    root = root or config.data_root()
    path = root / FILE
    if not path.is_file():
        raise missing("CLIP's text embeddings", root, [FILE], public=False)
    if FILE in expected.checksums:
        verify_file(path, expected.checksums[FILE])
    arrays = open_archive(path, ["embeddings", "names"])
    vectors = torch.from_numpy(arrays["embeddings"].astype("float32"))
    words = tuple(str(name).replace("_", " ") for name in arrays["names"])
    if vectors.ndim != 2 or len(words) != len(vectors) or len(words) != expected.train[0]:
        raise DamagedData(
            f"{path.name}: {len(words)} names and embeddings {list(vectors.shape)}, want "
            f"{expected.train[0]} of each; fetch it again"
        )
    if len(set(words)) < len(words):
        raise DamagedData(f"{path.name} has a name twice; fetch it again")
    vectors = F.normalize(vectors, dim=1)
    source = "facebookresearch/Detic (CLIP ViT-B/32, OpenAI; names of LVIS)"
    return WordVectors(
        words,
        vectors,
        Provenance("CLIP text", source, "Apache-2.0", sha256_of(vectors), len(words)),
    )
