"""Network Dissection: a unit detects the concept whose mask its activated pixels overlap most.

A unit's threshold is exceeded by a fixed share of all cells of its maps. Maps are enlarged to the
resolution of the labels, pixels above the threshold are the unit's mask, and the score of a
concept is intersection over union, summed over the whole set.

Only activated pixels are looked at: half a percent of the pixels of the images in which a unit
exceeds its threshold at all. Their labels are counted with `bincount`, so all concepts cost one
pass, and counts are exact integers.

Three published denominators, option `denominator`; numbers made with different ones do not
compare. The union counts a unit's activated area over

- `annotated` (the paper): images with any annotation of the concept's category;
- `lite` (a common port): images where an activated pixel carries a label of the category;
- `all`: all images.

Public names: `NetworkDissection`, `Overlap`, `thresholds`, `detectors_by_category`.

Source: specification section 1.2, 6 and 7.1.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lib import cache
from lib.data.annotations import CATEGORIES, Annotations
from lib.monitoring.activations import ConceptScores, LayerActivations
from lib.monitoring.detectors import check_images

DENOMINATORS = ("annotated", "lite", "all")
QUANTILE = 0.005  # share of cells that exceed a unit's threshold
CUT = 0.04  # of the intersection over union, above which a unit is a detector
PIXELS = 2**21  # enlarged at once
IMAGES = 512  # whose maps are read at once
ROUNDING = 1e-6  # of a map's largest value; float32 rounds at 6e-8, a few times over
Blocks = Callable[[], Iterator[Tensor]]


@dataclass(frozen=True)
class Overlap:
    """Exact pixel counts of M units and C concepts over a set of images."""

    intersection: Tensor  # int64 [M, C]
    labelled: Tensor  # int64 [C]
    activated: Tensor  # int64 [M, 6], area in the images that count for a category
    categories: Tensor  # int64 [C], column of `activated` of each concept
    thresholds: Tensor  # float32 [M]

    def iou(self) -> Tensor:
        """Intersection over union, float32 `[M, C]` in [0, 1]."""
        inter = self.intersection.double()
        union = self.activated.double()[:, self.categories] + self.labelled - inter
        return (inter / (union + 1e-10)).float()


def thresholds(blocks: Iterator[Tensor], n_cells: int, quantile: float = QUANTILE) -> Tensor:
    """The value that a share `quantile` of each unit's cells exceeds, float32 `[M]`, exact.

    Of the n cells of a unit in falling order the value at 0-based place ``floor(quantile n)``. Only
    that many values and one more are kept, so any number of images can stream by.

    Args:
        blocks: maps `[b, M, h, w]` of all images in turn.
        n_cells: cells of a unit over all images.
    """
    keep = int(quantile * n_cells + 1e-9) + 1
    top: Tensor | None = None
    for maps in blocks:
        cells = maps.transpose(0, 1).flatten(1).float()
        cells = cells if top is None else torch.cat([top, cells], 1)
        top = cells.topk(min(keep, cells.shape[1]), dim=1, sorted=False).values
    if top is None:
        raise ValueError("want maps of at least one image, got none")
    return top.amin(1)


@dataclass(frozen=True)
class NetworkDissection:
    """The detector: exact label planes, and which of the three unions is meant."""

    annotations: Annotations
    ids: Tensor  # int64 [N], the images
    denominator: str = "annotated"
    quantile: float = QUANTILE
    tau: float = CUT
    name: str = "net_dissection"
    needs_maps: bool = True

    def __post_init__(self) -> None:
        if self.denominator not in DENOMINATORS:
            raise ValueError(
                f"denominator is one of {', '.join(DENOMINATORS)}; got {self.denominator!r}"
            )
        if not 0 < self.quantile < 1 or len(self.ids) != len(self.annotations):
            raise ValueError(
                f"want 0 < quantile < 1 and as many ids as annotated images, got {self.quantile}, "
                f"{len(self.ids)} ids and {len(self.annotations)} images"
            )

    @functools.cached_property
    def _labels(self) -> _Labels:
        return _Labels.of(self.annotations)

    @property
    def meta(self) -> dict[str, object]:
        """All constants."""
        return {"denominator": self.denominator, "quantile": self.quantile, "tau": self.tau}

    @property
    def digest(self) -> str:
        """Hash of labels, images and constants."""
        a = self.annotations
        state = {"planes": a.planes, "whole": a.whole, "annotated": a.annotated, "ids": self.ids}
        concepts = [[c.raw, c.category] for c in a.concepts]
        text = json.dumps([self.meta, concepts, cache.state_hash(state)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def detect(self, acts: LayerActivations) -> ConceptScores:
        """Scores are intersections over union; `tau` is the published cut.

        Raises:
            ValueError: no maps, other images, or maps finer than the label planes.
        """
        check_images(self.ids, acts)
        if acts.maps is None:
            raise ValueError(
                f"layer {acts.layer}: Network Dissection reads feature maps [N, M, h, w]; take "
                "activations with maps=True, of a layer that has positions"
            )
        maps = acts.maps
        found = self.overlap(lambda: iter(maps.split(IMAGES)), acts.layer)
        return ConceptScores(found.iou(), self.name, self.meta, acts.dead, None, self.tau)

    def overlap(self, blocks: Blocks, layer: str = "") -> Overlap:
        """The counts, from maps that come in blocks of images; they are read twice.

        So maps need not be kept: `blocks` may run the network anew for each pass.

        Args:
            blocks: each call gives maps `[b, M, h, w]` of all images, in order.
        """
        a = self.annotations
        first = next(blocks())
        cells = len(a) * first.shape[2] * first.shape[3]
        if first.shape[2] > a.planes.shape[2] or first.shape[3] > a.planes.shape[3]:
            raise ValueError(
                f"layer {layer}: maps of {first.shape[2]} x {first.shape[3]} are finer than label "
                f"planes of {a.planes.shape[2]} x {a.planes.shape[3]}; label the images at a "
                "higher resolution or take a deeper layer"
            )
        cut = thresholds(blocks(), cells, self.quantile)
        if not cut.isfinite().all():
            unit = int((~cut.isfinite()).nonzero()[0])
            raise ValueError(f"layer {layer}: unit {unit} has NaN or infinite activations")
        labels = self._labels
        tally = _Tally(len(cut), labels, self.denominator)
        start = 0
        for maps in blocks():
            tally.add(maps, cut, start)
            start += len(maps)
        if start != len(a):
            raise ValueError(f"layer {layer}: maps of {start} images, want {len(a)}")
        return Overlap(
            tally.intersection.view(len(cut), -1)[:, 1:].clone(),
            labels.labelled,
            tally.activated,
            a.categories,
            cut,
        )


@dataclass(frozen=True)
class _Labels:
    """Labels made ready to be counted: none twice at a pixel."""

    planes: Tensor  # [N, p, pixels], in the annotations' dtype
    whole: Tensor  # int64 [N, s]
    annotated: Tensor  # int64 [N, 6]
    category: Tensor  # int64 [C + 1]; the first, of no label, is a column of its own
    labelled: Tensor  # int64 [C]
    size: tuple[int, int]

    @staticmethod
    def of(a: Annotations) -> _Labels:
        whole = _once(a.whole.long()[:, :, None])[:, :, 0]
        planes = _once(a.planes.flatten(2))
        for k in range(whole.shape[1]):  # a label of the whole image holds at each pixel already
            repeated = planes == whole[:, k, None, None].to(planes.dtype)  # no wider copy of planes
            planes.masked_fill_(repeated, 0)
        c, pixels = len(a.concepts) + 1, planes.shape[2]
        labelled = torch.bincount(planes.flatten().long(), minlength=c)
        labelled += pixels * torch.bincount(whole.flatten(), minlength=c)
        category = torch.cat([torch.tensor([len(CATEGORIES)]), a.categories])
        size = (a.planes.shape[2], a.planes.shape[3])
        return _Labels(planes, whole, a.annotated.long(), category, labelled[1:], size)


def _once(values: Tensor) -> Tensor:
    """Labels `[n, p, pixels]`; of equal ones at a pixel all but the first become 0."""
    values = values.clone()
    for k in range(1, values.shape[1]):
        repeated = (values[:, :k] == values[:, k : k + 1]).any(1)
        values[:, k].masked_fill_(repeated, 0)
    return values


def _exceeds(low: Tensor, cut: Tensor, size: tuple[int, int]) -> Tensor:
    """Pixels of enlarged maps `[p, h, w]` above each map's threshold, bool `[p, pixels]`.

    Enlarging is two small matrix products, several times faster than `interpolate`, which rounds
    otherwise. Maps with a pixel nearer to the threshold than rounding reaches are enlarged by
    `interpolate` itself, so that the mask is the same to the pixel.
    """
    down, right = (
        F.interpolate(torch.eye(old)[None], new, mode="linear", align_corners=False)[0]
        for old, new in zip(low.shape[1:], size, strict=True)
    )
    large = torch.matmul(down.T, (low.flatten(0, 1) @ right).unflatten(0, low.shape[:2]))
    gap = large.flatten(1).sub_(cut[:, None])
    mask = gap > 0
    reach = ROUNDING * low.abs().amax((1, 2))
    close = (gap.abs_().amin(1) <= reach).nonzero()[:, 0]
    if len(close):
        exact = F.interpolate(low[close][:, None], size, mode="bilinear", align_corners=False)
        mask[close] = exact.flatten(1) > cut[close, None]
    return mask


class _Tally:
    """Counts that grow block by block of images."""

    def __init__(self, m: int, labels: _Labels, denominator: str) -> None:
        self.labels, self.denominator = labels, denominator
        self.concepts = len(labels.category)  # with "no label" as number 0
        self.intersection = torch.zeros(m * self.concepts, dtype=torch.int64)
        self.activated = torch.zeros(m, len(CATEGORIES), dtype=torch.int64)

    def add(self, maps: Tensor, cut: Tensor, start: int) -> None:
        # an enlarged map nowhere exceeds its largest cell: other pairs have an empty mask
        pairs = (maps.flatten(2).amax(2) > cut).nonzero()
        step = max(1, PIXELS // (self.labels.size[0] * self.labels.size[1]))
        for part in pairs.split(step):
            image, unit = part[:, 0], part[:, 1]
            mask = _exceeds(maps[image, unit].float(), cut[unit], self.labels.size)
            self._count(mask, image + start, unit)

    def _count(self, mask: Tensor, image: Tensor, unit: Tensor) -> None:
        pair, pixel = mask.nonzero(as_tuple=True)
        area = torch.bincount(pair, minlength=len(unit))
        whole = self.labels.whole[image]  # [pairs, s]
        hits = torch.zeros(len(unit), len(CATEGORIES) + 1, dtype=torch.int64)
        rows, offset = image[pair], unit[pair] * self.concepts
        for plane in range(self.labels.planes.shape[1]):
            label = self.labels.planes[rows, plane, pixel].long()
            self.intersection += torch.bincount(offset + label, minlength=len(self.intersection))
            if self.denominator == "lite":
                hits[pair, self.labels.category[label]] = 1
        for k in range(whole.shape[1]):
            at = unit * self.concepts + whole[:, k]
            self.intersection.index_add_(0, at, area)
            hits[torch.arange(len(unit)), self.labels.category[whole[:, k]]] = 1
        if self.denominator == "lite":
            counted = hits[:, :-1]
        elif self.denominator == "annotated":
            counted = self.labels.annotated[image]
        else:
            counted = torch.ones_like(hits[:, :-1])
        self.activated.index_add_(0, unit, area[:, None] * counted)


def detectors_by_category(
    iou: Tensor, categories: Tensor, cut: float = CUT
) -> dict[str, tuple[int, int]]:
    """Detectors and unique detectors, overall (key "all") and by category.

    A unit is a detector of its best concept if their intersection over union exceeds the cut;
    unique detectors are the distinct concepts among them.

    Args:
        iou: `[M, C]`; categories: of the concepts, int64 `[C]`.
    """
    best, label = iou.max(1)
    label = label[best > cut]
    found = {"all": (len(label), len(label.unique()))}
    for k, name in enumerate(CATEGORIES):
        mine = label[categories[label] == k]
        found[name] = (len(mine), len(mine.unique()))
    return found
