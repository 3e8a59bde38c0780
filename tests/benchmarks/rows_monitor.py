"""Rows of `make bench` for monitoring concepts.

The peers state the published procedures in plain torch and numpy, written from their description:
CLIP-Dissect goes unit by unit, its activations through files, one forward pass for each layer and
checkpoint; Network Dissection goes image by image and unit by unit.

Embeddings are random directions with the spread that CLIP's cosines have; activations are noise
plus one concept's similarity, so that units differ.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import models
from lib.data.annotations import CATEGORIES, Annotations, Concept
from lib.monitoring.activations import ConceptSet
from lib.monitoring.calibration import Rule
from lib.monitoring.detectors import clip_dissect
from lib.monitoring.dissection import NetworkDissection, Overlap
from lib.monitoring.pointwise import Embedded, soft_wpmi
from lib.monitoring.record import Probe, Record, observe
from lib.monitoring.similarity import rank_reorder
from lib.monitoring.space import Space, fit_basis
from tests.benchmarks.row import Row

N, C, D = 20_000, 1_197, 512
UNITS = 512  # of one soft-WPMI call: the last layer of a ResNet-18
RANKED, PEER_RANKED = 64, 8  # of one rank-reorder call; the peer does the first ones
LAYERS = ("1", "4", "7")  # of the network below; leaky, so that no two images tie at zero
CHECKPOINTS, SIDE, BATCH = 6, 16, 500
SEED = 3  # of the images of `_run`
DISSECTED = {"n": 512, "units": 64, "cells": 6, "pixels": 24, "planes": 4}


@cache
def embeddings() -> tuple[Tensor, Tensor]:
    """Images `[N, D]` and words `[C, D]` of length 1, cosines with spread 0.03 around 0.2."""
    g = torch.Generator().manual_seed(0)
    common = torch.zeros(D)
    common[0] = 1.0
    images = torch.randn(N, D, generator=g) / D**0.5 * 0.8 + 0.45 * common
    words = torch.randn(C, D, generator=g) / D**0.5 * 0.8 + 0.45 * common
    return F.normalize(images), F.normalize(words)


def activations(m: int) -> Tensor:
    """Units that follow one concept each, `[N, m]`."""
    images, words = embeddings()
    g = torch.Generator().manual_seed(1)
    chosen = words[torch.randint(C, (m,), generator=g)]
    drawn = 20 * (images @ chosen.T) + torch.randn(N, m, generator=g)
    # no two equal: which of two images comes first would be each side's own choice
    return torch.linspace(0, 1, N)[drawn.argsort(0).argsort(0)].square()


def _soft_wpmi(p: Tensor, acts: Tensor, k: int = 100) -> Tensor:
    """One unit after the other; the softmax is computed in every call."""
    q = (10 * p).softmax(1)
    images = acts.topk(k, dim=0).indices
    member = (0.998 - torch.arange(k) / k * (0.998 - 0.97))[:, None]
    evidence = []
    for unit in range(acts.shape[1]):
        chosen = q.gather(0, images[:, unit, None].expand(-1, q.shape[1]))
        evidence.append((1 + member * (chosen - 1) + 1e-7).log().sum(0))
    found = torch.stack(evidence)
    return found - (found.logsumexp(0) - math.log(len(found)))


def soft_wpmi_call() -> Row:
    """One call on one layer, from similarities and activations."""
    images, words = embeddings()
    p, acts = images @ words.T, activations(UNITS)

    def agree(a: Tensor, b: Tensor) -> tuple[bool, str]:
        # float32 itself rounds 1 + p (Q - 1) to a few 1e-4 of the sum; so both against float64
        exact = _soft_wpmi(p.double(), acts.double())
        mine, theirs = (float((x - exact).abs().max()) for x in (a, b))
        return mine < 1e-4, f"scores agree with float64 to {mine:.0e} (the peer's to {theirs:.0e})"

    return Row(
        ours=lambda: soft_wpmi(acts, p),  # the softmax is part of the call
        peer=lambda: _soft_wpmi(p, acts),
        agree=agree,
        peer_name="unit by unit",
        target=1.0,
        sizes=f"{N:,} images, {C:,} concepts, {UNITS} units, K = 100",
    )


def _rank_reorder(p: Tensor, acts: Tensor, draws: Tensor) -> Tensor:
    """Two sorts of the chosen similarities for each unit."""
    n = len(acts) // 20
    values, images = acts.topk(n, dim=0)
    scores = []
    for unit in range(acts.shape[1]):
        chosen = p.gather(0, images[:, unit, None].expand(-1, p.shape[1]))
        x = values[:, unit]
        rising = x.flip(0)
        chance = torch.stack([(rising - rising[d]).abs().pow(3).mean() for d in draws]).mean()
        ranks = chosen.argsort(dim=0).argsort(dim=0)
        errors = (x[:, None] - rising[ranks]).abs().pow(3).mean(0)
        scores.append(-(errors / chance) / chosen.mean(0).sqrt())
    return torch.stack(scores)


def rank_reorder_loop() -> Row:
    """One call on one layer; our ranks over all images are counted."""
    images, words = embeddings()
    p, acts = images @ words.T, activations(RANKED)
    g = torch.Generator().manual_seed(0)
    draws = torch.stack([torch.randperm(N // 20, generator=g) for _ in range(5)])

    def agree(a: Tensor, b: Tensor) -> tuple[bool, str]:
        gap = (a[:PEER_RANKED] - b).abs() / b.abs()
        middle, worst = float(gap.median()), float(gap.max())  # equal float32 cosines are ordered
        words = f"scores agree to {middle:.0e} of each, {worst:.0e} where images tie"
        return middle < 1e-5 and worst < 1e-3, words

    return Row(
        ours=lambda: rank_reorder(acts, p),
        peer=lambda: _rank_reorder(p, acts[:, :PEER_RANKED], draws),
        agree=agree,
        peer_name="unit by unit, two sorts",
        target=3.0,
        sizes=f"{N:,} images, {C:,} concepts, {RANKED} units",
        peer_share=PEER_RANKED / RANKED,
    )


def _world() -> tuple[Annotations, Tensor]:
    """Label planes in blobs, and maps that follow some of them."""
    size = DISSECTED
    g = torch.Generator().manual_seed(0)
    shape = (size["n"], size["planes"], 4, 4)
    coarse = torch.randint(0, C + 1, shape, generator=g)
    coarse *= torch.rand(shape, generator=g) < 0.7
    planes = coarse.repeat_interleave(size["pixels"] // 4, 2)
    planes = planes.repeat_interleave(size["pixels"] // 4, 3)
    kinds = torch.randint(0, 6, (C,), generator=g).tolist()
    concepts = tuple(Concept(k, f"w{k}", f"w{k}", CATEGORIES[kind]) for k, kind in enumerate(kinds))
    whole = torch.randint(1, C + 1, (size["n"], 1), generator=g)
    annotated = torch.rand(size["n"], 6, generator=g) < 0.8
    maps = torch.randn(size["n"], size["units"], size["cells"], size["cells"], generator=g).relu()
    return Annotations(concepts, planes.int(), whole.int(), annotated), maps


def _net_dissection(a: Annotations, maps: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Pixel counts image by image and unit by unit: intersections, and activated areas."""
    n, m = maps.shape[:2]
    size = tuple(a.planes.shape[2:])
    cells = maps.transpose(0, 1).flatten(1)
    cut = cells.sort(1, descending=True).values[:, int(0.005 * cells.shape[1])]
    planes, whole, annotated = (x.numpy() for x in (a.planes, a.whole, a.annotated))
    inter = np.zeros((m, len(a.concepts) + 1), dtype=np.int64)
    area = np.zeros((m, len(CATEGORIES)), dtype=np.int64)
    for i in range(n):
        for u in range(m):
            low = maps[i, u]
            if low.max() <= cut[u]:
                continue
            large = F.interpolate(low[None, None], size, mode="bilinear")[0, 0]
            mask = (large > cut[u]).numpy()
            area[u] += mask.sum() * annotated[i]
            labels = np.where(mask, planes[i], 0)
            for k in range(1, len(labels)):  # a label that another plane gave already
                again = (labels[:k] == labels[k]).any(0)
                labels[k][again] = 0
            labels[labels == whole[i, 0]] = 0
            inter[u] += np.bincount(labels.ravel(), minlength=inter.shape[1])
            inter[u, whole[i, 0]] += mask.sum()
    return inter[:, 1:], area


