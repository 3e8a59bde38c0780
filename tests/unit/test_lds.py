"""The linear datamodeling score by hand, its ceiling and intervals; the older scores."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.testing import assert_close

from lib.attribution import metrics
from lib.attribution.subsets import sample_subsets


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_hand_example():
    # sums over the subsets {0,1}, {0,2}, {1,2}: 3, 5, 6 and 3, 1, 2
    tau = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 0.0]])
    subsets = torch.tensor([[0, 1], [0, 2], [1, 2]])
    outputs = torch.tensor([[0.1, 0.5], [0.9, 0.1], [0.2, 0.2]])
    score = metrics.lds(tau, subsets, outputs)
    assert metrics.predicted(tau, subsets).tolist() == [[3.0, 3.0], [5.0, 1.0], [6.0, 2.0]]
    # ranks 1 2 3 against 1 3 2: rho = 1 - 6 (0 + 1 + 1) / (3 * 8) = .5
    assert_close(score.per_target, torch.tensor([0.5, 1.0], dtype=torch.float64))
    assert score.mean == pytest.approx(0.75)
    assert score.n_constant == 0


def test_ties_share_their_average_rank():
    tau = torch.tensor([[1.0], [1.0], [2.0], [2.0], [0.0]])
    subsets = sample_subsets(5, 40, 0.4, seed=1)
    outputs = drawn(40, 1).round(decimals=1)
    guess = metrics.predicted(tau, subsets)
    assert guess.unique().numel() < 10  # many ties
    wanted = stats.spearmanr(guess[:, 0], outputs[:, 0]).statistic
    assert metrics.lds(tau, subsets, outputs).mean == pytest.approx(wanted, abs=1e-12)


def test_all_targets_at_once_are_each_target_alone():
    tau, subsets, outputs = drawn(30, 9), sample_subsets(30, 25, 0.5, seed=0), drawn(25, 9, seed=1)
    guess = metrics.predicted(tau, subsets)
    wanted = [stats.spearmanr(guess[:, t], outputs[:, t]).statistic for t in range(9)]
    assert_close(metrics.lds(tau, subsets, outputs).per_target.tolist(), wanted)


@pytest.mark.parametrize("of", ["truth", "constant tau", "zero tau"])
def test_a_constant_column_is_counted_and_scores_zero(of: str):
    tau, subsets, outputs = drawn(20, 2), sample_subsets(20, 15, 0.5, seed=0), drawn(15, 2, seed=1)
    whole = metrics.lds(tau, subsets, outputs)
    if of == "truth":
        outputs[:, 1] = 0.3
    else:
        tau[:, 1] = 0.1 if of == "constant tau" else 0.0  # sums of 0.1 differ by round-off
    score = metrics.lds(tau, subsets, outputs)
    assert score.n_constant == 1
    assert score.constant.tolist() == [False, True]
    assert score.per_target[1] == 0
    assert score.mean == pytest.approx(whole.per_target[0].item() / 2)
    interval = metrics.bootstrap(tau, subsets, outputs, n_resamples=50)
    assert interval.subsets[1] <= 0.5  # the constant column stays 0 in every resample


def test_a_duplicated_target_in_training_scores_with_a_positive_sign():
    """Only row 3 matters and it raises the output: its indicator predicts perfectly."""
    subsets = sample_subsets(10, 50, 0.5, seed=0)
    tau = torch.zeros(10, 1)
    tau[3] = 1.0
    outputs = (subsets == 3).any(1).double()[:, None]
    assert metrics.lds(tau, subsets, outputs).mean == pytest.approx(1.0)


def test_weighted_ranks_are_the_ranks_of_the_resample():
    values = drawn(30, 3).round(decimals=1)
    pick = torch.randint(30, (30,), generator=torch.Generator().manual_seed(2))
    counts = torch.bincount(pick, minlength=30)[None].double()
    ranks = metrics._WeightedRanks(values)(counts)[0]
    for t in range(3):
        wanted = stats.rankdata(values[pick, t].numpy())
        assert_close(ranks[pick, t], torch.from_numpy(wanted))


def test_bootstrap_over_subsets_is_that_of_explicit_resamples():
    tau = (16 * drawn(20, 3)).round() / 16  # exact sums, so that a subset twice is a tie
    subsets, outputs = sample_subsets(20, 30, 0.5, seed=0), drawn(30, 3, seed=1)
    n = metrics.CHUNK  # one block: the same draws
    interval = metrics.bootstrap(tau, subsets, outputs, n_resamples=n, seed=4)
    generator = torch.Generator().manual_seed(4)
    torch.randint(3, (n, 3), generator=generator)
    picks = torch.randint(30, (n, 30), generator=generator)
    scores = torch.tensor([metrics.lds(tau, subsets[p], outputs[p]).mean for p in picks])
    ends = scores.double().quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    assert_close(torch.tensor(interval.subsets, dtype=torch.float64), ends, atol=1e-6, rtol=0)


def test_bootstrap_over_targets_covers_the_planted_mean():
    """A perfect prediction of outputs with noise: the interval shrinks as 1 / sqrt(T)."""
    subsets = sample_subsets(30, 60, 0.5, seed=0)
    widths = []
    for n_targets in (25, 400):
        tau = drawn(30, n_targets)
        outputs = metrics.predicted(tau, subsets) + 3 * drawn(60, n_targets, seed=1)
        low, high = metrics.bootstrap(tau, subsets, outputs, n_resamples=400).targets
        assert low < metrics.lds(tau, subsets, outputs).mean < high
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4.0, rel=0.3)


def test_the_ceiling_of_planted_noise():
    """Signal and noise of equal size: single-seed reliability is 1/2, of 4 seeds 4/5.

    Rank correlations of normal variables are 6/pi asin(rho/2), a little below rho.
    """
    signal, noise = drawn(400, 1, 30), drawn(400, 4, 30, seed=1)
    found = metrics.ceiling(signal + noise)
    single = 6 / torch.pi * torch.asin(torch.tensor(0.25)).item()
    assert found.single == pytest.approx(single, abs=0.02)
    assert found.repeated == pytest.approx(4 * found.single / (1 + 3 * found.single))
    assert found.lds == pytest.approx(found.repeated**0.5)
    # what a perfect prediction really scores against the mean over the four seeds
    reached = metrics.spearman(signal[:, 0], (signal + noise).mean(1)).mean().item()
    assert found.lds == pytest.approx(reached, abs=0.02)


def test_no_signal_has_no_ceiling():
    assert metrics.ceiling(drawn(300, 2, 20)).lds < 0.3


def test_loo_correlation_is_pearson_over_rows():
    tau, effects = drawn(12, 2), drawn(12, 2, seed=1)
    wanted = [stats.pearsonr(tau[:, t], effects[:, t]).statistic for t in range(2)]
    assert_close(metrics.loo_correlation(tau, effects).tolist(), wanted)


def test_mislabel_auc_by_hand():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.7, 0.1])
    flipped = torch.tensor([True, False, True, False, False])
    # pairs (flipped, right): 0.9 beats all three; 0.7 loses, ties, wins
    assert metrics.mislabel_auc(scores, flipped) == pytest.approx((3 + 1.5) / 6)


def test_reciprocal_rank_and_recall_by_hand():
    scores = torch.tensor([[3.0, 1.0, 0.0], [2.0, 2.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    relevant = torch.zeros(4, 3, dtype=torch.bool)
    relevant[[1, 3], 0] = True  # ranks 2 and 4
    relevant[2, 1] = True  # rank 1
    relevant[0, 2] = True  # a constant score earns the last rank
    assert metrics.reciprocal_rank(scores, relevant).tolist() == [0.5, 1.0, 0.25]
    assert metrics.recall_at(scores, relevant, 2).tolist() == [0.5, 1.0, 0.0]
    assert metrics.recall_at(scores, relevant, 4).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: {**a, "tau": a["tau"].index_fill(0, torch.tensor([4]), torch.nan)}, "example 4"),
        (lambda a: {**a, "outputs": a["outputs"].log()}, "subset"),
        (lambda a: {**a, "outputs": a["outputs"][:, None]}, "average over seeds"),
        (lambda a: {**a, "outputs": a["outputs"][:, :1]}, "the targets that tau has"),
        (lambda a: {**a, "subsets": a["subsets"][:2], "outputs": a["outputs"][:2]}, "m >= 3"),
        (lambda a: {**a, "tau": a["tau"][:, 0]}, "one column a target"),
        (lambda a: {**a, "tau": a["tau"][:10]}, "index 10 rows"),
        (lambda a: {**a, "subsets": a["subsets"].flip(1)}, "not sorted"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change, sentence: str):
    arguments = {
        "tau": drawn(20, 2),
        "subsets": sample_subsets(20, 10, 0.5, seed=0),
        "outputs": drawn(10, 2, seed=1),
    }
    with pytest.raises(ValueError, match=sentence):
        metrics.lds(**change(arguments))


def test_other_scores_refuse_bad_input():
    with pytest.raises(ValueError, match="R >= 2"):
        metrics.ceiling(drawn(10, 1, 4))
    with pytest.raises(ValueError, match="same shape"):
        metrics.loo_correlation(drawn(5, 2), drawn(5, 3))
    with pytest.raises(ValueError, match="both kinds"):
        metrics.mislabel_auc(drawn(5), torch.zeros(5, dtype=torch.bool))
    with pytest.raises(ValueError, match="query 1 has no relevant row"):
        metrics.reciprocal_rank(drawn(5, 2), torch.tensor([[True, False]] * 5))
    with pytest.raises(ValueError, match=r"k in 1\.\.5"):
        metrics.recall_at(drawn(5, 1), torch.ones(5, 1, dtype=torch.bool), 6)
