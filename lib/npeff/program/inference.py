"""A toy of natural language inference whose every step is known, as a program.

Eight words: quantifier, adjective, noun, verb of the premise, then those of the hypothesis ("all
big dog runs / some - animal moves"; "-" is no adjective). The program compares the two sentences
word by word, joins adjective and noun to the relation of the subjects, and concludes by twelve
clauses of the form (quantifiers, subjects, verbs). The clauses are sound if subjects and verbs
are sets that are not empty, and they are not all that follows: more is neutral here than in logic.

Boolean variables are named by what they test: `q_as` the premise says all and the hypothesis some;
`s_fe` the premise's subject is the hypothesis's or a part of it (forward or equal), `s_re` the
reverse or equal, `s_ov` any of these, `s_eq` equal; `v_fe`, `v_re` alike for verbs, `v_ex` verbs
that exclude each other. `aa&s_re&v_fe` is a clause; `entail` and `contradict` are the conclusions.

Public names: `build`, `examples`, `Examples`, `judge`, `CLAUSES`, `SLOTS`, `VOCABULARY`,
`relation`, `joined`.

Source: specification section 6.5. The document's own grammar and program are not public, so
fractions of components can be compared with it, single components cannot.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lib.npeff.program.expressions import (
    Aggregate,
    Map,
    Node,
    PairMap,
    Positions,
    Program,
    Tokens,
    value_numbers,
)

NO_ADJECTIVE = "-"
SLOTS = {
    "quantifier": ("all", "some", "no"),
    "adjective": (NO_ADJECTIVE, "big", "small", "red", "young"),
    "noun": ("animal", "dog", "poodle", "cat", "bird", "person", "man", "woman"),
    "verb": ("acts", "moves", "runs", "walks", "sleeps", "eats", "rests"),
}
VOCABULARY = tuple(word for words in SLOTS.values() for word in words)
SLOT_OF = {word: slot for slot, words in SLOTS.items() for word in words}
PARENT = {
    "dog": "animal", "cat": "animal", "bird": "animal", "poodle": "dog",
    "man": "person", "woman": "person",
    "runs": "moves", "walks": "moves", "moves": "acts", "eats": "acts", "sleeps": "rests",
}  # fmt: skip
OPPOSITES = frozenset(("big", "small"))
EQ, FW, RV, EX, IN = RELATIONS = ("EQ", "FW", "RV", "EX", "IN")
SETS = {
    "eq": {EQ},
    "fe": {EQ, FW},
    "re": {EQ, RV},
    "ov": {EQ, FW, RV},
    "ex": {EX},
}
# quantifiers of premise and hypothesis (a all, s some, n no), test of subjects, test of verbs
CLAUSES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "entail": (
        ("ss", "fe", "fe"), ("aa", "re", "fe"), ("nn", "re", "re"), ("as", "ov", "fe"),
        ("an", "re", "ex"),
    ),
    "contradict": (
        ("aa", "ov", "ex"), ("as", "re", "ex"), ("sa", "fe", "ex"), ("an", "ov", "fe"),
        ("sn", "fe", "fe"), ("na", "ov", "re"), ("ns", "re", "re"),
    ),
}  # fmt: skip
NEUTRAL = "neutral"
N_WORDS = 8
N_EXAMPLES = 1616  # as the document
MOST_DRAWS = 1000  # per example asked for; about ten are needed


def relation(premise: str, hypothesis: str) -> str:
    """How two words relate; for quantifiers their first letters, such as `as`.

    EQ the same, FW the first is a kind of the second, RV the reverse, EX they exclude each other,
    IN independent (adjectives only). Words of two kinds, which no sentence compares, are EX.
    """
    kind = SLOT_OF[premise]
    if kind != SLOT_OF[hypothesis]:
        return EX
    if kind == "quantifier":
        return premise[0] + hypothesis[0]
    if premise == hypothesis:
        return EQ
    if kind == "adjective":
        if hypothesis == NO_ADJECTIVE:
            return FW
        if premise == NO_ADJECTIVE:
            return RV
        return EX if {premise, hypothesis} == OPPOSITES else IN
    if hypothesis in _ancestors(premise):
        return FW
    return RV if premise in _ancestors(hypothesis) else EX


def _ancestors(word: str) -> list[str]:
    found = []
    while word in PARENT:
        word = PARENT[word]
        found.append(word)
    return found


def joined(adjective: str, noun: str) -> str:
    """Relation of "adjective noun" from those of its two words; IN for what is no relation."""
    if EX in (adjective, noun):
        return EX
    if not {adjective, noun} <= set(RELATIONS):
        return IN
    if EQ in (adjective, noun):
        return noun if adjective == EQ else adjective
    return noun if adjective == noun else IN


def judge(words: Sequence[str]) -> str:
    """Label of eight well-formed words by the clauses, without the program."""
    q, adjective, noun, verb = map(relation, words[:4], words[4:])
    subject = joined(adjective, noun)
    for label, clauses in CLAUSES.items():
        for quantifiers, s, v in clauses:
            if q == quantifiers and subject in SETS[s] and verb in SETS[v]:
                return label
    return NEUTRAL


def build() -> Program:
    """The program; its output is `label`, its Boolean variables are two-valued maps."""
    token, position = Tokens("token", VOCABULARY), Positions("position", N_WORDS)

    def gather(name: str, fits: Callable[[int, int], bool], source: Node) -> Aggregate:
        return Aggregate(name, fits, position, position, source)

    def at(place: int) -> Callable[[int, int], bool]:
        return lambda key, query: key == place

    prem = gather("prem", lambda key, query: key == query - 4, token)
    rel = PairMap("rel", relation, prem, token)
    qpair, arel, nrel, vrel = (
        gather(name, at(4 + i), rel) for i, name in enumerate(("qpair", "arel", "nrel", "vrel"))
    )
    subj = PairMap("subj", joined, arel, nrel)
    nodes: list[Node] = [token, position, prem, rel, qpair, arel, nrel, vrel, subj]
    for source, kinds in ((subj, ("eq", "fe", "re", "ov")), (vrel, ("fe", "re", "ex"))):
        nodes += [_is_in(f"{source.name[0]}_{kind}", source, SETS[kind]) for kind in kinds]
    letters = [word[0] for word in SLOTS["quantifier"]]
    nodes += [_is_in(f"q_{a}{b}", qpair, {a + b}) for a in letters for b in letters]
    by_name = {node.name: node for node in nodes}

    def conjunction(name: str, first: str, second: str) -> Node:
        if name not in by_name:  # clauses share the inner conjunctions
            by_name[name] = PairMap(name, _and, by_name[first], by_name[second])
        return by_name[name]

    for label, clauses in CLAUSES.items():
        parts = []
        for quantifiers, s, v in clauses:
            both = conjunction(f"s_{s}&v_{v}", f"s_{s}", f"v_{v}")
            parts.append(conjunction(f"{quantifiers}&{both.name}", f"q_{quantifiers}", both.name))
        for node in _any_of(label, parts):
            by_name[node.name] = node
    by_name["label"] = PairMap("label", _label, by_name["entail"], by_name["contradict"])
    return Program(tuple(by_name.values()), "label")


def _is_in(name: str, source: Node, values: set[str]) -> Map:
    return Map(name, lambda value: value in values, source)


def _and(a: bool, b: bool) -> bool:
    return a and b


def _or(a: bool, b: bool) -> bool:
    return a or b


def _label(entail: bool, contradict: bool) -> str:
    if entail:
        return "entail"
    return "contradict" if contradict else NEUTRAL


def _any_of(name: str, parts: Sequence[Node]) -> list[Node]:
    """A balanced tree of two-valued disjunctions, leaves left out, the root last."""
    made: list[Node] = []

    def tree(first: int, end: int) -> Node:
        if end - first == 1:
            return parts[first]
        middle = (first + end) // 2
        whole = name if end - first == len(parts) else f"{name}[{first}:{end}]"
        node = PairMap(whole, _or, tree(first, middle), tree(middle, end))
        made.append(node)
        return node

    tree(0, len(parts))
    return made


@dataclass(frozen=True)
class Examples:
    """Pairs of sentences, and the truth of every Boolean variable on them."""

    ids: Tensor  # word numbers, int64 [n, 8]
    labels: Tensor  # number of the label in `classes`, int64 [n]
    clauses: Tensor  # the clause that holds, a number in `clause_names`, int64 [n]
    truth: Tensor  # bool [n, b]
    variables: tuple[str, ...]  # names of the b Boolean variables
    classes: tuple[str, ...]
    clause_names: tuple[str, ...]  # the last is "none"

    def words(self, i: int) -> list[str]:
        """The eight words of an example."""
        return [VOCABULARY[number] for number in self.ids[i].tolist()]


def boolean_names(program: Program) -> tuple[str, ...]:
    """The two-valued variables of a program that are true or false."""
    return tuple(node.name for node in program.nodes if set(node.values) == {False, True})


def examples(n: int = N_EXAMPLES, *, seed: int, program: Program | None = None) -> Examples:
    """Distinct pairs, balanced over labels, with the truth of the program on them.

    The premise is drawn word by word; for each word of the hypothesis a relation to the premise's
    is drawn from EQ, FW, RV, EX, and a word that has it, or any word of the kind if none has. Then
    the label's share must not be full and the pair must be new.

    Args:
        n: pairs; the first labels of `classes` get one more if n is no multiple of 3.
        program: what the truth is read from; the one of `build` by default.

    Raises:
        ValueError: n is not positive, or so large that the draws do not fill it.

    Source: specification section 6.5.
    """
    if n < 1:
        raise ValueError(f"want at least one example, got n = {n}")
    program = build() if program is None else program
    classes = tuple(str(value) for value in program.classes)
    room = {label: n // 3 + (i < n % 3) for i, label in enumerate(classes)}
    rng = random.Random(seed)
    seen: dict[tuple[str, ...], None] = {}
    for _ in range(MOST_DRAWS * n):
        words = _draw(rng)
        label = judge(words)
        if room[label] and words not in seen:
            seen[words] = None
            room[label] -= 1
        if len(seen) == n:
            break
    else:
        raise ValueError(f"found {len(seen)} distinct balanced pairs, want {n}; ask for fewer")
    number = {word: i for i, word in enumerate(VOCABULARY)}
    ids = torch.tensor([[number[word] for word in words] for words in seen])
    values = {name: of[:, -1] for name, of in value_numbers(program, ids).items()}
    variables = boolean_names(program)
    by_name = program.by_name
    truth = torch.stack([values[v] == by_name[v].values.index(True) for v in variables], 1)
    names = [f"{q}&s_{s}&v_{v}" for of in CLAUSES.values() for q, s, v in of]
    holds = truth[:, [variables.index(name) for name in names]]
    clauses = torch.where(holds.any(1), holds.long().argmax(1), len(names))
    return Examples(ids, values["label"], clauses, truth, variables, classes, (*names, "none"))


def _draw(rng: random.Random) -> tuple[str, ...]:
    premise = [rng.choice(words) for words in SLOTS.values()]
    hypothesis = []
    for word in premise:
        wanted = rng.choice((EQ, FW, RV, EX))
        kind = SLOTS[SLOT_OF[word]]
        fitting = [other for other in kind if relation(word, other) == wanted]
        hypothesis.append(rng.choice(fitting or kind))
    return (*premise, *hypothesis)
