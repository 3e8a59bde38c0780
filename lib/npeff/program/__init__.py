"""A transformer whose every intermediate variable is known: a small program, compiled.

Document 3 (NPEFF) finds components in a compiled program to ask whether they are variables of it.
Map, in reading order:

* ``expressions``: ``Tokens``, ``Positions``, ``Map``, ``PairMap``, ``Aggregate``, ``Program``, and
  the interpreter (``interpret``, ``value_numbers``), which is the ground truth.
* ``compiler``: ``compile_program`` (a ``Compiled``: network, blocks, regions), ``one_hot_errors``
  (network against interpreter), ``error_bounds``. The network is in ``transformer``.
* ``inference``: the toy task: ``build``, ``examples``. Import it by name.
* ``location``: ``owners`` and ``mass``: in the weights of which variables a component lies.

Source: specification section 6. The original compiler is TRACR; this one is written from its
description and has five kinds of variables.
"""

from __future__ import annotations

from lib.npeff.program.compiler import (
    Compiled,
    Region,
    compile_program,
    error_bounds,
    one_hot_errors,
)
from lib.npeff.program.expressions import (
    Aggregate,
    Map,
    PairMap,
    Positions,
    Program,
    Tokens,
    interpret,
    value_numbers,
)

__all__ = [
    "Aggregate",
    "Compiled",
    "Map",
    "PairMap",
    "Positions",
    "Program",
    "Region",
    "Tokens",
    "compile_program",
    "error_bounds",
    "interpret",
    "one_hot_errors",
    "value_numbers",
]
