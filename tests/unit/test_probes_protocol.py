"""The whole protocol on data whose answer is known."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from lib import probes


def concept(n: int = 600, d: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Activations that carry a concept, the same rows without it, labels."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, d, generator=generator, dtype=torch.float64)
    empty = torch.randn(n, d, generator=generator, dtype=torch.float64)
    noise = 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)
    return z, empty, (z[:, 0] + noise > 0).long()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_split_shares_no_group_and_loses_no_row():
    groups = torch.arange(300) // 7
    parts = probes.split_by_group(300, generator=seeded(), groups=groups)
    assert torch.cat(parts).sort().values.tolist() == list(range(300))
    owners = [set(groups[rows].tolist()) for rows in parts]
    assert not owners[0] & owners[1]
    assert not owners[0] & owners[2]
    assert not owners[1] & owners[2]
    for rows, share in zip(parts, (0.6, 0.2, 0.2), strict=True):
        assert abs(len(rows) / 300 - share) < 7 / 300
    sizes = [len(rows) for rows in probes.split_by_group(100, generator=seeded())]
    assert sizes == [60, 20, 20]


def test_a_planted_concept_is_admissible_and_its_controls_are_at_chance():
    z, empty, y = concept()
    probe, report = probes.validate_penalty(
        z, y, generator=seeded(), random_network=empty, raw_input=z, trivial=z[:, 1] > 0
    )
    assert report.admissible is True
    assert report.ci[0] < report.score < report.ci[1]
    assert report.score > 0.7
    assert report.auc > 0.95
    assert report.ece < 0.2  # 120 rows in 15 bins: about .05 to .1 by chance
    assert report.n_nonzero == 6
    assert report.n_test == 120
    assert report.penalty in probes.PENALTIES
    assert report.controls["raw_input"] == pytest.approx(report.score)
    for name in ("random_network", "shuffled", "trivial", "majority"):
        assert abs(report.controls[name]) < 0.3, name  # 3 sd of one S on 120 rows is .27
    assert probes.accuracy(probe.score(z), y) > 0.85


def test_a_trivial_rule_as_good_as_the_probe_forbids_maximising():
    z, empty, y = concept()
    _, report = probes.validate_penalty(
        z, y, generator=seeded(), random_network=empty, trivial=z[:, 0] > 0
    )
    assert report.admissible is False


def test_a_rare_concept_must_beat_the_majority():
    generator = seeded()
    z = torch.randn(600, 4, generator=generator, dtype=torch.float64)
    y = (torch.rand(600, generator=generator) < 0.1).long()
    _, report = probes.validate_penalty(z, y, generator=generator, random_network=z)
    assert report.score > 0.6  # S is high for a probe that always says no
    assert report.admissible is False


def test_without_a_random_network_admissibility_is_not_judged():
    z, _, y = concept()
    assert probes.validate_penalty(z, y, generator=seeded())[1].admissible is None


def test_a_probe_that_memorises_groups_has_low_selectivity():
    groups = torch.arange(600) % 8
    generator = seeded()
    z = torch.nn.functional.one_hot(groups).double()
    z = z + 0.1 * torch.randn(600, 8, generator=generator, dtype=torch.float64)
    y = (groups < 4).long()
    _, memory = probes.validate_penalty(z, y, generator=generator, control_groups=groups)
    assert memory.controls["control_task"] > 0.9
    assert memory.controls["selectivity"] < 0.1
    z, _, y = concept()
    _, honest = probes.validate_penalty(z, y, generator=generator, control_groups=groups)
    assert honest.controls["selectivity"] > 0.5


def test_regression_protocol_reports_r2():
    z, empty, _ = concept()
    y = 3 * z[:, 0] + 100
    probe, report = probes.validate_ridge(
        z, y, generator=seeded(), random_network=empty, trivial=y + 1, groups=torch.arange(600) // 3
    )
    assert report.score > 0.99
    assert report.auc is None
    assert report.ece is None
    assert report.controls["random_network"] < 0.1
    assert report.controls["mean"] < 0.01
    assert report.admissible is True
    assert (probe.score(z) - y).abs().max() < 0.1


def test_the_same_seed_gives_the_same_report_and_it_is_frozen():
    z, empty, y = concept(120)
    first = probes.validate_penalty(z, y, generator=seeded(), random_network=empty)[1]
    again = probes.validate_penalty(z, y, generator=seeded(), random_network=empty)[1]
    assert first == again
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.score = 1.0
