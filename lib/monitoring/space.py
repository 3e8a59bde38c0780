"""One space for concepts, units and words, and one map of it.

A concept is its text embedding v. A unit is the weighted mean of the embeddings of its k best
concepts (Eq. 1): ``u = sum_j lambda_j v_j`` with ``lambda = softmax(h / theta)``. Any word has a
text embedding too, so it can be an anchor, and none of the three moves while a network trains.

The map is fitted once, to the concepts, and frozen; units of every checkpoint, arm and detector
are only placed on it. `umap-bary` places a unit at the weighted mean of its concepts' points:
deterministic and continuous in the weights.

With theta = 1 and scores that differ by a few hundredths the weights are nearly equal, and a unit
is the plain mean of five words; theta is an argument for that reason.

Public names: `Space`, `concept_weights`, `Basis`, `fit_basis`, `load_basis`, `PROJECTIONS`.

Source: specification section 2.1 and 2.2.
"""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.files import write_whole
from lib.monitoring.activations import ConceptSet

PROJECTIONS = ("umap-bary", "umap", "pca")
UMAP = {"n_neighbors": 15, "min_dist": 0.1, "metric": "cosine", "transform_seed": 42}


def concept_weights(h: Tensor, theta: float = 1.0) -> Tensor:
    """Softmax of ``h / theta`` over the last axis: the weights of Eq. 1, shape of `h`.

    Args:
        h: scores of the k best concepts; the document's distances are -h.
    """
    if not theta > 0:
        raise ValueError(f"want theta > 0, got {theta}")
    return (h / theta).softmax(-1)


