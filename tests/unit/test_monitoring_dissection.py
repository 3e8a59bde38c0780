"""Network Dissection: hand-computed cases, an equal slow loop, and what is refused."""

import math

import pytest
import torch
from torch.nn import functional as F

from lib.data.annotations import CATEGORIES, Annotations, Concept
from lib.monitoring import dissection
from lib.monitoring.activations import LayerActivations
from lib.monitoring.dissection import NetworkDissection, detectors_by_category, thresholds


def concepts(*pairs):
    return tuple(Concept(k, raw, raw, category) for k, (raw, category) in enumerate(pairs))


def flags(*names, n):
    out = torch.zeros(n, len(CATEGORIES), dtype=torch.bool)
    for row, chosen in enumerate(names):
        for name in chosen:
            out[row, CATEGORIES.index(name)] = True
    return out


def acts_of(maps):
    return LayerActivations("layer4", torch.arange(len(maps)), maps.mean((2, 3)), maps)


def detector(a, **options):
    return NetworkDissection(a, torch.arange(len(a)), **options)


GROUND, SCENE = ("ground", "object"), ("beach", "scene")


def two_images(second_has_ground=True):
    planes = torch.zeros(2, 1, 4, 4, dtype=torch.int32)
    planes[0, 0, 3] = 1
    planes[1, 0, 3] = int(second_has_ground)
    seen = ("object",) if second_has_ground else ()
    return Annotations(
        concepts(GROUND, SCENE),
        planes,
        torch.tensor([[2], [0]], dtype=torch.int32),
        flags(("object", "scene"), seen, n=2),
    )


def two_maps():
    return torch.stack([torch.arange(16.0).view(1, 4, 4), -torch.ones(1, 4, 4)])


def test_hand_computed_threshold_and_overlap():
    """Specification 7.1, case 4."""
    found = detector(two_images(), quantile=0.25).overlap(lambda: iter([two_maps()]))
    assert found.thresholds.tolist() == [7.0]
    assert found.intersection.tolist() == [[4, 8]]
    assert found.labelled.tolist() == [8, 16]
    assert found.iou()[0].tolist() == pytest.approx([1 / 3, 8 / 16])


def test_images_without_the_category_leave_the_union():
    found = detector(two_images(False), quantile=0.25).detect(acts_of(two_maps()))
    assert found.h[0, 0].item() == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("denominator", "want"),
    [("annotated", 2 / (8 + 3 - 2)), ("lite", 2 / (4 + 3 - 2)), ("all", 2 / (8 + 3 - 2))],
)
def test_hand_computed_denominators(denominator, want):
    """Specification 7.1, case 5."""
    planes = torch.zeros(2, 1, 4, 4, dtype=torch.int16)
    planes[0, 0, 0, :2] = 1
    planes[1, 0, 3, 3] = 1
    maps = torch.zeros(2, 1, 4, 4)
    maps[:, :, 0] = 1.0
    a = Annotations(
        concepts(("wheel", "part")),
        planes,
        torch.zeros(2, 0, dtype=torch.int32),
        flags(("part",), ("part",), n=2),
    )
    found = detector(a, denominator=denominator, quantile=0.25).detect(acts_of(maps))
    assert found.h.item() == pytest.approx(want)


def test_a_constant_unit_has_an_empty_mask():
    """Specification 7.1, case 6; a third is not exact, so enlarging alone may exceed it."""
    maps = torch.cat([torch.full((2, 1, 3, 3), 1 / 3), two_maps()[..., 1:, 1:]], 1)
    scores = detector(two_images(), quantile=0.25).detect(acts_of(maps))
    assert scores.dead.tolist() == [True, False]
    assert scores.h[0].tolist() == [0.0, 0.0]
    assert scores.h[1].max() > 0
    assert scores.tau == 0.04


def random_world(n=40, p=3, size=12, seed=0, c=20):
    g = torch.Generator().manual_seed(seed)
    kinds = [CATEGORIES[int(torch.randint(6, (), generator=g))] for _ in range(c)]
    planes = torch.randint(0, c + 1, (n, p, size, size), generator=g)
    planes *= torch.rand(planes.shape, generator=g) < 0.5
    whole = torch.randint(0, c + 1, (n, 2), generator=g)
    annotated = torch.rand(n, 6, generator=g) < 0.5
    made = concepts(*((f"w{k}", kind) for k, kind in enumerate(kinds)))
    return Annotations(made, planes.int(), whole.int(), annotated)


def slow(a, maps, quantile, denominator):
    """Image by image, unit by unit, concept by concept."""
    n, m, h, w = maps.shape
    c, size = len(a.concepts), a.planes.shape[2:]
    inter = torch.zeros(m, c, dtype=torch.int64)
    lab = torch.zeros(c, dtype=torch.int64)
    act = torch.zeros(m, c, dtype=torch.int64)
    kinds = [x.category for x in a.concepts]
    masks = [
        [(a.planes[i] == k + 1).any(0) | (a.whole[i] == k + 1).any() for k in range(c)]
        for i in range(n)
    ]
    for u in range(m):
        tau = maps[:, u].flatten().sort(descending=True).values[math.floor(quantile * n * h * w)]
        for i in range(n):
            large = F.interpolate(maps[i, u][None, None], size, mode="bilinear")[0, 0]
            mask = large > tau if maps[i, u].max() > tau else torch.zeros(size, dtype=torch.bool)
            for k in range(c):
                inter[u, k] += (mask & masks[i][k]).sum()
                lit = any((mask & masks[i][j]).any() for j in range(c) if kinds[j] == kinds[k])
                counts = {
                    "all": True,
                    "lite": lit,
                    "annotated": a.annotated[i, CATEGORIES.index(kinds[k])],
                }[denominator]
                act[u, k] += mask.sum() if counts else 0
    for i in range(n):
        for k in range(c):
            lab[k] += masks[i][k].sum()
    return inter, lab, act


