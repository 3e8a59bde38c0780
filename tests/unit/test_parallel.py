"""Independent tasks in this process (on a cluster: tests/faults/test_parallel.py)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from lib import parallel


def square(task: int) -> int:
    return task * task


def raise_at_two(task: int) -> int:
    if task == 2:
        raise ValueError("two is\nnot allowed")
    return task


class Bar:
    """A progress bar that notes how far it came."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, items: Iterable[int]) -> Iterator[int]:
        for item in items:
            yield item
            self.seen.append(item)


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch) -> None:
    monkeypatch.delenv(parallel.ADDRESS, raising=False)


def test_results_come_in_the_order_of_the_tasks_and_progress_advances() -> None:
    bar = Bar()
    assert parallel.map_tasks(square, [3, 1, 2], progress=bar) == [9, 1, 4]
    assert bar.seen == [0, 1, 2]


def test_no_tasks_give_no_results() -> None:
    assert parallel.map_tasks(square, []) == []


def test_failing_task_is_named_in_one_sentence() -> None:
    bar = Bar()
    with pytest.raises(parallel.TaskError) as raised:
        parallel.map_tasks(raise_at_two, [0, 1, 2, 3], progress=bar)
    assert str(raised.value) == (
        "task 3 of 4 (2) failed with ValueError: two is not allowed; "
        "what others finished is in the cache"
    )
    assert isinstance(raised.value.__cause__, ValueError)
    assert bar.seen == [0, 1]


def test_long_task_is_shortened_in_errors() -> None:
    with pytest.raises(parallel.TaskError) as raised:
        parallel.map_tasks(len, [[1], range(5), 7, "x" * 1000])
    assert "task 3 of 4 (7) failed with TypeError" in str(raised.value)
    with pytest.raises(parallel.TaskError) as raised:
        parallel.map_tasks(int, ["x" * 1000])
    described = str(raised.value).split(" failed with ")[0]
    assert described == f"task 1 of 1 ({'x' * (parallel.SHOWN - 3)}...)"


def test_side_by_side_computes_with_one_thread_each_and_restores_them() -> None:
    import torch

    before = torch.get_num_threads()
    seen = parallel.side_by_side(lambda task: (task, torch.get_num_threads()), range(5))
    assert list(seen) == [(k, 1) for k in range(5)]
    assert torch.get_num_threads() == before
    with pytest.raises(ValueError, match="two is"):
        list(parallel.side_by_side(raise_at_two, [1, 2, 3]))
    assert torch.get_num_threads() == before


def test_tasks_together_give_the_same_and_name_the_one_that_failed() -> None:
    bar = Bar()
    assert parallel.map_tasks(square, [3, 1, 2], progress=bar, together=True) == [9, 1, 4]
    assert bar.seen == [0, 1, 2]
    with pytest.raises(parallel.TaskError, match=r"task 2 of 3 \(2\) failed with ValueError"):
        parallel.map_tasks(raise_at_two, [1, 2, 3], together=True)
