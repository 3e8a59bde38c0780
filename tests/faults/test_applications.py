"""What the applications of datamodels refuse, in one sentence that says what to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lib.attribution import application_studies, embedding, planted, planted_studies
from lib.attribution.application_studies import Group, Study
from lib.attribution.truth import Setting
from lib.data.base import Split
from lib.training import Recipe

ROWS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
RECIPE = Recipe(epochs=5, batch_size=10, lr=0.1)


def images(n: int, size: int = 5) -> Split:
    return Split(torch.rand(n, size, size), torch.arange(n) % 10)


def plant(**changed: object) -> planted.Planted:
    chosen = {"n_copies": 3, "noise": 0.1, "step": 1, "hidden": (4,), "recipe": RECIPE}
    return planted.plant("tiny", images(20), images(10), images(10), **{**chosen, **changed})


@pytest.mark.parametrize(
    "changed",
    [{"n_copies": 11}, {"n_copies": 0}, {"step": 5}, {"recipe": replace(RECIPE, epochs=7)}],
)
def test_a_set_that_cannot_be_planted(changed):
    with pytest.raises(ValueError, match="want 1 to 10 copies, a step of 1 to 4 pixels and epochs"):
        plant(**changed)


def test_images_that_are_not_square():
    flat = Split(torch.rand(20, 25), torch.arange(20) % 10)
    with pytest.raises(
        ValueError, match=r"want square images \[n, h, h\] of one size, got \[20, 25\]"
    ):
        planted.plant(
            "tiny",
            flat,
            images(10),
            images(10),
            n_copies=1,
            noise=0.1,
            step=1,
            hidden=(4,),
            recipe=RECIPE,
        )


def test_more_rows_than_there_are():
    with pytest.raises(ValueError, match="want 1 to 1000 images, got 1970"):
        planted.planted_digits(2000, 100, 10, 30)


def test_a_shift_out_of_the_image():
    with pytest.raises(ValueError, match="want a shift inside 5x5 pixels"):
        planted.shift(torch.rand(2, 5, 5), 0, 5)


def test_pairs_to_find_that_are_not_there():
    scores = torch.rand(4, 3)
    none = torch.zeros(4, 3, dtype=torch.bool)
    for wrong in (none, none[:, :2], scores):
        with pytest.raises(ValueError, match="with a planted pair"):
            planted_studies.find("x", scores, wrong)
    none[0, 0] = True
    with pytest.raises(ValueError, match="want 1 to 12 ranks, got 100"):
        planted_studies.find("x", scores, none)


def test_clusters_of_too_few_targets_or_of_no_square():
    for wrong in (torch.eye(2), torch.rand(4, 3)):
        with pytest.raises(ValueError, match=r"want similarities \[T, T\] of more than 2 targets"):
            embedding.spectral_clusters(wrong)


def test_nan_is_named_by_its_target():
    rows = ROWS.clone()
    rows[3, 1] = torch.nan
    for call in (embedding.cosines, embedding.components, lambda r: embedding.residuals(r, ROWS)):
        with pytest.raises(ValueError, match="first for target 3"):
            call(rows)


def test_a_target_without_weights_has_no_direction():
    rows = ROWS.clone()
    rows[2] = 0
    with pytest.raises(ValueError, match="target 2 has no weights in the second algorithm"):
        embedding.residuals(ROWS, rows)


def test_algorithms_on_different_training_sets():
    with pytest.raises(ValueError, match="rows of the same targets and training set"):
        embedding.residuals(ROWS, ROWS[:, :4])


def test_a_contrast_judged_by_nothing():
    with pytest.raises(ValueError, match="at least one pair of rows"):
        embedding.contrast((ROWS, ROWS.flip(0)), [])


def test_an_algorithm_compared_with_itself_on_the_same_networks():
    """No direction may be made up out of round-off."""
    with pytest.raises(ValueError, match="same rows for every target, so nothing sets them apart"):
        embedding.contrast((ROWS, 2 * ROWS), None, 1)


def test_labellings_of_different_targets():
    with pytest.raises(ValueError, match="want two labellings"):
        embedding.rand_index(torch.zeros(4).long(), torch.zeros(5).long())


def test_more_components_than_rows():
    with pytest.raises(ValueError, match="want 1 to 5 components, got 6"):
        embedding.components(ROWS, 6)


def test_more_targets_than_are_right():
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="want 1 to 2 targets that are right on average, got 3"):
        application_studies.choose(torch.tensor([1.0, -1.0, 2.0]), 3, generator)


def test_a_datamodel_without_weights_ranks_no_rows():
    tau = torch.rand(9, 3)
    application_studies.refuse_empty(tau, [4, 7, 8], "LASSO")
    tau[:, 1] = 0
    with pytest.raises(ValueError, match=r"1 of 3 targets have no weights by LASSO \(target 7\)"):
        application_studies.refuse_empty(tau, [4, 7, 8], "LASSO")


def test_a_class_smaller_than_what_is_to_go(monkeypatch: pytest.MonkeyPatch):
    data = Split(torch.rand(12, 2), torch.tensor([0] * 9 + [1] * 3))
    setting = Setting("tiny", "mlp", {"widths": (2, 2)}, RECIPE, data, data)
    study = Study(setting, ("a", "b"), [], torch.ones(2, 12), [0],
                  {"datamodel": torch.rand(12, 1)}, (4,), 1, 0)  # fmt: skip
    empty = torch.zeros(1, 2, 1)
    monkeypatch.setattr(application_studies.brittleness, "margins_without", lambda *a, **k: empty)
    with pytest.raises(ValueError, match="class 1 has 3 rows, cannot remove 4"):
        application_studies.remove(study, 2)


def test_changes_that_do_not_belong_together():
    with pytest.raises(ValueError, match="at least 3 predicted and actual changes"):
        application_studies.agreement([Group("", torch.rand(2, 3), torch.rand(2, 2), 0.0)])
