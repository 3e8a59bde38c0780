"""Real images as a probing set: what is labelled, where it is unknown, and detectors that mind.

The labels come from several sources (street scenes, clothing, textures), and each knows its own
words only: nobody looked for clothes in a street scene, or for stripes in a coat. A word is
*unknown*, not absent, in the images of the other sources. So

- the oracle's similarity of an image and a word that is unknown there is the word's mean, 0: it
  speaks neither for nor against. Coverage is standardised over the images where the word is known;
- Network Dissection tallies each word over the images where it is known, for all three published
  denominators; the threshold of a unit is that of all images;
- the null permutes images within a source, so a unit keeps which source it prefers.

A unit that tells the sources apart and nothing else has then no word. Colours are computed from
pixels and known everywhere. There are no labels of materials and scenes at all. In a street scene
some pixels are unlabelled, and in clothing all that is not the dressed person; they count as
pixels without the source's words.

Public names: `ProbingImages`, `load`, `load_second`, `of`, `SourcedDissection`.

Source: stands in for Broden in document 2 (issue of part 2, real data); specification of document
2, section 1.2 and 4.4 (oracle).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.data import concept_images, imagenet
from lib.data.annotations import CATEGORIES, Annotations, Concept
from lib.data.base import Expected, Progress, Provenance
from lib.data.scenes.vocabulary import COLOURS
from lib.monitoring.activations import ConceptScores, ConceptSet, LayerActivations
from lib.monitoring.detectors import check_images
from lib.monitoring.dissection import CUT, IMAGES, QUANTILE, NetworkDissection, Overlap

COLOUR = CATEGORIES.index("color")
FEWEST = 20  # images that show a word; a rarer one is left out: top images cannot be told from luck
SMALLEST_SD = 1e-6  # of coverage, as for the oracle of scenes
CHUNK = 512  # images resized or relabelled at a time


@dataclass(frozen=True)
class ProbingImages:
    """Images with labels from several sources."""

    images: Tensor  # uint8 [n, side, side, 3]
    annotations: Annotations  # planes keep their own resolution, whatever side the images have
    source: Tensor  # int64 [n], place in `sources`
    sources: tuple[str, ...]
    known: Tensor  # bool [n, C]: the image was labelled for the word, or it is a colour
    ids: Tensor  # int64 [n]
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def concepts(self) -> ConceptSet:
        """The words with their categories."""
        labels = self.annotations
        return ConceptSet(
            labels.words,
            tuple(c.category for c in labels.concepts),
            tuple(c.raw for c in labels.concepts),
        )

    def take(self, rows: Tensor) -> ProbingImages:
        """Some images, `rows` int64 `[m]`; the words stay, and what is known of them."""
        return replace(
            self,
            images=self.images[rows],
            annotations=self.annotations.take(rows),
            source=self.source[rows],
            known=self.known[rows],
            ids=self.ids[rows],
        )

    def resized(self, side: int) -> ProbingImages:
        """The images at `side` x `side` pixels; labels, and so colours, stay."""
        return replace(self, images=_resized(self.images, side))

    def similarities(self) -> Tensor:
        """The oracle: standardised coverage where a word is known, 0 elsewhere, `[n, C]`."""
        coverage, known = self.annotations.coverage().double(), self.known
        n = known.sum(0).clamp_min(1)
        mean = torch.where(known, coverage, 0.0).sum(0) / n
        centred = torch.where(known, coverage - mean, 0.0)
        sd = (centred.square().sum(0) / n).sqrt()
        varies = known & (sd > SMALLEST_SD)
        return torch.where(varies, centred / sd.clamp_min(SMALLEST_SD), 0.0).float()

    def dissection(
        self, denominator: str = "annotated", *, quantile: float = QUANTILE
    ) -> SourcedDissection:
        """Network Dissection that asks each source for its own words."""
        return SourcedDissection.of(self, denominator, quantile=quantile)

    def shuffled(self, seed: int) -> Tensor:
        """An order of the images that keeps each row's source, int64 `[n]`: the null."""
        generator = torch.Generator().manual_seed(seed)
        order = torch.arange(len(self))
        for k in range(len(self.sources)):
            mine = (self.source == k).nonzero()[:, 0]
            order[mine] = mine[torch.randperm(len(mine), generator=generator)]
        return order