@dataclass(frozen=True)
class Space:
    """The embeddings of a concept set."""

    concepts: ConceptSet
    vectors: Tensor  # float32 [C, D]

    @staticmethod
    def of(concepts: ConceptSet, vectors: Tensor, *, normalise: bool = True) -> Space:
        """Concepts with their text embeddings `[C, D]`, each of length 1 unless told otherwise.

        The document does not say whether text embeddings are normalised; CLIP compares them so.

        Raises:
            ValueError: another number of embeddings than concepts, or one that is 0 or not finite.
        """
        if vectors.ndim != 2 or len(vectors) != len(concepts):
            raise ValueError(
                f"want embeddings [C, D] of {len(concepts)} concepts, got {tuple(vectors.shape)}"
            )
        lengths = vectors.norm(dim=1)
        bad = ~lengths.isfinite() | (lengths == 0)
        if bad.any():
            word = concepts.words[int(bad.nonzero()[0])]
            raise ValueError(f"the embedding of {word!r} is zero or not finite")
        return Space(
            concepts, F.normalize(vectors.float(), dim=1) if normalise else vectors.float()
        )

    @property
    def digest(self) -> str:
        """Hash of words and embeddings."""
        digest = hashlib.sha256(json.dumps(self.concepts.words).encode())
        digest.update(self.vectors.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def place(self, concepts: Tensor, weights: Tensor) -> Tensor:
        """Units (Eq. 1) from concept numbers and weights `[..., k]`: `[..., D]`.

        A convex combination, so no longer than 1 for normalised concepts; not normalised again.
        """
        if concepts.shape != weights.shape:
            raise ValueError(
                f"want as many weights as concepts, got {tuple(weights.shape)} and "
                f"{tuple(concepts.shape)}"
            )
        out = torch.zeros(*concepts.shape[:-1], self.vectors.shape[1])
        for j in range(concepts.shape[-1]):  # never [..., k, D]
            out += weights[..., j, None] * self.vectors[concepts[..., j].long()]
        return out


@dataclass(frozen=True)
class Basis:
    """A frozen map of a space in two dimensions."""

    kind: str  # a name in PROJECTIONS
    digest: str  # of the space it was fitted to
    words: tuple[str, ...]
    vectors: Tensor  # float32 [C, D]
    points: Tensor  # float32 [C, 2]
    settings: str  # JSON

    def place(self, concepts: Tensor, weights: Tensor) -> Tensor:
        """Units at the weighted mean of their concepts' points: `[..., k]` to `[..., 2]`.

        For `umap` and `umap-bary`; of `pca` it is the same as `transform` of the embedding.
        """
        return (weights[..., None] * self.points[concepts.long()]).sum(-2)

    def transform(self, u: Tensor) -> Tensor:
        """Embeddings `[n, D]` placed on the map by the reducer itself, `[n, 2]`.

        Raises:
            ValueError: another width, or a UMAP that does not come out as it was stored.
        """
        if u.ndim != 2 or u.shape[1] != self.vectors.shape[1]:
            raise ValueError(f"want embeddings [n, {self.vectors.shape[1]}], got {tuple(u.shape)}")
        if self.kind == "pca":
            centre, axes = _principal(self.vectors)
            return (u - centre) @ axes
        reducer, points = _umap(self.vectors, json.loads(self.settings))
        if not np.allclose(points, self.points.numpy(), atol=1e-4):
            raise ValueError(
                "fitting this UMAP again gives other points than the stored ones (another version "
                "or processor); place units with umap-bary, or fit a new basis"
            )
        return torch.from_numpy(reducer.transform(u.numpy().astype(np.float32)))

    def save(self, path: Path) -> None:
        """Write the basis, whole or not at all."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            kind=self.kind,
            digest=self.digest,
            words=np.array(self.words),
            vectors=self.vectors.numpy(),
            points=self.points.numpy(),
            settings=self.settings,
        )
        write_whole(path, buffer.getvalue())


def fit_basis(space: Space, kind: str = "umap-bary", *, seed: int = 0) -> Basis:
    """Fit a map to the concepts of a space, once.

    Without umap-learn a principal-component map is made, with a warning.

    Raises:
        ValueError: an unknown projection, or fewer than three concepts.
    """
    if kind not in PROJECTIONS or len(space.concepts) < 3:
        raise ValueError(
            f"want one of {', '.join(PROJECTIONS)} and at least 3 concepts, got {kind!r} and "
            f"{len(space.concepts)}"
        )
    settings = {**UMAP, "n_neighbors": min(15, len(space.concepts) - 1), "random_state": seed}
    points: np.ndarray | None = None
    if kind != "pca":
        try:
            points = _umap(space.vectors, settings)[1]
        except ImportError:
            warnings.warn(
                "umap-learn is not installed: the map is made of principal components; all else "
                "works without it",
                stacklevel=2,
            )
            kind = "pca"
    if points is None:
        centre, axes = _principal(space.vectors)
        points, settings = ((space.vectors - centre) @ axes).numpy(), {}
    found = torch.from_numpy(np.ascontiguousarray(points, dtype=np.float32))
    return Basis(
        kind, space.digest, space.concepts.words, space.vectors, found, json.dumps(settings)
    )


def load_basis(path: Path, space: Space) -> Basis:
    """Read a basis that `save` wrote.

    Raises:
        ValueError: it was fitted to other words or embeddings.
    """
    with np.load(path, allow_pickle=False) as stored:
        digest = str(stored["digest"])
        if digest != space.digest:
            raise ValueError(
                f"the map in {path.name} was fitted to {len(stored['words'])} concepts with other "
                f"words or embeddings (hash {digest[:12]}, want {space.digest[:12]}); fit a new one"
            )
        return Basis(
            str(stored["kind"]),
            digest,
            tuple(str(word) for word in stored["words"]),
            torch.from_numpy(stored["vectors"]),
            torch.from_numpy(stored["points"]),
            str(stored["settings"]),
        )


def _principal(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Centre `[D]` and the first two principal axes `[D, 2]`, with a fixed sign."""
    centre = vectors.mean(0)
    axes = torch.linalg.svd((vectors - centre).double(), full_matrices=False)[2][:2].T
    largest = axes.abs().argmax(0)
    return centre, (axes * axes.gather(0, largest[None]).sign()).float()


def _umap(vectors: Tensor, settings: dict[str, object]):  # type: ignore[no-untyped-def]
    import umap

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed means one thread
        reducer = umap.UMAP(n_components=2, n_jobs=1, **settings)
        points = reducer.fit_transform(vectors.numpy().astype(np.float32))
    return reducer, points