@pytest.mark.parametrize("denominator", dissection.DENOMINATORS)
def test_counts_equal_those_of_a_loop(denominator, monkeypatch):
    monkeypatch.setattr(dissection, "PIXELS", 700)  # several parts
    a = random_world(n=10)
    maps = torch.randn(10, 3, 5, 5, generator=torch.Generator().manual_seed(1))
    found = detector(a, denominator=denominator, quantile=0.1).overlap(lambda: iter(maps.split(4)))
    inter, lab, act = slow(a, maps, 0.1, denominator)
    assert found.intersection.equal(inter)
    assert found.labelled.equal(lab)
    assert found.activated[:, a.categories].equal(act)


def test_masks_are_those_of_interpolation_to_the_pixel():
    g = torch.Generator().manual_seed(0)
    low = torch.randn(300, 5, 7, generator=g)
    large = F.interpolate(low[:, None], (16, 24), mode="bilinear").flatten(1)
    # thresholds that are pixels themselves: rounding alone decides
    cut = large[torch.arange(300), torch.randint(384, (300,), generator=g)]
    assert dissection._exceeds(low, cut, (16, 24)).equal(large > cut[:, None])


def test_unions_order_the_denominators():
    a = random_world(p=1)
    a = Annotations(a.concepts, a.planes, a.whole, torch.zeros_like(a.annotated))
    for k in range(6):  # annotated where a pixel is
        mine = torch.cat([torch.tensor([False]), a.categories == k])
        a.annotated[:, k] = mine[a.planes.long()].flatten(1).any(1) | mine[a.whole.long()].any(1)
    maps = torch.randn(40, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    lite, annotated, every = (
        detector(a, denominator=d).detect(acts_of(maps)).h for d in ("lite", "annotated", "all")
    )
    assert (lite >= annotated).all()
    assert (annotated >= every).all()
    assert not lite.equal(every)


def test_thresholds_are_exact_however_images_are_grouped():
    maps = torch.randn(50, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    want = maps.transpose(0, 1).flatten(1).sort(descending=True).values[:, math.floor(0.005 * 800)]
    for size in (1, 7, 50):
        assert thresholds(iter(maps.split(size)), 800).equal(want)


def test_a_planted_unit_is_named():
    a = random_world(n=60, p=1, c=6)
    mask = (a.planes[:, 0] == 4) | (a.whole == 4).any(1)[:, None, None]
    maps = torch.stack([mask.float(), torch.rand(mask.shape)], 1)
    scores = detector(a, denominator="all", quantile=float(mask.float().mean()) + 1e-3).detect(
        acts_of(maps)
    )
    assert scores.label[0] == 3
    assert scores.h[0, 3] == pytest.approx(1.0)


def test_detectors_and_unique_detectors_by_category():
    iou = torch.tensor([[0.2, 0.1, 0.0], [0.3, 0.0, 0.0], [0.0, 0.0, 0.05], [0.04, 0.0, 0.0]])
    kinds = torch.tensor([CATEGORIES.index(x) for x in ("object", "object", "scene")])
    found = detectors_by_category(iou, kinds)
    assert found["all"] == (3, 2)
    assert found["object"] == (2, 1)
    assert found["scene"] == (1, 1)
    assert found["part"] == (0, 0)


def test_what_cannot_be_dissected_is_refused():
    a, maps = two_images(), two_maps()
    with pytest.raises(ValueError, match="denominator is one of"):
        detector(a, denominator="some")
    with pytest.raises(ValueError, match="reads feature maps"):
        detector(a).detect(LayerActivations("fc", torch.arange(2), maps.mean((2, 3))))
    with pytest.raises(ValueError, match=r"layer4: maps of 8 x 8 are finer .* 4 x 4"):
        detector(a).detect(acts_of(F.interpolate(maps, (8, 8))))
    with pytest.raises(ValueError, match="knows 2 images, the activations are of 1"):
        detector(a).detect(acts_of(maps[:1]))
    with pytest.raises(ValueError, match="row 0 is image 1, the detector has image 0"):
        detector(a).detect(LayerActivations("x", torch.tensor([1, 0]), maps.mean((2, 3)), maps))
    with pytest.raises(ValueError, match="as many ids as annotated images"):
        NetworkDissection(a, torch.arange(3))
    maps[0, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="layer4: unit 0 has a NaN"):
        detector(a).detect(acts_of(maps))
    with pytest.raises(ValueError, match="maps of 1 images, want 2"):
        detector(a).overlap(lambda: iter([two_maps()[:1]]))
