"""Small programs over sequences: their variables, value sets and an interpreter.

A program is a graph of named variables. Each has one value at each position of a sequence, out of
a finite set that is found by enumeration, or `None`: no value. Five kinds suffice:

* `Tokens`: the word at the position; `Positions`: its number, from 0;
* `Map` and `PairMap`: a function of one or of two variables at the same position;
* `Aggregate`: the value found at the position whose key fits the query of this one.

`interpret` runs a program on words and is the ground truth; `lib.npeff.program.compiler` turns the
same program into a transformer.

Public names: `Tokens`, `Positions`, `Map`, `PairMap`, `Aggregate`, `Program`, `interpret`,
`value_numbers`.

Source: specification sections 6.3 and 6.4. Numerical variables and selector widths of the original
compiler are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import TypeAlias

import torch
from torch import Tensor

Value: TypeAlias = Hashable
NO_VALUE = -1  # the number of `None`


@dataclass(frozen=True, eq=False)
class Tokens:
    """The word at each position; the values are the vocabulary."""

    name: str
    values: tuple[Value, ...]
    inputs: tuple[Node, ...] = field(default=(), init=False)


@dataclass(frozen=True, eq=False)
class Positions:
    """The number of each position; the values are 0 to `n` - 1, the longest sequence has `n`."""

    name: str
    n: int
    inputs: tuple[Node, ...] = field(default=(), init=False)

    @cached_property
    def values(self) -> tuple[Value, ...]:
        return tuple(range(self.n))


@dataclass(frozen=True, eq=False)
class Map:
    """A function of one variable, at each position; of no value it makes no value."""

    name: str
    function: Callable[..., Value]  # value -> value
    source: Node = field(repr=False)

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.source,)

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """The image, in the order in which the source's values give it."""
        return _image(self.name, map(self.function, self.source.values))


@dataclass(frozen=True, eq=False)
class PairMap:
    """A function of two variables, at each position; no value if either has none."""

    name: str
    function: Callable[..., Value]  # (first value, second value) -> value
    first: Node = field(repr=False)
    second: Node = field(repr=False)

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.first, self.second)

    @cached_property
    def values(self) -> tuple[Value, ...]:
        """The image of all pairs, also of pairs that never occur together."""
        pairs = product(self.first.values, self.second.values)
        return _image(self.name, (self.function(u, v) for u, v in pairs))


@dataclass(frozen=True, eq=False)
class Aggregate:
    """The value at the one position whose key fits the query; no value where no key fits."""

    name: str
    predicate: Callable[..., bool]  # (key, query) -> whether they fit
    keys: Node = field(repr=False)
    queries: Node = field(repr=False)
    source: Node = field(repr=False)

    @property
    def inputs(self) -> tuple[Node, ...]:
        return (self.keys, self.queries, self.source)

    @property
    def values(self) -> tuple[Value, ...]:
        return self.source.values


Node: TypeAlias = Tokens | Positions | Map | PairMap | Aggregate


def _image(name: str, values: Iterable[Value]) -> tuple[Value, ...]:
    seen = tuple(dict.fromkeys(values))
    if None in seen:
        raise ValueError(
            f"the function of {name!r} returns None, which stands for no value; return another"
        )
    return seen


@dataclass(frozen=True)
class Program:
    """Variables in the order in which they are declared, and the name of the one that is read out.

    The order decides where a variable lies in the network, never what it is.

    Raises:
        ValueError: two variables of one name, one that reads an undeclared one, no or several
            `Tokens` or `Positions`, an unknown output, an empty or a doubled value set.
    """

    nodes: tuple[Node, ...]
    output: str

    def __post_init__(self) -> None:
        names = [node.name for node in self.nodes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"want one variable a name, got several of {twice}; rename them")
        declared = {id(node) for node in self.nodes}
        for node in self.nodes:
            missing = [part.name for part in node.inputs if id(part) not in declared]
            if missing:
                raise ValueError(
                    f"{node.name!r} reads {missing}, not among the variables; declare them"
                )
            if not node.values or len(set(node.values)) < len(node.values):
                raise ValueError(f"want distinct values of {node.name!r}, got {node.values}")
        for kind in (Tokens, Positions):
            count = sum(isinstance(node, kind) for node in self.nodes)
            if count != 1:
                raise ValueError(f"want one {kind.__name__} in a program, got {count}")
        if self.output not in names:
            raise ValueError(f"want an output among the variables, got {self.output!r}")

    @cached_property
    def by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def vocabulary(self) -> tuple[Value, ...]:
        return next(node.values for node in self.nodes if isinstance(node, Tokens))

    @cached_property
    def length(self) -> int:
        """The longest sequence."""
        return next(node.n for node in self.nodes if isinstance(node, Positions))

    @cached_property
    def classes(self) -> tuple[Value, ...]:
        """Values of the output."""
        return self.by_name[self.output].values

    @cached_property
    def in_order(self) -> tuple[Node, ...]:
        """The variables, each after those that it reads."""
        done: dict[str, Node] = {}

        def visit(node: Node) -> None:
            if node.name not in done:
                for part in node.inputs:
                    visit(part)
                done[node.name] = node

        for node in self.nodes:
            visit(node)
        return tuple(done.values())

    def check_length(self, t: int) -> None:
        """Refuse a sequence that the positions do not reach."""
        if not 1 <= t <= self.length:
            raise ValueError(
                f"want 1 to {self.length} words, got {t}; build the program with more positions"
            )


