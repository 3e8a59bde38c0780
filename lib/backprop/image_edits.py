"""Edits of pictures, each judged by what is in the picture and not by the probe that made it.

`faithful` runs a notebook of document 5; `sound` solves the document's own problem in the latent
space, `through_picture` asks for it in the decoded picture. They are compared with `straight` (the
nearest latent without regard to the picture), `random_change` (any change of the same length) and
`pixels` (the picture's own pixels); specification 4.4.

Public names: `Edit`, `faithful`, `sound`, `through_picture`, `straight`, `random_change`, `pixels`,
`without_loop`, `darkest`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lib.backprop.distances import L1, DecodedMSE, Distance, L2Sq
from lib.backprop.images import LOOPED, Bed, LinearProbe, Site, chunked
from lib.backprop.maximisation import FaithfulRecipe, Maximisation, maximise_faithful, maximise_to
from lib.backprop.objective import Objective, add, decoding
from lib.backprop.picture_measures import (
    EMPTY,
    blobs,
    bright_fraction,
    holes,
    neighbour_distance,
    outside,
)

MNIST_RECIPE = FaithfulRecipe(steps=150)
FASHION_RECIPE = FaithfulRecipe(steps=1200, activity_penalty=0.01)
SPARSE = 0.04  # weight of |delta|_1 beside the decoded distance: .01 to .25, as in the notebook
CHUNK = 250  # pictures explained at once


@dataclass(frozen=True)
class Edit:
    """What a maximisation did to n pictures."""

    before: Tensor  # [n, 1, 28, 28], at delta = 0: the reconstructions, or the originals
    after: Tensor
    latent_before: Tensor  # [n, k]
    latent: Tensor  # [n, k]; for pixels, that of the edited picture
    probe_before: Tensor  # [n], what the probe read
    probe_after: Tensor
    reread: Tensor  # [n], what it reads when the edited picture is put in from the start
    steps: Tensor  # [n], gradients

    @cached_property
    def gains_hole(self) -> Tensor:
        """The picture has a hole that it had not before, `[n]` bool."""
        return (holes(self.after) > 0) & (holes(self.before) == 0)

    @cached_property
    def new_blobs(self) -> Tensor:
        """Loose specks of ink more than before, `[n]`."""
        return blobs(self.after) - blobs(self.before)

    @cached_property
    def pixel_mse(self) -> Tensor:
        """Mean squared change of a pixel, `[n]`."""
        return ((self.after - self.before) ** 2).flatten(1).mean(1)

    @cached_property
    def rises(self) -> Tensor:
        """Rise of the share of bright pixels among those that are drawn, `[n]`."""
        after, before = (bright_fraction(x, empty=EMPTY) for x in (self.after, self.before))
        return after - before

    @cached_property
    def overlap(self) -> Tensor:
        """Intersection over union of the drawn pixels before and after, `[n]`."""
        a, b = (self.before > EMPTY).flatten(1), (self.after > EMPTY).flatten(1)
        return (a & b).sum(1) / (a | b).sum(1).clamp_min(1)

    @cached_property
    def outside(self) -> Tensor:
        """Share of latent coordinates where nothing is encoded, `[n]`."""
        return outside(self.latent)

    def length(self) -> Tensor:
        """|delta|_2 of the latent, `[n]`."""
        return (self.latent - self.latent_before).norm(dim=1)

    def away(self, bed: Bed) -> Tensor:
        """Distance to the nearest training latent, in median distances of those, `[n]`."""
        return neighbour_distance(self.latent, bed.latents) / bed.spacing

    def stays_near(self, bed: Bed) -> Tensor:
        """The latent lies as near to a training latent as 95% of held-out pictures do, `[n]`."""
        return neighbour_distance(self.latent, bed.latents) <= bed.near


def without_loop(bed: Bed, probe: LinearProbe, n: int) -> Tensor:
    """Rows to explain: no loop by label, in the picture, in the reconstruction or by the probe.

    Returns:
        The first n such rows of `bed.pictures.explain`, `[n]` or fewer.
    """
    x = bed.pictures.explain.x.to(bed.latents.device)
    z = chunked(bed.autoencoder.encoder, x)
    decoded = chunked(bed.autoencoder.decoder, z)
    none = ~torch.isin(bed.pictures.explain.y, torch.tensor(LOOPED))
    none &= (holes(x) == 0) & (holes(decoded) == 0) & (probe(z) < 0).cpu()
    return none.nonzero()[:n, 0]


def darkest(bed: Bed, n: int) -> Tensor:
    """The first n rows of the quarter of held-out pictures with the smallest bright share."""
    share = bright_fraction(bed.pictures.explain.x)
    return (share <= share.quantile(0.25)).nonzero()[:n, 0]


def faithful(bed: Bed, site: Site, probe: LinearProbe, rows: Tensor, *, seed: int) -> Edit:
    """The authors' run for this concept, with their probe (specification 1.2 and 1.3)."""
    generator = torch.Generator().manual_seed(seed)
    loops = site.name == "loop"

    def run(x: Tensor) -> Maximisation:
        z, decoder = bed.autoencoder.encoder(x), bed.autoencoder.decoder
        terms: list[tuple[float, Distance]] = [(5.0, DecodedMSE(decoder, z, x))]
        if loops:
            terms = [(0.25, DecodedMSE(decoder, z, decoder(z))), (0.01, L1())]
        objective = Objective(site.layer, probe, terms, site.operator, link="sigmoid", loss="bce")
        recipe = MNIST_RECIPE if loops else FASHION_RECIPE
        return maximise_faithful(objective, x, 1.0, recipe, generator=generator)

    return _edited(bed, site, probe, rows, run, "sigmoid")


