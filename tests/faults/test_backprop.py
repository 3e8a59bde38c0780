"""What concept maximisation refuses at its boundary, each with its sentence."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lib import backprop
from lib.backprop import L1, L2, L2Sq, Mahalanobis, Objective, Term

RECIPE = backprop.FaithfulRecipe(steps=1)


def samples(n=3, d=4):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0))


def plain(**kw):
    spec = {"layer": lambda x: x * 1.0, "probe": lambda h: h.sum(1), "terms": [(1.0, L1())]}
    return Objective(**(spec | kw))


def bad_row():
    s = samples()
    s[1, 2] = float("nan")
    return s


def in_train_mode():
    return nn.Linear(4, 4)


CASES = {
    "NaN": (plain(), bad_row(), 1.0, "hold NaN or infinite"),
    "one dimension": (plain(), torch.zeros(4), 1.0, r"want samples \[n, ...\]"),
    "whole numbers": (plain(), torch.zeros(2, 4, dtype=torch.long), 1.0, "of a float type"),
    "no rows": (plain(), torch.zeros(0, 4), 1.0, r"want samples \[n, ...\]"),
    "target length": (plain(), samples(), torch.ones(2), "one target or one a row"),
    "target NaN": (plain(), samples(), float("nan"), "a target lies outside"),
    "target of a sigmoid": (plain(link="sigmoid"), samples(), 1.5, r"values in \[0, 1\]"),
    "target of a relu": (plain(link="relu"), samples(), -1.0, r"values in \[0, inf\]"),
    "detached layer": (
        plain(layer=lambda x: x.detach()),
        samples(),
        1.0,
        "differentiably on delta",
    ),
    "argmax layer": (
        plain(layer=lambda x: x.argmax(1, keepdim=True).float()),
        samples(),
        1.0,
        "differentiably on delta",
    ),
    "detached probe": (plain(probe=lambda h: h.sum(1).detach()), samples(), 1.0, "no gradient"),
    "probe width": (
        plain(probe=nn.Linear(7, 1).eval()),
        samples(),
        1.0,
        "fitted on another layer or width",
    ),
    "probe shape": (plain(probe=nn.Linear(4, 1).eval()), samples(), 1.0, "one number a row"),
    "training mode": (plain(layer=in_train_mode()), samples(), 1.0, r"call .eval\(\) first"),
    "weights per row": (plain(terms=[(torch.ones(2), L1())]), samples(), 1.0, "distance's weight"),
    "negative weight": (plain(terms=[(-1.0, L1())]), samples(), 1.0, "distance's weight"),
    "overflow": (plain(probe=lambda h: h.sum(1) / 0), samples(), 1.0, "NaN or infinite values on"),
}


def faithful(objective, s, target):
    generator = torch.Generator().manual_seed(0)
    return backprop.maximise_faithful(objective, s, target, RECIPE, generator=generator)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", [backprop.maximise, backprop.maximise_to, faithful])
def test_refused_with_a_sentence(case, mode):
    objective, s, target, sentence = CASES[case]
    with pytest.raises(ValueError, match=sentence):
        mode(objective, s, target)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"link": "softmax"}, "link is one of"),
        ({"loss": "hinge"}, "loss one of"),
        ({"loss": "bce"}, "reads a sigmoid probe"),
        ({"terms": [Term(1.0, L1()), Term(1.0, L2())]}, "at most one of L1, L2 and Hamming"),
        ({"terms": []}, "at least one weighted distance"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        plain(**spec)


def test_an_unknown_layer_lists_those_there_are():
    net = nn.Sequential(nn.Linear(4, 2)).eval()
    with pytest.raises(ValueError, match="no layer hidden7 in this model; it has 0"):
        backprop.Prefix(net, "hidden7")


def test_a_singular_covariance_is_refused():
    with pytest.raises(ValueError, match="not positive definite"):
        Mahalanobis(torch.ones(3, 3))


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_a_level_that_no_logit_reaches_is_refused(level):
    with pytest.raises(ValueError, match="never outputs 0 or 1"):
        backprop.maximise_to(plain(link="sigmoid"), samples(), level)


def test_a_relu_level_of_zero_is_refused():
    with pytest.raises(ValueError, match="above 0"):
        backprop.maximise_to(plain(link="relu"), samples(), 0.0)


def test_a_start_of_another_length_is_refused():
    with pytest.raises(ValueError, match="3 rows, 2 starts"):
        backprop.maximise(plain(), samples(), 1.0, start=torch.zeros(2, 4))


def test_weights_that_change_meanwhile_are_noticed():
    class Drifting(nn.Linear):
        def forward(self, x):
            self.weight.data.mul_(1.001)
            return super().forward(x)

    with pytest.raises(RuntimeError, match="changed during the maximisation"):
        backprop.maximise(plain(layer=Drifting(4, 4).eval(), terms=[(1.0, L2Sq())]), samples(), 1.0)
