"""All checkpoints in one pass over the images.

`observe` goes through the images once for each checkpoint, with one network in memory. Where it
takes longer to read or prepare the images than to run the network, do it the other way round::

    states = list(checkpoint_files(paths))
    score = scores_together(model, states, probe, layers, detectors)
    observe(model, states, probe, layers, detectors, ..., score=score)

Public name: `scores_together`.

Source: specification section 6 (data in the outer loop, checkpoints in the inner one).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import nn

from lib import cache
from lib.monitoring.activations import LayerActivations, Progress, layer_activations_of
from lib.monitoring.detectors import Detector
from lib.monitoring.record import Probe, Score, State, Top, load, tops_of


def scores_together(
    model: nn.Module,
    states: Sequence[tuple[int, State]],
    probe: Probe,
    layers: Sequence[str],
    detectors: Sequence[Detector],
    *,
    progress: Progress | None = None,
) -> Score:
    """Activations of all checkpoints now, and a `score` for `observe` that looks them up.

    Args:
        model, states, probe, layers, detectors: as for `observe`; as many networks as there are
            states are in memory, with their activations (feature maps too, if a detector needs
            them).
        progress: wraps the range of chunk starts.

    Raises:
        ValueError: no states, or one of another network; from the returned function: other
            weights, images or layers than these.
    """
    networks = []
    for epoch, state in states:
        network = copy.deepcopy(model)
        load(network, state, f"epoch {epoch}")
        networks.append(network)
    found = layer_activations_of(
        networks,
        probe.x,
        layers,
        ids=probe.ids,
        maps=any(d.needs_maps for d in detectors),
        pooling=probe.pooling,
        prepare=probe.prepare,
        chunk=probe.chunk,
        progress=progress,
    )
    known: dict[str, dict[str, LayerActivations]] = {
        cache.state_hash(dict(network.state_dict())): acts
        for network, acts in zip(networks, found, strict=True)
    }

    def score(
        model: nn.Module,
        images: Probe,
        layers: Sequence[str],
        detectors: Sequence[Detector],
        k: int,
    ) -> dict[tuple[str, str], Top]:
        acts = known.get(cache.state_hash(dict(model.state_dict())))
        if acts is None or images is not probe or not set(layers) <= set(acts):
            raise ValueError(
                "these scores are of other checkpoints, images or layers; give `observe` what "
                "`scores_together` was given"
            )
        return tops_of(acts, layers, detectors, k)

    return score
