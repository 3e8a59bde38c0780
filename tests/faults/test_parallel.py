"""A Dask cluster of two worker processes and what can happen to it: one sentence, no work lost."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from lib import cache, parallel


def build(seed: int):
    """Stands for a training: slow, and its result follows from the seed."""
    import torch

    time.sleep(0.2)
    return {"w": torch.randn(3, generator=torch.Generator().manual_seed(seed))}


def train(seed: int):
    return cache.fetch("slow", {"seed": seed}, lambda: build(seed), code=[build])["w"]


def train_but_not_102(seed: int):
    if seed == 102:
        others = {cache.key_of("slow", {"seed": s}, [build]) for s in (100, 101, 103)}
        deadline = time.monotonic() + 60
        while not others <= set(built()) and time.monotonic() < deadline:
            time.sleep(0.05)  # the others finish first, however busy the machine is
        raise ValueError("this seed is\nnot allowed")
    return train(seed)


def die(task: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def miss_a_module(task: int) -> None:
    raise ModuleNotFoundError("No module named 'lib.models'", name="lib.models")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers of one thread; a task is given up at the first death of its worker."""
    import dask
    from distributed import LocalCluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIR", str(tmp_path_factory.mktemp("cluster") / "cache"))
        with (
            dask.config.set({"distributed.scheduler.allowed-failures": 0}),
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as local,
        ):
            patch.setenv(parallel.ADDRESS, local.scheduler_address)
            yield local


def built() -> Counter[str]:
    """How often the log says that each key was built."""
    log = Path(os.environ["CACHE_DIR"] + ".log")
    lines = log.read_text().splitlines() if log.is_file() else []
    return Counter(line.split()[2] for line in lines if line.startswith("built slow "))


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize("where", ["closed port", "nonsense://host:1", "not an address"])
def test_scheduler_that_does_not_answer_is_named(monkeypatch, where) -> None:
    where = f"tcp://127.0.0.1:{closed_port()}" if where == "closed port" else where
    monkeypatch.setenv(parallel.ADDRESS, where)
    monkeypatch.setattr(parallel, "CONNECT_SECONDS", 1)
    with pytest.raises(parallel.ClusterError) as raised:
        parallel.map_tasks(str, [1])
    assert str(raised.value) == (
        f"no Dask scheduler answers at {where} (DASK_SCHEDULER_ADDRESS) within 1 s; start one with "
        "`dask scheduler`, or unset the variable to run in this process"
    )


def test_failed_connection_does_not_block_the_next(cluster, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setenv(parallel.ADDRESS, f"tcp://127.0.0.1:{closed_port()}")
        patch.setattr(parallel, "CONNECT_SECONDS", 1)
        with pytest.raises(parallel.ClusterError):
            parallel.map_tasks(str, [1])
    assert parallel.map_tasks(str, [1, 2]) == ["1", "2"]


def test_workers_without_the_project_are_told_how_to_find_it(cluster) -> None:
    with pytest.raises(parallel.ClusterError) as raised:
        parallel.map_tasks(miss_a_module, [0])
    assert "workers cannot import lib.models; start them with PYTHONPATH" in str(raised.value)


def test_failing_task_is_named_and_the_others_are_kept(cluster) -> None:
    before = built().total()
    with pytest.raises(parallel.TaskError) as raised:
        parallel.map_tasks(train_but_not_102, [100, 101, 102, 103])
    assert str(raised.value) == (
        "task 3 of 4 (102) failed with ValueError: this seed is not allowed; "
        "what others finished is in the cache"
    )
    assert built().total() == before + 3


def test_killed_worker_loses_nothing_and_nothing_is_built_twice(cluster) -> None:
    import torch

    seeds, before, done_at_kill = list(range(14)), built().total(), []

    def kill_one_in_the_middle() -> None:
        while built().total() < before + 4:
            time.sleep(0.02)
        time.sleep(0.1)  # half-way through a task
        done_at_kill.append(built().total() - before)
        os.kill(cluster.workers[0].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one_in_the_middle, daemon=True)
    killer.start()
    ticks: list[int] = []
    results = parallel.map_tasks(train, seeds, progress=lambda items: map_and_note(items, ticks))
    killer.join(timeout=10)
    assert done_at_kill[0] < len(seeds) - 2
    assert ticks == seeds  # progress came to its end
    for seed, result in zip(seeds, results, strict=True):
        assert torch.equal(result, build(seed)["w"])
    assert built().total() == before + len(seeds)
    assert set(built().values()) == {1}


def map_and_note(items, ticks: list[int]):
    for item in items:
        yield item
        ticks.append(item)


def test_task_that_kills_its_workers_is_given_up(cluster) -> None:
    with pytest.raises(parallel.TaskError) as raised:
        parallel.map_tasks(die, ["too large"], retries=1)
    assert "task 1 of 1 (too large) was given up: its workers died 2 times" in str(raised.value)
    assert "\n" not in str(raised.value)
