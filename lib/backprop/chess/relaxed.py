"""The relaxed optimisers: bits that delete and add pieces, held back by a learned checker.

`relaxed_bop` repeats what the authors' notebook does, a binary optimiser that turns every bit on
and then drops those without a use; `relaxed_ste` is the same problem with gates that are rounded
in the forward pass and smooth in the backward pass. Neither knows the rules: what they return is
judged by them afterwards.

Public names: `relaxed_bop`, `after_fewer_steps`, `relaxed_ste`, `Relaxed`, `Bop`, `compose`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.backprop.chess.boards import Boards
from lib.backprop.chess.moves import violations
from lib.backprop.chess.planes import from_planes, mover_planes, published_pieces
from lib.backprop.chess.reading import Reader, require_slope

Progress = Callable[[range], Iterator[int]]
LEGALITY = 1.0  # weight of the checker in the authors' notebook
BIT_PRICE, CELL_PRICE = 0.005, 0.02
GATE_START, GATE_LR = -1.0, 0.05
BISHOPS, PAWNS = (2, 8), (0, 6)


@dataclass(frozen=True)
class Relaxed:
    """What a relaxed run returns for n boards; histories have one row a step."""

    boards: Boards  # [n]
    before: Tensor  # [n], the probe's logit
    after: Tensor  # [n]
    illegal: Tensor  # [n], the checker's probability of an illegal board
    bits_on: Tensor  # [steps, n]
    probe_history: Tensor  # [steps, n], logits
    checker_history: Tensor  # [steps, n], probabilities
    evaluations: int  # steps, each with the gradient of every board
    lasted: Tensor | None = None  # [n, 13, 6, 6], step at which a bit of bop went off; -1: still on


class Bop:
    """The binary optimiser as it acts on these bits.

    A bit is on iff its value is +1. Values start at 0, and all become +1 after the first gradient;
    from then on the mean gradient `m <- m + gamma (g - m)` turns a bit off when it exceeds the
    threshold. A bit that is off gets no gradient and never returns.

    Source: derived from the optimiser's code, specification of document 5, section 1.4.
    """

    def __init__(
        self, shape: tuple[int, ...], threshold: float = 1e-7, gamma: float = 1e-7
    ) -> None:
        self.value = torch.zeros(shape, dtype=torch.float64)
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self.threshold, self.gamma = threshold, gamma

    @property
    def on(self) -> Tensor:
        """The bits as 0 and 1."""
        return (self.value > 0).float()

    def step(self, gradient: Tensor) -> None:
        """Take one step; the gradient of bits that are off counts as zero."""
        first = self.value == 0
        g = torch.where(first | (self.value > 0), gradient.double(), 0.0)
        self.mean += self.gamma * (g - self.mean)
        turn = self.value * self.mean > self.threshold
        self.value = torch.where(turn, -self.value, self.value)
        self.value = torch.where(first, 1.0, self.value)


def compose(planes: Tensor, delete: Tensor, add: Tensor) -> Tensor:
    """Boards after deleting and adding, as mover's planes `[n, 12, 6, 6]`; differentiable.

    A deleted square loses all its pieces; pieces are added to empty squares alone, never bishops
    nor pawns on the end ranks; a square with more than one piece is emptied, and that comparison
    has no gradient.

    Args:
        planes: `[n, 12, 6, 6]`.
        delete: bits `[n, 6, 6]`, add: bits `[n, 12, 6, 6]`, in [0, 1].

    Source: the authors' notebook by way of specification 1.4.
    """
    y = _clip(planes - delete[:, None])
    allowed = torch.ones_like(planes[:1])
    allowed[:, BISHOPS] = 0
    for plane in PAWNS:
        allowed[:, plane, (0, -1)] = 0
    y = _clip(y + _clip(allowed * (add - y.sum(1, keepdim=True))))
    return y * (y.detach().sum(1, keepdim=True) <= 1)


def _clip(x: Tensor) -> Tensor:
    """Into [0, 1]; the gradient passes on the bounds too, as TensorFlow's does and torch's not."""
    return torch.where((x >= 0) & (x <= 1), x, x.detach().clamp(0, 1))


def relaxed_bop(
    reader: Reader,
    checker: nn.Module,
    boards: Boards,
    *,
    steps: int = 1000,
    legality: float | Tensor = LEGALITY,
    progress: Progress | None = None,
) -> Relaxed:
    """The authors' run on each board: BCE to 1, the checker's BCE to 0, 0.005 a bit; last iterate.

    A board none of whose bits has turned has the gradient it had: it is not taken anew.

    Args:
        legality: weight of the checker, of all boards or `[n]`; 1 in the authors' notebook.

    Raises:
        ValueError: a board to start from is illegal, no gradient reaches the probe, or the
            weights are not one a board.

    Source: specification of document 5, section 1.4. The checker is a parameter: the authors' own,
    or one trained as theirs was.
    """
    _require_legal(boards)
    x, white = mover_planes(boards), torch.from_numpy(boards.white.copy())
    weight = torch.as_tensor(legality, dtype=x.dtype).expand(len(x))
    optimiser = Bop((len(x), 13, 6, 6))
    gradient, said = torch.zeros(len(x), 13, 6, 6), torch.zeros(3, len(x))
    lasted = torch.full((len(x), 13, 6, 6), -1)
    turned = torch.arange(len(x))
    rows: list[Tensor] = []
    for step in progress(range(steps)) if progress else range(steps):
        if len(turned):
            bits = optimiser.on[turned].requires_grad_()
            logit, unlike = _judge(reader, checker, x[turned], white[turned], bits)
            price = weight[turned] * F.softplus(unlike) + BIT_PRICE * bits.sum((1, 2, 3))
            loss = F.softplus(-logit) + price
            (gradient[turned],) = torch.autograd.grad(loss.sum(), bits)
            now = torch.stack([bits.detach().sum((1, 2, 3)), logit, unlike.sigmoid()])
            said[:, turned] = now.detach()
        was = optimiser.value > 0
        optimiser.step(gradient)
        different = (optimiser.value > 0) != was
        lasted[different & was] = step
        turned = different.flatten(1).any(1).nonzero().flatten()
        rows.append(said.clone())
    return replace(_result(reader, checker, boards, optimiser.on, rows), lasted=lasted)


def after_fewer_steps(
    reader: Reader, checker: nn.Module, boards: Boards, run: Relaxed, n: int, steps: int
) -> Relaxed:
    """What `relaxed_bop` would have returned for the first n boards after fewer steps.

    Bits only go off, so the steps at which they went say what was on at any time.

    Args:
        boards: `[n_boards]`, those of the run; the first n are looked at.

    Raises:
        ValueError: the run is not one of `relaxed_bop`, or had fewer boards or steps.
    """
    if run.lasted is None or not 1 <= steps <= run.evaluations or n > len(run.lasted):
        raise ValueError(
            f"want a run of relaxed_bop with at least {n} boards and {steps} steps, got "
            f"{run.evaluations} steps on {len(run.boards)} boards"
        )
    lasted = run.lasted[:n]
    bits = ((lasted < 0) | (lasted >= steps)).float()
    histories = (run.bits_on, run.probe_history, run.checker_history)
    rows = list(torch.stack([x[:steps, :n] for x in histories], 1))
    found = _result(reader, checker, boards[:n], bits, rows)
    return replace(found, lasted=torch.where(lasted >= steps, -1, lasted))


def part_of(run: Relaxed, start: int, stop: int) -> Relaxed:
    """The run on boards `start` to `stop` alone."""
    of_boards = ("boards", "before", "after", "illegal")
    cut = {name: getattr(run, name)[start:stop] for name in of_boards}
    for name in ("bits_on", "probe_history", "checker_history"):
        cut[name] = getattr(run, name)[:, start:stop]
    lasted = None if run.lasted is None else run.lasted[start:stop]
    return replace(run, **cut, lasted=lasted)


def relaxed_ste(
    reader: Reader,
    checker: nn.Module,
    boards: Boards,
    *,
    steps: int = 500,
    progress: Progress | None = None,
) -> Relaxed:
    """Rounded sigmoid gates with a straight-through gradient, 0.02 a changed square; best iterate.

    Adam at 0.05. Gates start off, at -1 (the specification gives no start).

    Raises:
        ValueError: as `relaxed_bop`.

    Source: specification of document 5, section 5.5.
    """
    _require_legal(boards)
    x, white = mover_planes(boards), torch.from_numpy(boards.white.copy())
    gates = torch.full((len(x), 13, 6, 6), GATE_START, requires_grad=True)
    adam = torch.optim.Adam([gates], lr=GATE_LR)
    best, lowest = torch.zeros_like(gates), torch.full((len(x),), torch.inf)
    rows: list[Tensor] = []
    for _ in progress(range(steps)) if progress else range(steps):
        soft = torch.sigmoid(gates)
        bits = (gates > 0).float() + soft - soft.detach()
        y = compose(x, bits[:, 12], bits[:, :12])
        logit, unlike = _judge(reader, checker, x, white, bits)
        cells = (y - x).abs().amax(1).sum((1, 2))
        loss = F.softplus(-logit) + LEGALITY * F.softplus(unlike) + CELL_PRICE * cells
        better = loss.detach() < lowest
        lowest = torch.where(better, loss.detach(), lowest)
        best = torch.where(better[:, None, None, None], (gates > 0).float(), best)
        (gates.grad,) = torch.autograd.grad(loss.sum(), gates)
        adam.step()
        rows.append(torch.stack([(gates > 0).sum((1, 2, 3)), logit, unlike.sigmoid()]).detach())
    return _result(reader, checker, boards, best.detach(), rows)


def _judge(
    reader: Reader, checker: nn.Module, x: Tensor, white: Tensor, bits: Tensor
) -> tuple[Tensor, Tensor]:
    """The probe's logit, and the checker's logit of "illegal", after the bits have acted."""
    y = compose(x, bits[:, 12], bits[:, :12])
    logit = reader.each(y, white).amin(1)
    require_slope(logit, reader.layers)  # or the bits would follow price and checker alone
    return logit, checker(published_pieces(y, white))


def _require_legal(boards: Boards) -> None:
    for rule, broken in violations(boards).items():
        if broken.any():
            raise ValueError(f"board {int(broken.argmax())} to start from is illegal: {rule}")


def _result(
    reader: Reader, checker: nn.Module, boards: Boards, bits: Tensor, rows: list[Tensor]
) -> Relaxed:
    x, white = mover_planes(boards), torch.from_numpy(boards.white.copy())
    with torch.no_grad():
        final = compose(x, bits[:, 12], bits[:, :12]).round()
        after = from_planes(final, white)
        unlike = checker(published_pieces(final, white)).sigmoid()
    history = torch.stack(rows)
    return Relaxed(
        boards=after,
        before=reader.logits(boards),
        after=reader.logits(after),
        illegal=unlike,
        bits_on=history[:, 0],
        probe_history=history[:, 1],
        checker_history=history[:, 2],
        evaluations=len(rows),
    )