def load(
    side: int,
    root: Path | None = None,
    *,
    fewest: int = FEWEST,
    expected: Expected = concept_images.WHOLE,
    progress: Progress | None = None,
) -> ProbingImages:
    """The segmented images of `lib.data.concept_images`: objects, parts, textures, colours.

    Args:
        side: of the images, in pixels; label planes stay at 56x56.
        root: default DATA_ROOT.
        fewest: words that fewer images show are left out.
        expected, progress: as for `concept_images.load`.

    Raises:
        MissingData: an archive is not there.
        DamagedData: one is not as it should be.
    """
    found = concept_images.load(root, expected=expected, progress=progress)
    groups = [group.partition("/")[0] for group in found.groups]
    return of(found.images, found.annotations, groups, found.provenance, fewest=fewest).resized(
        side
    )


def load_second(
    side: int,
    root: Path | None = None,
    *,
    fewest: int = FEWEST,
    expected: Expected = imagenet.WHOLE,
    progress: Progress | None = None,
) -> ProbingImages:
    """The second probing set: one ImageNet image a class, colours alone, planes of 56x56.

    A class's name is no concept here: one image shows it, and top images cannot be told from luck.

    Raises:
        MissingData, DamagedData: as for `imagenet.load`.
    """
    sample = imagenet.load(root, expected=expected, progress=progress)
    images = sample.x.permute(0, 2, 3, 1)
    colours = tuple(
        Concept(k, f"{word}-c", word, "color") for k, (word, _) in enumerate(COLOURS, 1)
    )
    planes = concept_images.nearest_colours(images)[:, None, ::2, ::2].to(torch.int16)
    annotated = torch.zeros(len(images), len(CATEGORIES), dtype=torch.bool)
    annotated[:, COLOUR] = True
    whole = torch.zeros(len(images), 1, dtype=torch.int32)
    labels = Annotations(colours, planes, whole, annotated)
    groups = ["imagenet"] * len(images)
    return of(images, labels, groups, sample.provenance, fewest=fewest).resized(side)


def of(
    images: Tensor,
    annotations: Annotations,
    groups: list[str],
    provenance: Provenance,
    *,
    fewest: int = FEWEST,
) -> ProbingImages:
    """A probing set from annotated images and the source of each.

    A source knows the words that it labels somewhere, in the images that it annotated for their
    category; colours are known wherever they are annotated.

    Args:
        images: uint8 `[n, h, w, 3]`.
        groups: name of each image's source, `[n]`.
        fewest: words that fewer images show are left out, 1 or more.

    Raises:
        ValueError: shapes that disagree, or no word is left.
    """
    n = len(annotations)
    if images.ndim != 4 or images.shape[-1] != 3 or not len(images) == n == len(groups):
        raise ValueError(
            f"want images uint8 [n, h, w, 3] with labels and a source each, got "
            f"{list(images.shape)}, {n} labels and {len(groups)} sources"
        )
    shows = annotations.coverage() > 0  # [n, C]
    kept = shows.sum(0) >= max(1, fewest)
    if not kept.any():
        raise ValueError(
            f"no word is in {fewest} images or more (the most frequent is in "
            f"{int(shows.sum(0).max()) if annotations.n else 0}); lower `fewest`"
        )
    labels, shows = _selected(annotations, kept), shows[:, kept]
    sources = tuple(dict.fromkeys(groups))
    source = torch.tensor([sources.index(group) for group in groups])
    own = torch.stack([shows[source == k].any(0) for k in range(len(sources))])  # [S, C]
    own |= labels.categories == COLOUR
    known = own[source] & labels.annotated[:, labels.categories]
    return ProbingImages(images, labels, source, sources, known, torch.arange(n), provenance)


def _selected(a: Annotations, kept: Tensor) -> Annotations:
    """The annotations with some of the concepts; labels of the others become none."""
    table = torch.zeros(a.n + 1, dtype=torch.int64)
    table[1:][kept] = torch.arange(1, int(kept.sum()) + 1)
    concepts = tuple(c for c, keep in zip(a.concepts, kept.tolist(), strict=True) if keep)
    planes = torch.cat([table[part.long()].to(a.planes.dtype) for part in a.planes.split(CHUNK)])
    return Annotations(concepts, planes, table[a.whole.long()].to(a.whole.dtype), a.annotated)


def _resized(images: Tensor, side: int) -> Tensor:
    """uint8 `[n, h, w, 3]` at `side` x `side`: each new pixel averages what it covers."""
    if images.shape[1:3] == (side, side):
        return images
    found = []
    for part in images.split(CHUNK):
        pixels = part.permute(0, 3, 1, 2).float()
        small = F.interpolate(
            pixels, (side, side), mode="bilinear", align_corners=False, antialias=True
        )
        found.append(small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1))
    return torch.cat(found).contiguous()


