"""What programs, their compiler and the toy refuse: one ValueError each, and its sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lib.npeff import program as programs
from lib.npeff.program import Aggregate, Map, PairMap, Positions, Program, Tokens, inference
from lib.npeff.program.location import mass, owners

TOKEN, POSITION = Tokens("token", ("a", "b")), Positions("position", 3)
SAME = Map("same", lambda word: word, TOKEN)
FINDS_A = Aggregate("finds_a", lambda key, _: key == "a", TOKEN, POSITION, POSITION)
NONE = Map("none", lambda word: None, TOKEN)
PROGRAM = Program((TOKEN, POSITION, SAME, FINDS_A), "same")
COMPILED = programs.compile_program(PROGRAM)
WHERE = owners(COMPILED)
KEPT, ONES = torch.tensor([0, 1]), torch.ones(1, 2)


def model(ids: object) -> object:
    return COMPILED.model(torch.tensor(ids))


CASES: dict[str, tuple[Callable[[], object], str]] = {
    "two keys fit": (
        lambda: programs.interpret(PROGRAM, list("aba")),
        r"'finds_a' .* position 0 fits the keys at \[0, 2\]; narrow",
    ),
    "two keys fit, many rows": (
        lambda: programs.one_hot_errors(COMPILED, torch.tensor([[0, 0]])),
        "'finds_a'",
    ),
    "unknown word": (lambda: programs.interpret(PROGRAM, list("ax")), r"got \['x'\]"),
    "too many words": (lambda: programs.interpret(PROGRAM, list("abbb")), "1 to 3 words, got 4"),
    "no word": (lambda: programs.interpret(PROGRAM, []), "1 to 3 words, got 0"),
    "unknown number": (lambda: model([[0, 2]]), "want word numbers 0 to 1, got 0 to 2"),
    "negative number": (lambda: model([0, -1]), "want word numbers 0 to 1, got -1 to 0"),
    "unknown number, interpreter": (
        lambda: programs.value_numbers(PROGRAM, torch.tensor([[0, 2]])),
        "want word numbers 0 to 1",
    ),
    "long row": (lambda: model([[0, 1, 1, 1]]), "want 1 to 3 words, got 4"),
    "empty row": (lambda: COMPILED.model(torch.zeros(2, 0, dtype=torch.int64)), "got 0"),
    "no row": (lambda: model(1), "got 0"),
    "real numbers": (lambda: model([[0.0, 1.0]]), "want word numbers int64"),
    "None as a value": (lambda: Program((TOKEN, POSITION, NONE), "none"), "returns None"),
    "one name twice": (
        lambda: Program((TOKEN, POSITION, Map("token", str.upper, TOKEN)), "token"),
        r"several of \['token'\]",
    ),
    "undeclared input": (lambda: Program((TOKEN, POSITION, PairMap("p", max, SAME, TOKEN)), "p"),
                         r"'p' reads \['same'\]"),
    "no positions": (lambda: Program((TOKEN, SAME), "same"), "want one Positions"),
    "two vocabularies": (
        lambda: Program((TOKEN, POSITION, Tokens("other", ("a",))), "other"),
        "want one Tokens",
    ),
    "doubled word": (
        lambda: Program((Tokens("token", ("a", "a")), POSITION), "token"), "want distinct values"
    ),
    "no position": (lambda: Program((TOKEN, Positions("position", 0)), "token"), "distinct values"),
    "unknown output": (lambda: Program((TOKEN, POSITION), "label"), "output among"),
    "warm": (lambda: programs.compile_program(PROGRAM, cold=5.0), "use 20 or more"),
    "no cold": (lambda: programs.compile_program(PROGRAM, cold=0.0), "positive finite cold"),
    "NaN": (lambda: programs.compile_program(PROGRAM, beta=float("nan")), "positive finite cold"),
    "margin": (lambda: programs.compile_program(PROGRAM, margin=0.5), r"margin in \[0, 0.5\)"),
    "no example": (lambda: inference.examples(0, seed=0), "at least one example"),
    "mass, shapes": (lambda: mass(WHERE, KEPT, torch.ones(1, 3)), "want kept"),
    "mass, position": (
        lambda: mass(WHERE, KEPT + COMPILED.n_parameters, ONES),
        f"the network's {COMPILED.n_parameters} parameters",
    ),
    "mass, doubled": (lambda: mass(WHERE, KEPT * 0, ONES), "distinct positions"),
    "mass, zero": (lambda: mass(WHERE, KEPT, ONES * 0), r"components \[0\] are zero"),
    "mass, NaN": (lambda: mass(WHERE, KEPT, ONES * float("nan")), r"components \[0\] are"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "sentence"), CASES.values(), ids=CASES)
def test_refused_with_a_sentence(call: Callable[[], object], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        call()


def test_more_balanced_pairs_than_there_are_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inference, "MOST_DRAWS", 1)
    with pytest.raises(ValueError, match="distinct balanced pairs, want 30; ask for fewer"):
        inference.examples(30, seed=0)
