"""The specification's numbers for mislabels (sections 1.4 and 9, check 11)."""

from __future__ import annotations

from pathlib import Path

import pytest

from lib.attribution import mislabels, pools


@pytest.fixture(scope="module")
def study() -> mislabels.Sweep:
    return mislabels.sweep(
        pools.pool("digits", Path("nowhere")),
        side=8,
        n=1000,
        n_test=797,
        lam=0.01,
        flips=(0.1,),
        checks=(0.1, 0.2, 0.3),
        n_seeds=10,
        seed=500,  # not those of the notebook
    )


def test_self_influence_finds_flips(study) -> None:
    auc = study.auc[:, 0].mean(-1)
    assert auc[0] >= 0.93  # check 11
    assert auc[0] == pytest.approx(0.964, abs=0.015)  # one draw there, ten here
    assert auc[1] == pytest.approx(0.969, abs=0.015)
    assert auc[2] == pytest.approx(0.5, abs=0.05)


def test_shares_found_are_those_of_the_specification(study) -> None:
    found = study.found[:, 0, 1:].mean(-1)
    for order, want in ((0, (0.72, 0.95, 0.97)), (1, (0.74, 0.94, 0.96))):
        assert found[order].tolist() == pytest.approx(want, abs=0.06)
    assert found[2].tolist() == pytest.approx([0.1, 0.2, 0.3], abs=0.05)
