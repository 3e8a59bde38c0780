"""The trained image-text encoder on a probing set that nothing was chosen with.

Trains it when the cache has none: 3 minutes on two cores.
"""

from __future__ import annotations

import pytest

from lib.data import scenes
from lib.monitoring import encoder, encoder_floors

FRESH = 7_000  # seeds of probing sets that no choice was made on


@pytest.fixture(scope="module")
def quality() -> encoder_floors.Quality:
    return encoder_floors.measure(encoder.fetch(), scenes.probe(4096, FRESH))


def test_bare_words_name_what_swatches_close_ups_and_scenes_show(
    quality: encoder_floors.Quality,
) -> None:
    for measured in quality.zero_shot:
        assert measured.holds, measured


def test_every_category_is_told_apart_in_all_images(quality: encoder_floors.Quality) -> None:
    for measured in quality.auc:
        assert measured.holds, measured