def interpret(program: Program, words: Sequence[Value]) -> dict[str, tuple[Value | None, ...]]:
    """Values of every variable on one sequence.

    Args:
        words: `t` values of the vocabulary, well-formed or not.

    Returns:
        Variable -> its `t` values, `None` where it has none.

    Raises:
        ValueError: a word outside the vocabulary, a sequence too long, or an aggregate for which
            several keys fit (its average would be no value of the set).
    """
    program.check_length(len(words))
    known = set(program.vocabulary)
    unknown = [word for word in words if word not in known]
    if unknown:
        raise ValueError(f"want words of the vocabulary {program.vocabulary}, got {unknown}")
    found: dict[str, tuple[Value | None, ...]] = {}
    for node in program.in_order:
        if isinstance(node, Tokens):
            found[node.name] = tuple(words)
        elif isinstance(node, Positions):
            found[node.name] = tuple(range(len(words)))
        elif isinstance(node, Aggregate):
            found[node.name] = _gather(node, *(found[part.name] for part in node.inputs))
        else:
            columns = zip(*(found[part.name] for part in node.inputs), strict=True)
            found[node.name] = tuple(
                None if None in values else node.function(*values) for values in columns
            )
    return found


def _gather(
    node: Aggregate,
    keys: tuple[Value | None, ...],
    queries: tuple[Value | None, ...],
    source: tuple[Value | None, ...],
) -> tuple[Value | None, ...]:
    gathered: list[Value | None] = []
    for place, query in enumerate(queries):
        fits = [
            i
            for i, key in enumerate(keys)
            if key is not None and query is not None and node.predicate(key, query)
        ]
        if len(fits) > 1:
            raise ValueError(
                f"{node.name!r} has values without an average and position {place} fits the keys "
                f"at {fits}; narrow its predicate to one key"
            )
        gathered.append(source[fits[0]] if fits else None)
    return tuple(gathered)


def value_numbers(program: Program, ids: Tensor) -> dict[str, Tensor]:
    """Values of every variable on many sequences, as numbers in the variable's value set.

    Args:
        ids: word numbers int64 `[n, t]`, in the order of the vocabulary.

    Returns:
        Variable -> int64 `[n, t]`, -1 where it has no value; on the CPU.

    Raises:
        ValueError: as `interpret`.
    """
    check_ids(ids, len(program.vocabulary))
    numbers = {
        node.name: {None: NO_VALUE, **{value: i for i, value in enumerate(node.values)}}
        for node in program.nodes
    }
    rows: dict[str, list[list[int]]] = {name: [] for name in numbers}
    for row in ids.tolist():
        found = interpret(program, [program.vocabulary[i] for i in row])
        for name, values in found.items():
            rows[name].append([numbers[name][value] for value in values])
    return {name: torch.tensor(of, dtype=torch.int64) for name, of in rows.items()}


def check_ids(ids: Tensor, n_words: int) -> None:
    """Refuse what are not word numbers."""
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool or ids.ndim < 1:
        raise ValueError(
            f"want word numbers int64 [..., t], got {ids.dtype} of shape {tuple(ids.shape)}"
        )
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < n_words:
        raise ValueError(
            f"want word numbers 0 to {n_words - 1}, got {int(ids.min())} to {int(ids.max())}; "
            "number the words by their place in the vocabulary"
        )