def net_dissection_loop() -> Row:
    """All counts of one layer, thresholds included."""
    a, maps = _world()

    def ours() -> Overlap:
        detector = NetworkDissection(a, torch.arange(len(a)))  # making labels ready is counted
        return detector.overlap(lambda: iter(maps.split(512)))

    def agree(x: Overlap, y: tuple[np.ndarray, np.ndarray]) -> tuple[bool, str]:
        same = bool((x.intersection.numpy() == y[0]).all() and (x.activated.numpy() == y[1]).all())
        return same, "all counts equal" if same else "counts differ"

    size = DISSECTED
    return Row(
        ours=ours,
        peer=lambda: _net_dissection(a, maps),
        agree=agree,
        peer_name="image by image, unit by unit",
        target=20.0,
        sizes=f"{size['n']} images of {size['pixels']}x{size['pixels']} labels in "
        f"{size['planes']} planes, {C:,} concepts, {size['units']} units of "
        f"{size['cells']}x{size['cells']}",
    )


def _network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1), nn.LeakyReLU(0.1), nn.Identity(),
        nn.Conv2d(32, 64, 3, 2, 1), nn.LeakyReLU(0.1), nn.Identity(),
        nn.Conv2d(64, 128, 3, 2, 1), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(128, 10),
    )  # fmt: skip


