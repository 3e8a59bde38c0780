"""The problems on which rules for the weight of the distance are compared (`weight_studies`).

Public names: `table_problem`, `picture_problem`, `word_problem`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lib.backprop import images, language, language_studies, tabular
from lib.backprop.objective import Objective, Operator
from lib.backprop.picture_measures import holes, neighbour_distance
from lib.backprop.stacked import StackedPrefix
from lib.backprop.weight_studies import Problem, squared
from lib.data import housing

BEYOND = 0.99  # quantile of the concept that the loss aims at; tau is the 95% quantile
NEIGHBOURS = 10


def table_problem(bed: tabular.Bed, *, n: int, seed: int) -> Problem:
    """Bedrooms per person, one network, the houses with the fewest; units of train sd.

    A sample is near the data when its mean distance to its 10 nearest test rows is below the 95%
    quantile of theirs. Truth: the share of the way to tau that the true ratio has come.
    """
    probe, _ = tabular.validated_probe(bed, seed=seed)
    layer = StackedPrefix("mlp", tabular.SPEC, bed.state, tabular.LAYER)
    objective = Objective(layer, probe, squared(bed.sd))
    s = bed.v[bed.lowest(n)]
    reference = bed.v / bed.sd
    usual = _away(reference[:500], reference, skip=1).quantile(0.95)
    before = housing.bedroom_ratio(s)

    def truth(delta: Tensor) -> Tensor:
        return (housing.bedroom_ratio(s + delta) - before) / (bed.target - before)

    return Problem(
        name="table",
        objective=objective,
        s=s,
        goal=bed.ratio.double().quantile(BEYOND).item(),
        tau=bed.target,
        near=lambda delta: _away((s + delta) / bed.sd, reference) <= usual,
        truth=truth,
    )


def picture_problem(bed: images.Bed, rows: Tensor, *, seed: int) -> Problem:
    """A loop in the latent of an autoencoder; units of the latents' median spacing.

    Truth: the decoded picture has a hole.
    """
    site = images.loop(bed)
    probe, _ = images.validated_probe(bed, site, seed=seed)
    x = bed.pictures.explain.x[rows]
    z = images.chunked(bed.autoencoder.encoder, x)
    objective = Objective(
        site.layer,
        probe,
        squared(bed.spacing),
        Operator(torch.add, modules=(bed.autoencoder,)),
        link="sigmoid",
        loss="bce",
        any_rows=True,
    )

    def near(delta: Tensor) -> Tensor:
        return neighbour_distance(z + delta, bed.latents) <= bed.near

    def truth(delta: Tensor) -> Tensor:
        decoded = images.chunked(bed.autoencoder.decoder, z + delta)
        return (holes(decoded) > 0).to(z.dtype)

    return Problem("pictures", objective, z, 1.0, images.REACH, near, truth)


def word_problem(subject: language_studies.Subject) -> Problem:
    """A plural subject in a language model; units of the mean distance to the nearest word.

    Near: every word's embedding is nearer to a word than the nearest other word is, in the mean.
    Truth: rounded to words, the subject is plural.
    """
    model = subject.model
    table = model.words.weight
    between = torch.cdist(table, table)
    between.fill_diagonal_(torch.inf)
    spacing = between.amin(1).mean().item()
    e = model.embed(subject.prefix)
    objective = Objective(
        language_studies.LastState(model),
        subject.probe.score,
        squared(spacing),
        Operator(torch.add, modules=(model,)),
        link="sigmoid",
        loss="bce",
        any_rows=True,
    )

    def nearest(delta: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.cdist((e + delta).flatten(0, 1), table).min(1)
        return found.values.view(e.shape[:2]), found.indices.view(e.shape[:2])

    def near(delta: Tensor) -> Tensor:
        return (nearest(delta)[0] <= spacing).all(1)

    def truth(delta: Tensor) -> Tensor:
        word = nearest(delta)[1][:, language.SUBJECT]
        return torch.isin(word, torch.tensor(language_studies.PLURAL)).to(e.dtype)

    return Problem("words", objective, e, 1.0, language_studies.TARGET, near, truth)


def _away(x: Tensor, reference: Tensor, skip: int = 0) -> Tensor:
    """Mean distance to the nearest rows, the first `skip` left out, `[n]`."""
    nearest = torch.cdist(x, reference).topk(NEIGHBOURS + skip, dim=1, largest=False).values
    return nearest[:, skip:].mean(1)
