"""The open questions of document 5, on problems whose answers are known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lib.backprop import GroupL2, Objective, maximise, maximise_to, scaling_networks
from lib.backprop import language as grammar
from lib.backprop import language_studies as words
from lib.backprop import probe_quality_studies as quality
from lib.backprop import scaling_studies as scaling
from lib.backprop import specificity_studies as specificity
from lib.backprop import weight_studies as weights

D = 4


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def line():
    """A linear problem: P(delta) = g.(s + delta), so that every rule's answer is known."""
    g = torch.tensor([0.5, -1.0, 0.25, 2.0], dtype=torch.float64)
    s = torch.randn(5, D, generator=generator(), dtype=torch.float64)
    scale = torch.tensor([1.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    objective = Objective(lambda x: x * 1.0, lambda h: h @ g, weights.squared(scale))
    problem = weights.Problem(
        "line",
        objective,
        s,
        goal=8.0,
        tau=6.0,
        near=lambda delta: (delta / scale).norm(dim=1) < 2.0,
        truth=lambda delta: delta[:, 3],
    )
    return problem, (g * scale).norm(), s @ g


@pytest.fixture(scope="module")
def grid(line):
    return weights.front(line[0], 41)


def test_bisection_finds_the_weight_of_the_closed_form(line):
    """(P - o)^2 + w |delta / sd|^2 has P = p0 + (o - p0) G / (w + G), G = |g sd|^2."""
    problem, size, start = line
    found = weights.bisect(problem, 20)
    want = size**2 * ((8.0 - start) / (6.0 - start) - 1)
    torch.testing.assert_close(found.weight, want, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.probe, torch.full_like(start, 6.0), rtol=1e-3, atol=0)
    torch.testing.assert_close(found.distance, (6.0 - start) / size, rtol=1e-3, atol=0)


def test_lagrangian_comes_to_the_same_point_without_a_weight_of_its_own(line):
    problem, size, start = line
    found = weights.lagrangian(problem, weight=0.5)
    torch.testing.assert_close(found.distance, (6.0 - start) / size, rtol=2e-3, atol=0)
    assert found.weight.isnan().all()


def test_both_rules_do_what_is_asked_and_a_fixed_weight_does_not(line, grid):
    problem, path = line[0], grid
    assert weights.reached(problem, weights.bisect(problem), path).all()
    assert weights.reached(problem, weights.lagrangian(problem, 0.5), path).all()
    assert not weights.reached(problem, weights.fixed(problem, path, 1e-4), path).any()


def test_front_is_monotone_and_capped_stays_near(line, grid):
    problem, path = line[0], grid
    assert (path.gain.diff(dim=0) >= -1e-9).all()
    assert (path.distance.diff(dim=0) >= -1e-9).all()
    assert weights.capped(problem, path).near.all()
    assert not weights.fixed(problem, path, 1e-4).near.all()


def test_knee_of_a_bent_front_is_its_bend(line, grid):
    problem, path = line[0], grid
    chosen = weights.knee(problem, path)
    assert ((chosen.weight > path.weights.min()) & (chosen.weight < path.weights.max())).all()


def test_spread_of_weights_in_decades():
    blank = torch.zeros(101)
    weight = 10 ** torch.linspace(-3, 1, 101).double()
    chosen = weights.Chosen("x", weight, blank, blank, blank, blank, 1)
    assert weights.decades(chosen) == pytest.approx(3.2)


def test_hypervolume_of_known_fronts():
    """One point covers (1 - d) g; a straight front covers a half; dominated points add nothing."""
    d, g = torch.tensor([[1.0], [3.0]]).double(), torch.tensor([[0.4], [0.9]]).double()
    one = weights.hypervolume(d[:1], g[:1], 4.0)
    torch.testing.assert_close(one, torch.tensor([0.3]).double())
    both = weights.hypervolume(d.flip(0), g.flip(0), 4.0)  # (3 - 1) / 4 x .4 + (4 - 3) / 4 x .9
    torch.testing.assert_close(both, torch.tensor([0.425]).double())
    worse = torch.tensor([[2.0], [3.5], [5.0]]).double()
    more = torch.cat([d, worse]), torch.cat([g, torch.tensor([[0.3], [0.9], [1.0]]).double()])
    torch.testing.assert_close(weights.hypervolume(*more, 4.0), both)  # the last is out of reach
    line = torch.linspace(0, 1, 2001).double()
    assert weights.hypervolume(7 * line, line, 7.0).item() == pytest.approx(0.5, abs=1e-3)
    assert weights.hypervolume(torch.zeros(1), torch.ones(1), 2.0).item() == 1.0


def test_hypervolume_of_the_linear_problem_is_that_of_a_straight_front(line, grid):
    """There G = D / D_tau up to tau: the area within 1.5 D_tau is 2/3, from below on a grid."""
    _, size, start = line
    need = (6.0 - start) / size
    found = weights.hypervolume(grid.distance, grid.gain, 1.5 * need)
    assert (found < 2 / 3).all()
    assert (found > 2 / 3 - 0.06).all()  # half of the grid's widest step


def test_hypervolume_does_not_depend_on_the_unit_of_distance_and_refuses_nonsense():
    d, g = torch.rand(2, 9, 4, generator=generator()).double()
    torch.testing.assert_close(
        weights.hypervolume(d, g, 0.8), weights.hypervolume(100 * d, g, 80.0)
    )
    for bad, said in ((-d, "distances >= 0"), (d[:3], "want distance"), (d * torch.nan, "NaN")):
        with pytest.raises(ValueError, match=said):
            weights.hypervolume(bad, g, 0.8)
    with pytest.raises(ValueError, match="reach > 0"):
        weights.hypervolume(d, g, 0.0)


def test_group_distance_moves_one_group_and_has_its_prox():
    v = torch.tensor([[[3.0, 4.0], [0.1, 0.0]]], dtype=torch.float64)
    near = GroupL2().prox(v, torch.tensor([1.0], dtype=torch.float64))
    torch.testing.assert_close(near, torch.tensor([[[2.4, 3.2], [0.0, 0.0]]]).double())
    assert GroupL2().value(v).item() == pytest.approx(5.1)
    w = torch.tensor([[0.1, 0.0], [3.0, 4.0]], dtype=torch.float64)
    objective = Objective(lambda x: x * 1.0, lambda h: (h * w).sum((1, 2)), [(1.0, GroupL2())])
    edit = maximise_to(objective, torch.zeros(2, 2, 2).double(), 10.0)
    assert (edit.delta[:, 0] == 0).all()
    torch.testing.assert_close(
        edit.delta[:, 1], torch.tensor([1.2, 1.6]).double().expand(2, -1), rtol=1e-4, atol=1e-8
    )
    held = maximise(
        Objective(lambda x: x * 1.0, lambda h: (h * w).sum((1, 2)), [(1e4, GroupL2())]),
        torch.zeros(1, 2, 2).double(), 1.0,
    )  # fmt: skip
    assert (held.delta == 0).all()


def test_drawn_sentences_are_grammatical_and_wrong_ones_are_not():
    drawn = grammar.sentences(200, generator=generator())
    assert grammar.is_grammatical(drawn.words).all()
    n = torch.arange(200)
    wrong = drawn.words.clone()
    other = torch.where(
        drawn.subject_plural,
        grammar.KINDS["verb of singular"][0],
        grammar.KINDS["verb of plural"][0],
    )
    wrong[n, drawn.verb_at] = other
    assert not grammar.is_grammatical(wrong).any()
    cut = drawn.words.clone()
    cut[n, drawn.verb_at] = grammar.END  # a sentence cannot end before its verb
    cut[:, 3:] = torch.where(torch.arange(3, 10) > drawn.verb_at[:, None], 0, cut[:, 3:])
    assert not grammar.is_grammatical(cut).any()


def test_adverbs_follow_the_tense():
    drawn = grammar.sentences(300, generator=generator())
    n = torch.arange(300)
    last = (drawn.words != 0).sum(1) - 2
    adverb = last > drawn.verb_at + 2
    assert 0.4 < adverb.double().mean() < 0.6
    other = torch.where(
        drawn.past, grammar.KINDS["adverb of present"][0], grammar.KINDS["adverb of past"][0]
    )
    wrong = drawn.words.clone()
    wrong[n, last] = torch.where(adverb, other, wrong[n, last])
    assert (grammar.is_grammatical(wrong) == ~adverb).all()


def test_the_four_concepts_are_independent_and_no_word_stands_twice():
    drawn = grammar.sentences(4000, generator=generator(), with_attractor=1.0)
    between = torch.corrcoef(drawn.concepts.double()) - torch.eye(4)
    assert between.abs().max() < 0.06
    assert len(set(grammar.WORDS)) == len(grammar.WORDS)


def test_entropy_of_the_grammar_is_reached_by_the_grammar_itself():
    """A sentence's probability, by the form it has, sums to one over all sentences."""
    drawn = grammar.sentences(3000, generator=generator())
    share = (drawn.verb_at == grammar.PREFIX).double().mean()
    assert abs(share - 0.6) < 0.03
    short = drawn.words[drawn.verb_at == 2]
    when = grammar.KINDS["adverb of present"] + grammar.KINDS["adverb of past"]
    adverb = torch.isin(short, torch.tensor(when)).any(1)
    nats = grammar._entropy(short[~adverb]).item() * 5
    # 16 nouns, no attractor .4, 2 tenses x 5 verbs, 4 determiners x 8 objects, no adverb 1/2
    want = torch.tensor([16 / 0.4, 10, 4 * 8, 2.0]).log().sum().item()
    assert nats == pytest.approx(want, rel=1e-5)


def test_model_does_not_look_ahead():
    model = grammar.untrained(2, 16, seed=0)
    drawn = grammar.sentences(6, generator=generator()).words
    changed = drawn.clone()
    changed[:, 5:] = 0
    torch.testing.assert_close(model(drawn)[..., :5], model(changed)[..., :5])


@pytest.mark.parametrize("length", [grammar.PREFIX, grammar.CLAUSE])
def test_substitutions_are_those_that_keep_the_grammar(length: int):
    """Of all words at all places; an attractor alone may not turn into something else."""
    drawn = grammar.sentences(8, generator=generator(), with_attractor=1.0)
    clause = drawn.words[:, :length]
    legal = words._legal(clause)
    row, place, word = torch.ones_like(legal).nonzero().T
    edited = clause[row].clone()
    edited[torch.arange(len(row)), place] = word
    other = (word != clause[row, place]) & (word != 0) & (word != grammar.END)
    assert ((grammar.is_grammatical(edited) & other) == legal[row, place, word]).all()


def test_edit_of_a_model_that_reads_the_subject_alone_is_at_the_subject():
    """Planted: the state before the verb is the subject's embedding."""
    model = grammar.untrained(1, 16, seed=1)
    model.states = lambda embedded: embedded[:, 1:2].expand_as(embedded)
    subject = words.prepare(model, n_probe=300, n=8, seed=0)
    assert subject.score > 0.95
    found = words.explain(subject)
    assert (found.mass[:, grammar.SUBJECT] > 0.999).all()
    assert (found.place == grammar.SUBJECT).all()
    assert found.grammatical.all()
    assert (found.after >= words.TARGET - 1e-3).all()


@pytest.fixture(scope="module")
def planted():
    """The last state adds up four places' embeddings, each in channels of its own."""
    model = grammar.untrained(1, 32, seed=1)
    places = list(grammar.CONCEPTS.values())

    def states(embedded):
        read = [embedded[:, at, 8 * k : 8 * k + 8] for k, at in enumerate(places)]
        return torch.cat(read, 1)[:, None].expand(-1, embedded.shape[1], -1)

    model.states = states
    with torch.no_grad():  # each channel group tells the two classes of its word apart
        drawn = grammar.sentences(2000, generator=generator(), with_attractor=1.0)
        for k, at in enumerate(places):
            yes = drawn.words[drawn.concepts[k], at].unique()
            model.words.weight[yes, 8 * k : 8 * k + 8] += 1.0
    bed = specificity.prepare(model, n_probe=1000, n=6, seed=0)
    own = torch.eye(4).repeat_interleave(8, 1)  # what the fit puts elsewhere is noise
    pairs = zip(bed.probes, own, strict=True)
    return replace(bed, probes=tuple(replace(p, weight=p.weight * mine) for p, mine in pairs))


def test_edits_of_separate_channels_leave_the_other_concepts_alone(planted):
    found = specificity.study(planted)
    assert (found.score > 0.99).all()
    n = torch.arange(4)
    assert (found.before[n, :, n] < 0.5).all()
    assert (found.after[n, :, n] >= specificity.TARGET - 1e-3).all()
    assert found.converged.all()
    assert (found.mass > 0.999).all()
    assert (found.place == torch.tensor(list(grammar.CONCEPTS.values()))[:, None]).all()
    assert found.grammatical.all()
    assert found.leak(words=False) < 1e-4
    assert found.leak(words=True) < 1e-4
    assert (found.change(words=True).diagonal() > 0.5).all()


def test_a_leak_that_is_planted_is_found(planted):
    """The probe of the object reads half of the subject's probe: edits of the subject move it."""
    first, *middle, last = planted.probes
    mixed = replace(last, weight=last.weight + 0.5 * first.weight)
    found = specificity.study(replace(planted, probes=(first, *middle, mixed)))
    change = found.change(words=True)
    assert change[0, 3] > 0.02
    assert change[1:3].fill_diagonal_(0).abs()[:, 3].max() < 1e-4
    assert found.leak(words=True) > 1e-3


def test_too_few_clauses_are_refused():
    with pytest.raises(ValueError, match="ask fewer"):
        specificity.prepare(grammar.untrained(1, 16, seed=0), n_probe=200, n=1900, seed=0)


@pytest.mark.parametrize("name", ["mlp", "cnn", "residual", "vit"])
def test_sizes_of_the_ring_networks_are_about_those_of_the_specification(name: str):
    from lib.profiles.part5 import SIZES

    specs = SIZES["54_open_questions"]["full"]["networks"][name]
    for spec, want in zip(specs, (1e4, 1e5, 1e6), strict=True):
        with torch.device("meta"):
            network = scaling_networks.NETWORKS[name](**spec)
        assert sum(p.numel() for p in network.parameters()) == pytest.approx(want, rel=0.1)


def test_residual_network_is_its_stem_where_the_blocks_are_silent():
    network = scaling_networks.ResidualCNN(size=8, width=4, n_out=2).eval()
    for block in (network.block1, network.block2):
        torch.nn.init.zeros_(block.second[1].weight)  # of the last normalisation
    x = torch.randn(3, 1, 8, 8, generator=generator())
    torch.testing.assert_close(network(x), network.out(network.pool(network.stem(x)).flatten(1)))


def test_picture_transformer_reads_patches_and_knows_their_order_by_places_alone():
    network = scaling_networks.PictureTransformer(size=8, width=8, n_layers=2, n_out=2).eval()
    x = torch.randn(3, 1, 8, 8, generator=generator())
    swapped = torch.cat([x[..., 4:], x[..., :4]], 3)  # patches change places, pixels do not
    assert (network(x) - network(swapped)).abs().max() > 1e-4
    torch.nn.init.zeros_(network.places.weight)
    torch.testing.assert_close(network(x), network(swapped), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["cnn", "residual", "vit"])
def test_a_network_just_trained_is_that_of_the_cache_bit_for_bit(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_DIR", str(tmp_path))
    spec = {
        "cnn": {"size": 16, "channels": (4, 8), "n_out": 2},
        "residual": {"size": 16, "width": 4, "n_out": 2},
        "vit": {"size": 16, "width": 8, "n_layers": 1, "n_out": 2},
    }[name]
    u, y = scaling.draw(64, generator=generator())
    x, recipe = scaling.render(u), scaling.Recipe(epochs=1, batch_size=32, lr=1e-3)
    before = torch.get_rng_state()
    new, stored = (
        scaling_networks.fetch(name, spec, x, y, recipe, seed=0, data_hash="rings")
        for _ in range(2)
    )
    assert torch.equal(new(x), stored(x))
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(p.requires_grad for p in stored.parameters())


def test_ring_networks_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match="multiple of 4"):
        scaling_networks.ResidualCNN(size=10, width=4, n_out=2)
    with pytest.raises(ValueError, match="want a size"):
        scaling_networks.PictureTransformer(size=16, width=10, n_layers=2, n_out=2)
    x, recipe = torch.zeros(1, 4), scaling.Recipe(epochs=1, batch_size=1, lr=0.1)
    with pytest.raises(ValueError, match="networks are mlp"):
        scaling_networks.fetch("tower", {}, x, x[:, 0].long(), recipe, seed=0, data_hash="")


def test_rings_close_when_the_gap_does():
    u = torch.zeros(3, 5)
    u[:, scaling.GAP] = torch.tensor([-1.0, 0.0, 1.0])
    from lib.backprop.picture_measures import holes

    assert holes(scaling.render(u)).tolist() == [1, 0, 0]
    shifted = u[:1].clone()
    shifted[:, scaling.CENTRE_X :] = 0.8
    assert holes(scaling.render(shifted)).item() == 1


def test_rings_are_smooth_in_their_numbers():
    u = (torch.rand(2, 5, generator=generator()) - 0.5).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: scaling.render(v)[:, :, 3:6, 3:6], u)


def test_smallest_closing_closes_and_a_little_less_does_not():
    u = torch.zeros(4, 5)
    u[:, scaling.GAP] = torch.tensor([0.0, 0.3, 0.6, 0.9])
    needed = scaling._smallest_closing(u)
    from lib.backprop.picture_measures import holes

    closed, open_ = u.clone(), u.clone()
    closed[:, scaling.GAP] -= needed
    open_[:, scaling.GAP] -= needed - 0.06
    assert (holes(scaling.render(closed)) == 1).all()
    assert (holes(scaling.render(open_)) == 0).all()


def configuration(name, n_weights, rate):
    truth = torch.arange(100) < round(100 * rate)
    return scaling.Configuration(
        name, n_weights, 1.0, rate, truth, truth, truth, truth.double(), 2.0 * truth, 0.0
    )


@pytest.fixture(scope="module")
def falling():
    made = [configuration("a", 10**k, 0.9 - 0.1 * k) for k in range(1, 4)]
    return made + [configuration("b", 10**k, 0.7 - 0.1 * k) for k in range(1, 4)]


def test_slope_of_a_planted_truth_rate(falling):
    found, low, high = scaling.slope(falling, seed=0)
    assert found == pytest.approx(-0.1, abs=1e-9)
    assert low < found < high
    assert scaling.slope(falling, 0, "gradients")[0] == pytest.approx(-0.2, abs=1e-9)


def test_slope_over_networks_is_least_squares_with_students_interval(falling):
    from scipy import stats

    exact = scaling.slope_over_networks(falling)
    assert exact == pytest.approx((-0.1, -0.1, -0.1), abs=1e-9)
    alone = [configuration("a", 10**k, rate) for k, rate in enumerate((0.5, 0.9, 0.4, 0.3), 1)]
    want = stats.linregress(range(1, 5), (0.5, 0.9, 0.4, 0.3))
    reach = stats.t.ppf(0.975, 2) * want.stderr
    for measure in ("truth", "score"):
        found = scaling.slope_over_networks(alone, measure)
        assert found == pytest.approx((want.slope, want.slope - reach, want.slope + reach))
    assert all(x != x for x in scaling.slope_over_networks(alone[:2])[1:])


def test_failure_is_named_by_what_came_first():
    yes, no = torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)

    def of(score, success, truth):
        return scaling.Configuration("a", 1, 1.0, score, success, truth, yes, yes, yes, 0.0).failure

    assert of(0.9, yes, yes) == ""
    assert of(0.2, yes, no) == "weak probe"
    assert of(0.9, no, no) == "not converged"
    assert of(0.9, yes, no) == "probe is not the concept"


def test_confounded_inputs_have_the_planted_correlation():
    x = quality.draw("confounded", 5000, generator=generator())
    both = torch.stack([quality.concept(x), x[:, quality.PROXY]])
    assert torch.corrcoef(both)[0, 1] == pytest.approx(quality.RHO, abs=0.02)
    plain = quality.draw("used", 5000, generator=generator())
    both = torch.stack([quality.concept(plain), plain[:, quality.PROXY]])
    assert torch.corrcoef(both)[0, 1].abs() < 0.05


def test_edit_of_a_layer_that_is_the_concept_lies_on_its_features():
    from lib.backprop.stacked import StackedPrefix, StackedProbe

    class Planted(StackedPrefix):
        def __init__(self):
            torch.nn.Module.__init__(self)
            self.n_models = 2
            self.eval()

        def forward(self, x):
            return quality.concept(x)[:, None]

    probe = StackedProbe(torch.tensor([[2.0], [3.0]]), torch.zeros(2))
    rows = quality.draw("used", 5, generator=generator()) - 1.0
    q, truth, converged = quality._explain(Planted(), probe, rows)
    torch.testing.assert_close(q, torch.ones(2))
    torch.testing.assert_close(truth, torch.ones(2))
    assert (converged == 1).all()
