"""Factorisations over several processes, each with a contiguous block of the parameters.

Every process calls `decompose` or `decompose_diagonal` with the same PEFs, seed and options and
its own `Processes` as `group`. It works on its own columns; a step adds up R r + 2 r^2 numbers
over processes, independent of the number of parameters, and every process then has the same
coefficients. Process 0 writes checkpoints; all must be able to read them.

Public names: `join`, `Processes`, `ProcessEnded`.

Source: specification 2.8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor


class ProcessEnded(RuntimeError):
    """Another process ended or does not answer."""


@contextmanager
def join(
    rank: int, size: int, rendezvous: str, *, backend: str = "gloo", timeout: float = 600.0
) -> Iterator[Processes]:
    """Meet the other processes, and leave them at the end.

    Args:
        rank: of this process, 0 to size - 1.
        rendezvous: "file:///path" on a folder that all see (a new file for each start) or
            "tcp://host:port".
        backend: "gloo" on CPUs, "nccl" with one CUDA device a process.
        timeout: seconds without an answer after which a process counts as ended.

    Raises:
        ValueError: a rank outside 0..size - 1.
        ProcessEnded: the others did not come.
    """
    if not 0 <= rank < size:
        raise ValueError(f"want a rank in 0..{size - 1}, got {rank}")
    with _explained(rank, size, timeout):
        dist.init_process_group(
            backend,
            init_method=rendezvous,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )
    try:
        yield Processes(rank, size, timeout)
    finally:
        dist.destroy_process_group()


class Processes:
    """A group for `decompose`: see `lib.npeff.products.Group`."""

    def __init__(self, rank: int, size: int, timeout: float) -> None:
        self.rank, self.size, self.timeout = rank, size, timeout

    def sum(self, *tensors: Tensor) -> None:
        """Add up over processes, in place; one message for all tensors."""
        flat = torch.cat([x.flatten() for x in tensors])
        self._ask(lambda: dist.all_reduce(flat))
        for x, total in zip(tensors, flat.split([x.numel() for x in tensors]), strict=True):
            x.copy_(total.view_as(x))

    def same(self, *tensors: Tensor) -> None:
        """Take the values of process 0, in place."""
        for x in tensors:
            whole = x.contiguous()
            self._ask(partial(dist.broadcast, whole, src=0))
            x.copy_(whole)

    def gather(self, mine: Tensor) -> Tensor:
        """All processes' rows, one after the other; their numbers may differ."""
        lengths = torch.zeros(self.size, dtype=torch.int64, device=mine.device)
        lengths[self.rank] = len(mine)
        self._ask(lambda: dist.all_reduce(lengths))
        most = int(lengths.max())
        padded = mine.new_zeros(most, *mine.shape[1:])
        padded[: len(mine)] = mine
        found = [torch.empty_like(padded) for _ in range(self.size)]
        self._ask(lambda: dist.all_gather(found, padded))
        return torch.cat([x[:k] for x, k in zip(found, lengths.tolist(), strict=True)])

    def _ask(self, message: Callable[[], object]) -> None:
        with _explained(self.rank, self.size, self.timeout):
            message()


@contextmanager
def _explained(rank: int, size: int, timeout: float) -> Iterator[None]:
    """Say in one sentence that another process is gone."""
    try:
        yield
    except RuntimeError as error:  # what every backend raises, a timeout too
        raise ProcessEnded(
            f"process {rank} of {size}: another process ended, or did not answer for "
            f"{timeout:g} s ({str(error).splitlines()[0]}); start all {size} again, with the same "
            "checkpoint, to go on from its last step"
        ) from error
