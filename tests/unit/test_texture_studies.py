"""Fine-tuning on photographs: the whole real path on a tiny folder, and planted traces."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lib import figures
from lib.data.base import Expected, MissingData
from lib.monitoring import texture_pictures, texture_studies
from lib.monitoring.photographs import CHANCE, DETECTORS
from lib.monitoring.record import Record
from lib.monitoring.texture_studies import BEFORE, CONTROL, LAST, TUNED, UNTRAINED, TextureStudy
from tests.network_folder import write_mobilenet
from tests.planted_traces import CONCEPTS, SPACE, trace
from tests.real_folders import write_concept_images

N = 14  # images an archive: seven of each of two textures
SIZE = {
    "side": 32,
    "n_train": 2,
    "n_test": 2,
    "n_each": 12,
    "fewest": 2,
    "n_rounds": 2,
    "recipe": {"epochs": 2, "batch_size": 2, "lr": 1e-4, "optimizer": "adam"},
    "keep": (0, 1, 2),
}


def fetch(root: Path) -> TextureStudy:
    expected = Expected({}, train=(N // 2, N // 2))
    return texture_studies.fetch_study(SIZE, root, 0, images=expected, network=expected)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_concept_images(folder, N)
    write_mobilenet(folder)
    return folder


@pytest.fixture(scope="module")
def study(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TextureStudy]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIR", str(tmp_path_factory.mktemp("whole") / "cache"))
        yield fetch(root)


def test_the_real_path_runs_from_files_to_claims(study: TextureStudy) -> None:
    assert study.names == ("banded", "dotted")
    assert (study.n_train, study.n_probe) == (4, 12 + 12 + 6)
    assert study.epochs == (0, 1, 2)
    assert study.right[TUNED].keys() == {0, 1, 2}
    assert study.right[CONTROL].keys() == {2}
    assert study.majority == 0.5
    for name in DETECTORS:
        for prefix in ("", CHANCE):
            assert study.trace(prefix + name).label.shape == (3, 1280)
            assert study.trace(prefix + name, UNTRAINED).label.shape == (1, 1280)
    assert study.trace("oracle").layer == LAST
    assert study.trace("net_dissection").layer == BEFORE
    found = texture_studies.claims_of([study], n_draws=20)
    assert all(pair is not None and 0 <= pair[1] <= 1 for pair in found.values())
    assert {"object", "part", "texture", "color"} == set(study.concepts.category())


def test_training_starts_from_the_network_of_the_file(study: TextureStudy, root: Path) -> None:
    """Labels permuted or not, the start is one; and it learns: the weights differ after."""
    tuned, other = (study.trace("oracle", arm) for arm in (TUNED, CONTROL))
    assert tuned.epochs == (0, 1, 2)
    assert other.epochs == (2,)
    assert not tuned.h[0].equal(tuned.h[2])
    assert not tuned.h[2].equal(other.h[0])


def test_the_figure_and_table_are_drawn(study: TextureStudy) -> None:
    import matplotlib.pyplot as plt

    figures.use_style()
    fig = texture_pictures.overview(study)
    fig.canvas.draw()
    plt.close(fig)
    rows = texture_studies.rows(study)
    arms = [(row["trained on"], row["epochs"]) for row in rows]
    assert arms == [(TUNED, 0), (TUNED, 1), (TUNED, 2), (CONTROL, 2), (UNTRAINED, 0)]
    assert [row["accuracy"] == "" for row in rows] == [True, False, False, False, True]


def test_no_sizes_mean_not_run_and_no_data_a_sentence(tmp_path: Path) -> None:
    assert texture_studies.fetch_studies({}, tmp_path, 0) == []
    assert set(texture_studies.claims_of([]).values()) == {None}
    assert texture_studies.describe([]).startswith("not run")
    with pytest.raises(MissingData, match=r"MobileNetV2 not found under DATA_ROOT"):
        texture_studies.fetch_studies(SIZE, tmp_path, 0)


def test_textures_train_test_and_probe_without_overlap() -> None:
    y = torch.tensor([0, 1] * 10)
    parts = texture_studies.split(y, 5, 2, seed=3)
    assert torch.cat(parts).sort().values.tolist() == list(range(20))
    assert [y[part].bincount().tolist() for part in parts] == [[5, 5], [2, 2], [3, 3]]
    again = texture_studies.split(y, 5, 2, seed=3)
    assert all(a.equal(b) for a, b in zip(parts, again, strict=True))
    with pytest.raises(ValueError, match="class 0 has 10 images"):
        texture_studies.split(y, 8, 2, seed=3)


def planted() -> TextureStudy:
    """Ten units: four objects before and one after; one stripe before, three after."""
    before = ["tree", "boat", "fish", "lamp", "red", "red", "red", "roof", "roof", "striped"]
    after = ["striped", "striped", "fish", "red", "red", "red", "red", "roof", "red", "striped"]
    traces = []
    for name in DETECTORS:
        for prefix in ("", CHANCE):
            for layer in (LAST, BEFORE):
                options = {"layer": layer, "detector": prefix + name}
                traces += [
                    trace([before, after], epochs=(0, 8), arm=TUNED, **options),
                    trace([before], epochs=(8,), arm=CONTROL, **options),
                    trace([["red"] * 10], [[0] * 10], arm=UNTRAINED, **options),
                ]
    record = Record(tuple(traces), SPACE, SimpleNamespace(digest=SPACE.digest))
    right = torch.arange(100)
    return TextureStudy(
        0,
        ("banded", "dotted"),
        4,
        30,
        CONCEPTS,
        (0, 8),
        {TUNED: {0: right < 20, 8: right < 70}, CONTROL: {8: right < 50}},
        0.5,
        record,
    )


def test_claims_are_what_was_planted() -> None:
    found = texture_studies.claims_of([planted()], n_draws=50)
    assert {name: pair[0] for name, pair in found.items()} == pytest.approx(
        {
            "P2-64": 0.3,
            "P2-65": 0.2,
            "P2-66": 0.3,
            "P2-67": 0.2,
            "P2-68": 0.2,
            "P2-69": 0.2,
        }
    )


def test_rows_count_units_by_category() -> None:
    rows = texture_studies.rows(planted())
    assert [row["oracle"] for row in rows] == ["4 2 1 3", "1 1 3 5", "4 2 1 3", "0 0 0 0"]
    assert [row["accuracy"] for row in rows] == ["", 0.7, 0.5, ""]
    assert [row["chance, oracle"] for row in rows] == [10, 10, 10, 0]
