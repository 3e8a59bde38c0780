"""Rows of `make bench` for concept maximisation: all samples at once against one after the other.

The peer is the same function called sample by sample on its first samples; its time is scaled up
to all of them. Each sample is a problem of its own, so both must come to the same answers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lib.backprop import L1, DecodedMSE, Objective, maximise, maximise_to, tabular
from lib.backprop import images as image_beds
from lib.backprop.maximisation import Maximisation
from lib.profiles.part5 import SIZES
from tests.benchmarks.row import Row

N_HOUSES, N_HOUSES_PEER = 500, 40
N_DIGITS, N_DIGITS_PEER = 200, 20


def _alike(batch: Maximisation, alone: list[Maximisation]) -> tuple[bool, str]:
    """Same objective and same probe value, row by row."""
    k = len(alone)
    mine, theirs = batch.objective[:k], torch.cat([one.objective for one in alone])
    gap = float(((mine - theirs).abs() / theirs.abs().clamp_min(1e-6)).max())
    read = float(
        (batch.probe_after[:k] - torch.cat([one.probe_after for one in alone])).abs().max()
    )
    return gap < 1e-2 and read < 1e-3, f"objectives agree to {gap:.0e}, probe values to {read:.0e}"


def _row(run: Callable[[Tensor], Maximisation], s: Tensor, n: int, target: float, what: str) -> Row:
    return Row(
        ours=lambda: run(s),
        peer=lambda: [run(one) for one in s[:n].split(1)],
        agree=_alike,
        peer_name="one by one",
        target=target,
        sizes=f"{len(s)} {what}; the peer does {n}",
        peer_share=n / len(s),
    )


def housing() -> Row:
    """The tabular experiment's sound mode: 6-40-20-1, L1, towards the 95% quantile."""
    bed = tabular.prepare("shared", Path(), seed=0, n_models=1, epochs=20, n_rows=6000, rho=0.7)
    probe, _ = tabular.validated_probe(bed, seed=0)
    layer = tabular.StackedPrefix("mlp", tabular.SPEC, bed.state, tabular.LAYER)
    objective = Objective(layer, probe, [(0.05, L1(scale=bed.sd))])
    s = bed.v[bed.lowest(N_HOUSES)]
    return _row(
        lambda x: maximise(objective, x, bed.target), s, N_HOUSES_PEER, 50.0, "houses, 6-40-20-1"
    )


def digits() -> Row:
    """The image experiment's faithful objective in its sound mode: a loop in the latent space."""
    size = SIZES["52_images"]["quick"]["beds"]["digits"]  # type: ignore[index, call-overload]
    bed = image_beds.prepare("digits", Path(), seed=0, **size)
    site = image_beds.loop(bed)
    probe, _ = image_beds.validated_probe(bed, site, seed=0)
    z = image_beds.chunked(site.read, bed.pictures.explain.x)
    rows = (probe(z) < 0).nonzero()[:N_DIGITS, 0]
    if len(rows) < N_DIGITS:
        more = image_beds.chunked(site.read, bed.pictures.probe.x)
        extra = (probe(more) < 0).nonzero()[: N_DIGITS - len(rows), 0]
        s = torch.cat([bed.pictures.explain.x[rows], bed.pictures.probe.x[extra]])
    else:
        s = bed.pictures.explain.x[rows]
    decoder = bed.autoencoder.decoder

    def run(x: Tensor) -> Maximisation:
        point = bed.autoencoder.encoder(x)
        terms = [(0.25, DecodedMSE(decoder, point, decoder(point))), (0.01, L1())]
        objective = Objective(
            site.layer, probe, terms, site.operator, link="sigmoid", any_rows=True
        )
        return maximise_to(objective, x, site.target)

    return _row(run, s, N_DIGITS_PEER, 10.0, "digits, autoencoder of 8 channels")


ROWS: dict[str, Callable[[], Row]] = {
    "maximise/housing-500": housing,
    "maximise/digits-autoencoder-200": digits,
}