@cache
def _run() -> tuple[nn.Sequential, Tensor, list[tuple[int, dict[str, Tensor]]]]:
    """A network, images, and checkpoints on the way from one to other random weights."""
    start, end = (
        models.initialise(_network(), torch.Generator().manual_seed(seed)).state_dict()
        for seed in (0, 1)
    )
    states = []
    for epoch in range(CHECKPOINTS):
        t = epoch / (CHECKPOINTS - 1)
        states.append((epoch, {k: (1 - t) * start[k] + t * end[k] for k in start}))
    # Noise on colours of very different strength, so that the most activating images are far apart:
    # of two with equal activations either may come first, and each side has its own order.
    g = torch.Generator().manual_seed(SEED)
    colour = torch.randn(N, 3, 1, 1, generator=g)
    colour *= torch.empty(N, 1, 1, 1).exponential_(1.0, generator=g)
    x = colour + torch.rand(N, 3, SIDE, SIDE, generator=g)
    return _network(), x, states


def _published(folder: Path) -> dict[tuple[int, str], Tensor]:
    """Five best scores of each unit: one pass for each layer and checkpoint, all through files."""
    model, x, states = _run()
    raw = embeddings()
    for name, values in zip(("images", "words"), raw, strict=True):
        torch.save(values, folder / f"{name}.pt")
    best = {}
    for epoch, state in states:
        model.load_state_dict(state)
        model.eval()
        for layer in LAYERS:
            kept: list[Tensor] = []
            handle = model.get_submodule(layer).register_forward_hook(
                lambda module, inputs, out, kept=kept: kept.append(out.mean((2, 3)).detach())
            )
            with torch.no_grad():
                for batch in x.split(BATCH):
                    model(batch)
            handle.remove()
            path = folder / f"{epoch}_{layer}.pt"
            torch.save(torch.cat(kept), path)
            images, words = (torch.load(folder / f"{n}.pt") for n in ("images", "words"))
            images = images / images.norm(dim=1, keepdim=True)
            words = words / words.norm(dim=1, keepdim=True)
            p = images @ words.T
            del images, words
            best[epoch, layer] = _soft_wpmi(p, torch.load(path)).topk(5, dim=1).values
    return best


def end_to_end() -> Row:
    """From images, embeddings and checkpoints to the five best concepts of every unit."""
    model, x, states = _run()
    images, words = embeddings()
    space = Space.of(ConceptSet(tuple(f"w{k}" for k in range(C))), words)
    basis = fit_basis(space, "pca")
    rules = {("soft_wpmi", layer): Rule(0.0) for layer in LAYERS}

    def ours() -> Record:
        detector = clip_dissect(Embedded(images, words))
        probe = Probe(x, torch.arange(N), chunk=BATCH)
        return observe(model, states, probe, LAYERS, [detector], space, basis, rules)

    def peer() -> dict[tuple[int, str], Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            return _published(Path(folder))

    def agree(a: Record, b: dict[tuple[int, str], Tensor]) -> tuple[bool, str]:
        # scores and not words: with random embeddings many words are within the peer's rounding
        gaps = torch.stack(
            [
                (a.trace("soft_wpmi", layer).h[epoch] - b[epoch, layer]).abs().max()
                for epoch in range(CHECKPOINTS)
                for layer in LAYERS
            ]
        )
        return float(gaps.max()) < 2e-3, f"five best scores of all units agree to {gaps.max():.0e}"

    return Row(
        ours=ours,
        peer=peer,
        agree=agree,
        peer_name="published procedure",
        target=3.0,
        memory=0.25,
        sizes=f"{N:,} images, {C:,} concepts, {len(LAYERS)} layers of 32, 64 and 128 units, "
        f"{CHECKPOINTS} checkpoints",
    )


ROWS: dict[str, Callable[[], Row]] = {
    "monitor/end-to-end": end_to_end,
    "soft-wpmi/call": soft_wpmi_call,
    "rank-reorder/loop": rank_reorder_loop,
    "net-dissection/loop": net_dissection_loop,
}