def sound(
    bed: Bed, site: Site, probe: LinearProbe, rows: Tensor, *, target: float | None = None
) -> Edit:
    """The least change of the decoded picture, and of few latent numbers, that meets the target."""

    def run(x: Tensor) -> Maximisation:
        z, decoder = bed.autoencoder.encoder(x), bed.autoencoder.decoder
        terms = [(1.0, DecodedMSE(decoder, z, decoder(z))), (SPARSE, L1())]
        objective = Objective(
            site.layer, probe, terms, site.operator, link=site.link, any_rows=True
        )
        return maximise_to(objective, x, site.target if target is None else target)

    return _edited(bed, site, probe, rows, run, site.link)


def through_picture(bed: Bed, site: Site, probe: LinearProbe, rows: Tensor) -> Edit:
    """As `sound`, but the target must be met by the decoded picture, put in from the start.

    Not in the document: its probe on the latent reads the change itself, and a change that the
    decoder ignores meets the target too.
    """

    def run(x: Tensor) -> Maximisation:
        encoder, decoder = bed.autoencoder.encoder, bed.autoencoder.decoder
        z = encoder(x)
        terms = [(1.0, DecodedMSE(decoder, z, decoder(z))), (SPARSE, L1())]
        operator = decoding(encoder, decoder)
        objective = Objective(site.read, probe, terms, operator, link=site.link, any_rows=True)
        return maximise_to(objective, x, site.target)

    return _edited(bed, site, probe, rows, run, site.link)


def straight(bed: Bed, site: Site, probe: LinearProbe, rows: Tensor) -> Edit:
    """The nearest latent that meets the target, whatever it decodes to.

    For a probe on the latent itself that is a step along its weights: the closed form.
    """

    def run(x: Tensor) -> Maximisation:
        objective = Objective(site.layer, probe, [(1.0, L2Sq())], site.operator, link=site.link)
        return maximise_to(objective, x, site.target)

    return _edited(bed, site, probe, rows, run, site.link)


def random_change(
    bed: Bed, site: Site, probe: LinearProbe, rows: Tensor, like: Edit, *, seed: int
) -> Edit:
    """A random change of the latent, as long as that of `like`."""
    drawn = torch.randn(like.latent.shape, generator=torch.Generator().manual_seed(seed))
    unit = (drawn / drawn.norm(dim=1, keepdim=True)).to(like.latent)
    latent = like.latent_before + like.length()[:, None] * unit
    z = like.latent_before
    steps = torch.zeros(len(rows), dtype=torch.long)
    return _judged(bed, site, probe, like.before, z, latent, None, site.link, steps)


def pixels(bed: Bed, site: Site, probe: LinearProbe, rows: Tensor) -> Edit:
    """The least change of the pixels themselves (squared) at which the probe reads the target."""

    def run(x: Tensor) -> Maximisation:
        objective = Objective(site.read, probe, [(1.0, L2Sq())], add, link=site.link)
        return maximise_to(objective, x, site.target)

    x = bed.pictures.explain.x[rows].to(bed.latents.device)
    found = [run(part) for part in x.split(CHUNK)]
    after = torch.cat([f.result for f in found])
    encode = bed.autoencoder.encoder
    edit = _judged(
        bed,
        site,
        probe,
        x,
        chunked(encode, x),
        chunked(encode, after),
        after,
        site.link,
        torch.cat([f.steps for f in found]),
    )
    return edit


def _edited(
    bed: Bed,
    site: Site,
    probe: LinearProbe,
    rows: Tensor,
    run: Callable[[Tensor], Maximisation],
    link: str,
) -> Edit:
    x = bed.pictures.explain.x[rows].to(bed.latents.device)
    found = [run(part) for part in x.split(CHUNK)]
    z = chunked(bed.autoencoder.encoder, x)
    latent = z + torch.cat([f.delta for f in found])
    steps = torch.cat([f.steps for f in found])
    before = chunked(bed.autoencoder.decoder, z)
    return _judged(bed, site, probe, before, z, latent, None, link, steps)


def _judged(
    bed: Bed,
    site: Site,
    probe: LinearProbe,
    before: Tensor,
    z: Tensor,
    latent: Tensor,
    after: Tensor | None,
    link: str,
    steps: Tensor,
) -> Edit:
    """Decode and read; a picture edited in its pixels (`after`) is read from the start."""
    decoded = chunked(bed.autoencoder.decoder, latent) if after is None else after

    def value(p: Tensor) -> Tensor:
        return torch.sigmoid(p) if link == "sigmoid" else p

    def reading(at: Tensor) -> Tensor:
        h = at if site.name == "loop" else chunked(site.layer, chunked(bed.autoencoder.decoder, at))
        return value(probe(h))

    again = value(probe(chunked(site.read, decoded)))
    first = value(probe(chunked(site.read, before)))
    return Edit(
        before=before,
        after=decoded,
        latent_before=z,
        latent=latent,
        probe_before=reading(z) if after is None else first,
        probe_after=reading(latent) if after is None else again,
        reread=again,
        steps=steps,
    )
