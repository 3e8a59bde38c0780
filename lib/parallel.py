"""Many independent trainings: in this process, or on a Dask cluster.

Ensembles, subset models and retrainings are lists of tasks that know nothing of one another.
`map_tasks` runs them here, or on the cluster that DASK_SCHEDULER_ADDRESS names, which brings SLURM
and Kubernetes with it. Each task keeps its result through `lib.cache`; workers that share the
folder CACHE_DIR therefore build each thing once, whatever dies. A worker uses the CACHE_DIR and
DATA_ROOT it was started with, else those of the process that calls.

How Dask fails (distributed 2026.8): a task whose worker dies runs again elsewhere, and so does one
whose result died with its only holder; then the cache answers. A death counts against every task
that the worker held, running or queued, and one that saw more than `allowed-failures` (3, set at
the scheduler) of them is given up with `KilledWorker`. Dask's own ``retries`` repeats tasks that
raised, which for us is of no use. So we submit a task again when Dask gives it up, under a new key,
because the count of an old one is never reset.

`side_by_side` uses the processors of this machine for computations too small to be worth more than
one each.

Public names: `map_tasks`, `side_by_side`, `TaskError`, `ClusterError`.
"""

from __future__ import annotations

import gc
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from lib import config

if TYPE_CHECKING:
    from distributed import Client

Task = TypeVar("Task")
Result = TypeVar("Result")

ADDRESS = "DASK_SCHEDULER_ADDRESS"
CONNECT_SECONDS = 10
SHOWN = 100  # characters of a task in an error
FOLDERS = ("CACHE_DIR", "DATA_ROOT")
OWN = frozenset(name for name in FOLDERS if os.environ.get(name))  # set where a worker started


class TaskError(RuntimeError):
    """A task that raised, or whose workers kept dying."""


class ClusterError(ConnectionError):
    """The Dask scheduler does not answer or went away, or its workers lack this project."""


def map_tasks(
    fn: Callable[[Task], Result],
    tasks: Sequence[Task],
    *,
    progress: Callable[[range], Iterable[int]] | None = None,
    retries: int = 3,
    together: bool = False,
) -> list[Result]:
    """Apply ``fn`` to each task.

    Args:
        fn: called once per task; on a cluster it must be importable by the workers, and it should
            go through `lib.cache.fetch`, so that nothing is computed twice.
        tasks: one argument each; ``str(task)`` names it in errors.
        progress: wraps ``range(len(tasks))`` and advances as tasks finish, such as ``tqdm``.
        retries: how often a task is submitted again after Dask gave it up because of dead workers.
        together: in this process, several tasks at a time, as `side_by_side` does; for small
            networks on a processor.

    Returns:
        The results in the order of ``tasks``.

    Raises:
        TaskError: the first task that failed; what others finished is in the cache.
        ClusterError: the scheduler does not answer or goes away; its workers lack this project.
    """
    address = os.environ.get(ADDRESS)
    bar = progress(range(len(tasks))) if progress else range(len(tasks))
    if not address and together and len(tasks) > 1:
        found = side_by_side(lambda index: _here(fn, tasks, index), range(len(tasks)))
        return [value for _, value in zip(bar, found, strict=True)]
    if not address:
        return [_here(fn, tasks, index) for index in bar]
    results: dict[int, Result] = {}
    with _connect(address) as client:
        finished = _on_cluster(client, address, fn, tasks, retries)
        for _ in bar:
            index, value = next(finished)
            results[index] = value
    return [results[index] for index in range(len(tasks))]


def side_by_side(fn: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    """Apply ``fn`` to each task on as many threads as torch may use, each computing with one.

    Operations on a few thousand numbers gain little from a second thread: two networks trained at
    a time take a sixth to a third less than one after the other (measured on two cores).

    Args:
        fn: called once per task; must not change what other tasks read.
        tasks: one argument each.

    Yields:
        The results in the order of ``tasks``; the first error ends it, and what has not begun is
        given up.
    """
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(fn, tasks)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(n_threads)


def _here(fn: Callable[[Task], Result], tasks: Sequence[Task], index: int) -> Result:
    try:
        return fn(tasks[index])
    except Exception as error:
        raise _task_error(tasks, index, error) from error


def _connect(address: str) -> Client:
    from distributed import Client

    try:
        return Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError):  # nobody answers; or not an address
        pass
    # Raised here and not as the consequence of that error, whose traceback would keep the failed
    # client alive: collected later, while another one starts, it closes itself and blocks on the
    # lock that the start holds. Measured: the next connection of this process then hangs.
    gc.collect()
    raise ClusterError(
        f"no Dask scheduler answers at {address} ({ADDRESS}) within {CONNECT_SECONDS} s; "
        "start one with `dask scheduler`, or unset the variable to run in this process"
    )


def _on_cluster(
    client: Client,
    address: str,
    fn: Callable[[Task], Result],
    tasks: Sequence[Task],
    retries: int,
) -> Iterator[tuple[int, Result]]:
    """Yield (index, result) as tasks finish; leaving early cancels the others."""
    from concurrent.futures import CancelledError

    from distributed import KilledWorker, as_completed

    folders = {"CACHE_DIR": str(config.cache_dir()), "DATA_ROOT": str(config.data_root())}

    def submit(index: int) -> object:
        key = f"task-{index}-{uuid.uuid4().hex}"
        return client.submit(_on_worker, fn, tasks[index], folders, key=key)

    waiting = {submit(index): (index, 0) for index in range(len(tasks))}
    completed = as_completed(waiting, loop=client.loop)
    for future in completed:
        index, resubmitted = waiting.pop(future)
        try:
            value = future.result()
        except KilledWorker as error:
            if resubmitted == retries:
                raise TaskError(
                    f"{_describe(tasks, index)} was given up: its workers died {retries + 1} times "
                    "over; see whether they run out of memory (`dask worker --memory-limit`)"
                ) from error
            again = submit(index)
            waiting[again] = (index, resubmitted + 1)
            completed.add(again)
        except CancelledError as error:
            raise ClusterError(
                f"the Dask scheduler at {address} went away; what was finished is in the cache, "
                "so start it and run again"
            ) from error
        except Exception as error:
            raise _import_error(error) or _task_error(tasks, index, error) from error
        else:
            yield index, value


def _on_worker(fn: Callable[[Task], Result], task: Task, folders: dict[str, str]) -> Result:
    # A worker started with folders of its own (another mount) keeps them; the others use ours.
    os.environ.update({name: path for name, path in folders.items() if name not in OWN})
    return fn(task)


def _describe(tasks: Sequence[Task], index: int) -> str:
    text = " ".join(str(tasks[index]).split())
    text = text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
    return f"task {index + 1} of {len(tasks)} ({text})"


def _task_error(tasks: Sequence[Task], index: int, error: Exception) -> TaskError:
    reason = " ".join(str(error).split()) or "no message"
    return TaskError(
        f"{_describe(tasks, index)} failed with {type(error).__name__}: {reason}; "
        "what others finished is in the cache"
    )


def _import_error(error: Exception) -> ClusterError | None:
    """The error for workers that were started without this project, if that is the reason."""
    if not isinstance(error, ModuleNotFoundError) or (error.name or "").split(".")[0] != "lib":
        return None
    return ClusterError(
        f"the Dask workers cannot import {error.name}; start them with PYTHONPATH set to the "
        "project's folder and the packages of requirements.txt"
    )
