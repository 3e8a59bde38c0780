"""Annotations: coverage, subsets, refusals."""

from __future__ import annotations

import pytest
import torch

from lib.data.annotations import Annotations, Concept, word_of

TWO = (Concept(7, "red-c", "red", "color"), Concept(9, "street-s", "street", "scene"))


def test_coverage_counts_a_pixel_once_and_a_whole_image_as_one() -> None:
    planes = torch.tensor([[[[1, 0], [0, 0]], [[1, 1], [0, 0]]], [[[0, 0], [0, 0]]] * 2])
    found = Annotations(TWO, planes.short(), torch.tensor([[0], [2]]), torch.ones(2, 6).bool())
    assert torch.equal(found.coverage(), torch.tensor([[0.5, 0.0], [0.0, 1.0]]))
    assert torch.equal(found.take([1]).coverage(), torch.tensor([[0.0, 1.0]]))
    assert found.words == ("red", "street")
    assert found.categories.tolist() == [0, 4]


def test_words_are_raw_names_without_suffix() -> None:
    assert [word_of(w) for w in ("palm_tree", "red-c", "art_studio-s")] == [
        "palm tree",
        "red",
        "art studio",
    ]


def test_labels_beyond_the_concepts_and_wrong_shapes_are_refused() -> None:
    flags = torch.ones(1, 6).bool()
    with pytest.raises(ValueError, match=r"0..3, but there are 2 concepts"):
        Annotations(TWO, torch.tensor([[[[0, 3]]]]), torch.zeros(1, 1).int(), flags)
    with pytest.raises(ValueError, match="annotated"):
        Annotations(TWO, torch.zeros(1, 1, 2, 2).short(), torch.zeros(1, 1).int(), flags[:, :5])
    bad = (Concept(1, "x", "x", "mood"),)
    with pytest.raises(ValueError, match="mood"):
        Annotations(bad, torch.zeros(1, 1, 2, 2).short(), torch.zeros(1, 1).int(), flags)
