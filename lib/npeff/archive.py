"""Per-example Fishers kept: through the cache, or in a folder that is mapped into memory.

`fetch_fishers` makes the PEFs of `part` examples at a time, one cache entry each, so that a killed
run goes on where it was. `write` streams any number of such parts into plain array files below a
folder, and `read` maps them: `store.take` then reads the examples that are asked for and no others;
`read_parts` goes through all of them, some at a time. A factorisation holds the entries of its PEFs
in memory, by row and by column (16 bytes each), unless `lib.npeff.out_of_core` keeps them in files.

Public names: `fetch_fishers`, `fetch_parts`, `write`, `read`, `read_parts`.

Source: specification 9, memory-map long runs and make writing resumable.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lib import cache
from lib.files import write_whole
from lib.gradients.flat import select
from lib.npeff.fisher import per_example_fishers
from lib.npeff.store import LOW_RANK, Fishers, Parameters, check_together, concatenate
from lib.training import predict

Progress = Callable[[Sequence[int]], Iterator[int]]
ARRAYS = ("values", "columns", "offsets", "example", "norms", "logits", "kept")
MANIFEST = "fishers.json"  # written last: a folder without it is not read


def fetch_parts(
    model: nn.Module,
    x: Tensor,
    *,
    kind: str = LOW_RANK,
    k: int,
    block: Sequence[str] | None = None,
    eps: float = 0.0,
    max_classes: int | None = None,
    part: int = 512,
    progress: Progress | None = None,
) -> Iterator[Fishers]:
    """`per_example_fishers` through the cache, the PEFs of `part` examples at a time, on the CPU.

    Args: as there; `progress` wraps the list of parts.
    """
    weights = select(model, block)
    shapes: Parameters = tuple((name, tuple(weight.shape)) for name, weight in weights.items())
    kept = torch.arange(sum(weight.numel() for weight in weights.values()))
    state = cache.state_hash(dict(model.state_dict()))
    starts: Sequence[int] = range(0, len(x), part)
    for start in progress(starts) if progress else starts:
        batch = x[start : start + part]
        # equal weights may still compute something else (numbers of heads, constants)
        logits = predict(model, batch)
        config = {
            "model": state,
            "data": cache.state_hash({"x": batch, "logits": logits}),
            "kind": kind,
            "k": k,
            "block": [name for name, _ in shapes],
            "eps": eps,
            "max_classes": max_classes,
        }

        def build(batch: Tensor = batch) -> dict[str, Tensor]:
            made = per_example_fishers(
                model, batch, kind=kind, k=k, block=block, eps=eps, max_classes=max_classes
            )
            return {name: getattr(made, name).cpu() for name in ARRAYS if name != "kept"}

        entry = cache.fetch("fishers", config, build, code=[per_example_fishers])
        yield _assembled(kind, {**entry, "kept": kept}, shapes, k)


def fetch_fishers(
    model: nn.Module,
    x: Tensor,
    *,
    kind: str = LOW_RANK,
    k: int,
    block: Sequence[str] | None = None,
    eps: float = 0.0,
    max_classes: int | None = None,
    part: int = 512,
    progress: Progress | None = None,
) -> Fishers:
    """All parts of `fetch_parts` as one."""
    parts = fetch_parts(
        model,
        x,
        kind=kind,
        k=k,
        block=block,
        eps=eps,
        max_classes=max_classes,
        part=part,
        progress=progress,
    )
    return concatenate(list(parts))


def write(folder: Path, parts: Iterator[Fishers]) -> None:
    """Stream PEFs, one part in memory at a time, into array files below a folder.

    Public for sets that memory cannot hold, the notebooks' are smaller: 50,000 examples of 65,536
    entries, the document's, are 39 GB. ``write(folder, fetch_parts(model, x, k=65536))``.

    Raises:
        ValueError: no parts, parts of different kinds or columns, or a folder that holds PEFs.
    """
    if (folder / MANIFEST).exists():
        raise ValueError(f"{folder.name} holds PEFs already; name another folder or remove it")
    folder.mkdir(parents=True, exist_ok=True)
    first: Fishers | None = None
    n_examples = n_entries = most = 0
    counts = dict.fromkeys(ARRAYS, 0)
    files = {name: (folder / f"{name}.bin").open("wb") for name in ARRAYS}
    try:
        for part in parts:
            first = first or part
            most = max(most, part.k)
            check_together([first, part])  # refuses what does not belong together
            arrays = {name: getattr(part, name) for name in ARRAYS}
            arrays["example"] = part.example + n_examples
            arrays["offsets"] = part.offsets[1:] + n_entries
            if part is first:
                arrays["offsets"] = torch.cat([part.offsets[:1], arrays["offsets"]])
            else:
                del arrays["kept"]
            for name, array in arrays.items():
                files[name].write(array.cpu().contiguous().numpy().tobytes())
                counts[name] += array.numel()
            n_examples, n_entries = n_examples + len(part), n_entries + len(part.values)
    finally:
        for file in files.values():
            file.close()
    if first is None:
        raise ValueError("want at least one set of PEFs, got none")
    manifest = {
        "kind": first.kind,
        "parameters": first.parameters,
        "k": most,
        "normalised": first.normalised,
        "n_classes": first.logits.shape[1],
        "arrays": {
            name: [str(getattr(first, name).numpy().dtype), counts[name]] for name in ARRAYS
        },
    }
    write_whole(folder / MANIFEST, json.dumps(manifest, indent=1))


def read(folder: Path) -> Fishers:
    """PEFs of a folder that `write` made, mapped into memory: pages are read when used.

    Raises:
        FileNotFoundError: no finished PEFs there.
        ValueError: an array file of another length than was written.
    """
    manifest = read_manifest(folder, MANIFEST, "PEFs")
    arrays = {}
    for name, (dtype, count) in manifest["arrays"].items():
        # copy on write, so that torch may have the memory without a warning
        path = folder / f"{name}.bin"
        mapped = np.memmap(path, dtype, "c", shape=(count,)) if count else np.empty(0, dtype)
        arrays[name] = torch.from_numpy(mapped)
    return _of_manifest(manifest, arrays)


def read_parts(folder: Path, part: int = 512) -> Iterator[Fishers]:
    """The PEFs of such a folder, `part` examples after the other, one part in memory at a time.

    Coefficients of any number of examples: ``fit_coefficients(found, normalise(one))`` of each.

    Raises:
        FileNotFoundError, ValueError: as `read`; parts of less than one example.
    """
    if part < 1:
        raise ValueError(f"want parts of at least 1 example, got {part}")
    manifest = read_manifest(folder, MANIFEST, "PEFs")
    n_classes = manifest["n_classes"]

    def array(name: str, first: int = 0, last: int | None = None) -> Tensor:
        dtype, count = manifest["arrays"][name]
        last = count if last is None else last
        return read_array(folder / f"{name}.bin", dtype, last - first, first)

    example, kept = array("example"), array("kept")
    n = manifest["arrays"]["norms"][1]
    for first in range(0, n, part):
        last = min(first + part, n)
        lo, hi = torch.searchsorted(example, torch.tensor([first, last])).tolist()
        offsets = array("offsets", lo, hi + 1)
        a, b = int(offsets[0]), int(offsets[-1])
        arrays = {
            "values": array("values", a, b),
            "columns": array("columns", a, b),
            "offsets": offsets - a,
            "example": example[lo:hi] - first,
            "norms": array("norms", first, last),
            "logits": array("logits", first * n_classes, last * n_classes),
            "kept": kept,
        }
        yield _of_manifest(manifest, arrays)


def read_manifest(folder: Path, name: str, what: str) -> dict:
    """What was written last into a folder; its array files have the lengths that it says.

    Raises:
        FileNotFoundError: it is not there, so writing did not end.
        ValueError: an array file of another length.
    """
    if not (folder / name).is_file():
        raise FileNotFoundError(
            f"no finished {what} in {folder.name}: {name} is missing, so writing did not end; "
            "remove the folder and write again"
        )
    manifest = json.loads((folder / name).read_text())
    for array, (dtype, count) in manifest["arrays"].items():
        path = folder / f"{array}.bin"
        want, got = count * np.dtype(dtype).itemsize, path.stat().st_size if path.exists() else 0
        if got != want:
            raise ValueError(
                f"{path.name} has {got:,} bytes, {want:,} were written; remove the folder and "
                "write again"
            )
    return manifest


def read_array(path: Path, dtype: str, count: int, first: int = 0) -> Tensor:
    """Numbers of an array file, copied into memory; -1 for all that are there.

    Raises:
        ValueError: the file ends before them.
    """
    size = np.dtype(dtype).itemsize
    found = np.fromfile(path, dtype, count, offset=first * size)
    if count >= 0 and len(found) != count:
        raise ValueError(
            f"{path.name} ends after {first + len(found):,} numbers, {first + count:,} were "
            "written; remove the folder and write again"
        )
    return torch.from_numpy(found)


def _of_manifest(manifest: dict, arrays: dict[str, Tensor]) -> Fishers:
    logits = arrays["logits"].view(-1, manifest["n_classes"])
    parameters = tuple((name, tuple(shape)) for name, shape in manifest["parameters"])
    found = _assembled(manifest["kind"], {**arrays, "logits": logits}, parameters, manifest["k"])
    return replace(found, normalised=manifest["normalised"])


def _assembled(kind: str, arrays: dict[str, Tensor], parameters: Parameters, k: int) -> Fishers:
    values, columns, offsets, example, norms, logits, kept = (arrays[name] for name in ARRAYS)
    return Fishers(kind, values, columns, offsets, example, norms, logits, kept, parameters, k)
