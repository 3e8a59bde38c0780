"""Detectors on photographs and CLIP's names as a space: the whole path on a tiny folder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lib import figures
from lib.data import clip_text
from lib.data.base import Expected, MissingData
from lib.monitoring import photo_pictures, photo_studies
from lib.monitoring.activations import ConceptScores, ConceptSet
from lib.monitoring.calibration import Rule
from lib.monitoring.photo_studies import LAST, LAYERS, PhotoStudy
from lib.monitoring.photographs import CHANCE, DETECTORS
from tests.network_folder import write_mobilenet
from tests.real_folders import write_concept_images

N = 14
SIZE = {"side": 32, "n_each": 12, "fewest": 2, "n_rounds": 2}
WORDS = ("road", "car", "shoes", "coat", "hat", "dress", "red", "banded")
ORACLE = {"detector": "oracle", "theta": 1.0, "kind": "pca"}
KINDS = (*("object",) * 6, "color", "texture")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PhotoStudy]:
    root = tmp_path_factory.mktemp("data")
    write_concept_images(root, N)
    write_mobilenet(root)
    expected = Expected({}, train=(N // 2, N // 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIR", str(tmp_path_factory.mktemp("whole") / "cache"))
        yield photo_studies.fetch_study(SIZE, root, 0, images=expected, network=expected)


def test_the_real_path_runs_from_files_to_claims(study: PhotoStudy) -> None:
    assert study.n == 3 * 12
    for layer, width in zip(LAYERS, (384, 576, 1280), strict=True):
        for name in (*DETECTORS, *(CHANCE + name for name in DETECTORS)):
            assert study.scores[name, layer].h.shape == (width, len(study.concepts))
    found = photo_studies.claims_of([study])
    assert found.keys() == {"P2-08", "P2-09"}
    assert found["P2-09"][0] >= 0
    rows = photo_studies.rows(study)
    assert [row["units"] for row in rows] == [384, 576, 1280]


def test_no_sizes_mean_not_run_and_no_data_a_sentence(tmp_path: Path) -> None:
    assert photo_studies.fetch_studies({}, tmp_path, 0) == []
    assert set(photo_studies.claims_of([]).values()) == {None}
    with pytest.raises(MissingData, match=r"MobileNetV2 not found under DATA_ROOT"):
        photo_studies.fetch_studies(SIZE, tmp_path, 0)


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Expected]:
    """Text embeddings of six names: orthogonal, stored at any length."""
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "cache"))
    words = ["car_(automobile)", "shoe", "coat", "hat", "dress", "dog"]
    (tmp_path / clip_text.FILE).parent.mkdir()
    np.savez(tmp_path / clip_text.FILE, embeddings=3 * np.eye(6, 8), names=np.array(words))
    return tmp_path, Expected({}, train=(6,))


def planted() -> PhotoStudy:
    """Three units of the last layer: shoes; red; dead."""
    h = torch.zeros(3, len(WORDS))
    h[0, 2], h[1, 6], h[1, 1] = 50.0, 60.0, 50.0
    dead = torch.tensor([False, False, True])
    scores = ConceptScores(h, "oracle", {}, dead, torch.ones_like(h))
    rule = Rule(3.0, 0.5)
    return PhotoStudy(
        10, ConceptSet(WORDS, KINDS), {("oracle", LAST): scores}, {LAST: rule}, torch.zeros(2)
    )


def test_a_unit_is_placed_among_the_names_of_its_own_words(names: tuple[Path, Expected]) -> None:
    root, expected = names
    found = photo_studies.named_space(planted(), root, **ORACLE, expected=expected)
    assert found.shared == {"car": 0, "shoes": 1, "coat": 2, "hat": 3, "dress": 4}
    torch.testing.assert_close(found.u[0], torch.eye(6, 8)[1])
    # the best word of the second is a colour, which has no name: placed by the next, not counted
    torch.testing.assert_close(found.u[1], torch.eye(6, 8)[0])
    assert found.word[:2].tolist() == [1, 0]
    assert found.interpretable.tolist() == [True, False, False]
    torch.testing.assert_close(found.xy[0], found.basis.points[1])
    few = replace(planted(), concepts=ConceptSet(("road", *WORDS[2:], "sky"), KINDS))
    with pytest.raises(ValueError, match="at least 5 words"):
        photo_studies.named_space(few, root, expected=expected)


def test_the_figure_is_drawn(study: PhotoStudy, names: tuple[Path, Expected]) -> None:
    import matplotlib.pyplot as plt

    named = photo_studies.named_space(planted(), names[0], **ORACLE, expected=names[1])
    figures.use_style()
    fig = photo_pictures.side_by_side(study, named)
    fig.canvas.draw()
    plt.close(fig)