@dataclass(frozen=True)
class SourcedDissection:
    """Network Dissection over several sources: a word is tallied where it is known.

    Two sources may annotate one category with words of their own. Each view keeps, of every
    category, the labels of one source; together they hold all. A threshold is the unit's own over
    all images in every view, and pixel counts of the views add up.
    """

    views: tuple[NetworkDissection, ...]
    member: Tensor  # bool [V, C]: the view holds images in which the word is known
    name: str = "net_dissection"
    needs_maps: bool = True
    tau: float = CUT

    @staticmethod
    def of(
        real: ProbingImages, denominator: str = "annotated", *, quantile: float = QUANTILE
    ) -> SourcedDissection:
        """The detector of a probing set."""
        labels, turn = real.annotations, _turns(real)
        informed = torch.zeros(len(real), len(CATEGORIES), dtype=torch.bool)
        for k in set(labels.categories.tolist()):
            informed[:, k] = real.known[:, labels.categories == k].any(1)
        views, member = [], []
        for v in range(int(turn.max()) + 1):
            asked = informed & (turn[real.source] == v)
            options = {"denominator": denominator, "quantile": quantile}
            views.append(NetworkDissection(_asked(labels, asked), real.ids, **options))  # type: ignore[arg-type]
            member.append((real.known & asked[:, labels.categories]).any(0))
        return SourcedDissection(tuple(views), torch.stack(member))

    @property
    def meta(self) -> dict[str, object]:
        """All constants."""
        return {**self.views[0].meta, "views": len(self.views)}

    @property
    def digest(self) -> str:
        """Hash of labels, images and constants."""
        parts = [view.digest for view in self.views]
        text = json.dumps([parts, self.member.tolist()])
        return hashlib.sha256(text.encode()).hexdigest()

    def detect(self, acts: LayerActivations) -> ConceptScores:
        """Scores are intersections over union; `tau` is the published cut.

        Raises:
            ValueError: no maps, other images, or maps finer than the label planes.
        """
        check_images(self.views[0].ids, acts)
        if acts.maps is None:
            raise ValueError(
                f"layer {acts.layer}: Network Dissection reads feature maps [N, M, h, w]; take "
                "activations with maps=True, of a layer that has positions"
            )
        maps = acts.maps
        found = [view.overlap(lambda: iter(maps.split(IMAGES)), acts.layer) for view in self.views]
        return ConceptScores(
            self.iou(found), self.name, self.meta, acts.dead, None, self.views[0].tau
        )

    def iou(self, found: list[Overlap]) -> Tensor:
        """Intersection over union from the counts of all views, float32 `[M, C]`."""
        intersection = torch.stack([o.intersection for o in found]).double().sum(0)
        labelled = torch.stack([o.labelled for o in found]).double().sum(0)
        area = torch.stack([o.activated[:, o.categories] for o in found]).double()
        area = area * self.member[:, None]
        # with "all" each view counts all images: once is enough
        everywhere = self.views[0].denominator == "all"
        activated = area.amax(0) if everywhere else area.sum(0)
        union = activated + labelled - intersection
        return (intersection / (union + 1e-10)).float()


def _turns(real: ProbingImages) -> Tensor:
    """Which view reads a source's labels of a category, int64 `[S, 6]`; colours are in view 0."""
    turn = torch.zeros(len(real.sources), len(CATEGORIES), dtype=torch.int64)
    for category in set(real.annotations.categories.tolist()) - {COLOUR}:
        mine = real.annotations.categories == category
        asked = [bool(real.known[real.source == k][:, mine].any()) for k in range(len(turn))]
        turn[:, category] = (torch.tensor(asked).cumsum(0) - 1).clamp_min(0)
    return turn


def _asked(a: Annotations, asked: Tensor) -> Annotations:
    """The annotations with the labels of some categories of each image only; asked: bool [n, 6]."""
    none = torch.ones(len(a), 1, dtype=torch.bool)
    allowed = torch.cat([none, asked[:, a.categories]], 1)  # [n, C + 1], of label values

    def kept(values: Tensor) -> Tensor:
        out = values.clone()
        for start in range(0, len(values), CHUNK):
            rows = slice(start, start + CHUNK)
            flat = out[rows].flatten(1)
            out[rows] = torch.where(allowed[rows].gather(1, flat.long()), flat, 0).view_as(
                out[rows]
            )
        return out

    return Annotations(a.concepts, kept(a.planes), kept(a.whole), asked)
