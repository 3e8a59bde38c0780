"""A content-addressed cache of costly results: trained weights, activations, decoded images.

The key of an entry is a hash of what it is (kind, configuration) and of the source code that
builds it, found by following names from the given functions through everything of `lib` they
refer to; comments and docstrings do not count, and neither device nor profile is in it. One entry
is one safetensors file with a checksum inside, written to a temporary name and renamed, so a
killed run leaves either nothing or the whole. One lock per key lets two processes build a thing
once; the system drops a dead owner's lock.

Public names: `fetch`, `key_of`, `state_hash`.
"""

from __future__ import annotations

import ast
import copy
import functools
import hashlib
import inspect
import json
import os
import sys
import textwrap
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lib import config as settings

if TYPE_CHECKING:
    from torch import Tensor

# Python 3.11 counts the depth of syntax trees for all threads together: parsing in two of them
# fails now and then with a SystemError (fixed in later versions).
_PARSING = threading.Lock()
WAIT_SECONDS = 2.0  # how long a lock may be held before we say whom we wait for


class DamagedEntry(ValueError):
    """A cache file that is truncated, altered or not ours."""


def fetch(
    kind: str,
    config: Mapping[str, object],
    build: Callable[[], Mapping[str, Tensor]],
    *,
    code: Sequence[Callable[..., object]],
) -> dict[str, Tensor]:
    """Return the entry for (kind, config, code), building it if there is none.

    Args:
        kind: a short name, part of the file name.
        config: everything the result depends on (sizes, seed, hash of the data), as JSON values.
        build: makes the tensors; called at most once over all processes that share the cache.
        code: the functions or classes that build it; a change in them, or in anything of `lib`
            they refer to, makes a new key.

    Returns:
        The tensors, on the CPU.
    """
    key = key_of(kind, config, code)
    path = settings.cache_dir() / f"{kind}-{key}.safetensors"
    entry = _read_if_whole(path)
    # no line of the log: a kill came between file and line
    if entry is None or not _is_logged(kind, key):
        with _owned(path, kind, key):
            entry = _read_or_set_aside(path)
            if entry is None:
                entry = _build(path, kind, key, build)
            if not _is_logged(kind, key):
                with _explained(path):
                    _append(_log(), f"built {kind} {key} {entry[1]:.1f}")
    tensors, seconds = entry
    _note_use(kind, key, seconds)
    return tensors


def key_of(kind: str, config: Mapping[str, object], code: Sequence[Callable[..., object]]) -> str:
    """The 16 hexadecimal digits that name an entry."""
    text = json.dumps([kind, config, sources(code)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def state_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of tensors: 64 hexadecimal digits."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def sources(code: Sequence[Callable[..., object]]) -> dict[str, str]:
    """Source of the given functions and classes and of all of `lib` that they refer to.

    Returns:
        qualified name -> syntax tree as text, without comments and docstrings. Constants of a
        module (numbers, strings, tuples of them) are included by value.
    """
    with _PARSING:
        return _sources(code)


def _sources(code: Sequence[Callable[..., object]]) -> dict[str, str]:
    found: dict[str, str] = {}
    pending: list[object] = list(code)
    while pending:
        item = pending.pop()
        if not isinstance(item, (type, types.FunctionType)):
            raise TypeError(f"code holds functions and classes, got {type(item).__name__}")
        name = f"{item.__module__}.{item.__qualname__}"
        if name in found:
            continue
        tree = _tree(item)
        found[name] = ast.dump(_without_docstrings(tree))
        space = vars(sys.modules[item.__module__])
        for full, value in _references(tree, space):
            if isinstance(value, (type, types.FunctionType)):
                if value.__module__.split(".")[0] == item.__module__.split(".")[0]:
                    pending.append(value)
            elif _is_constant(value):
                found[f"{item.__module__}:{full}"] = repr(value)
    return found


@dataclass(frozen=True)
class _File:
    """A module's source as first read, so that editing it while a run goes on changes nothing."""

    trees: dict[str, ast.stmt]  # qualified name -> definition
    codes: dict[str, types.CodeType]


@functools.cache
def _file(path: str) -> _File:
    text = Path(path).read_text()
    trees: dict[str, ast.stmt] = {}
    codes: dict[str, types.CodeType] = {}

    def name_trees(body: Sequence[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                trees[prefix + node.name] = node
                inner = ".<locals>." if isinstance(node, ast.FunctionDef) else "."
                name_trees(node.body, prefix + node.name + inner)

    def name_codes(code: types.CodeType) -> None:
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                codes[constant.co_qualname] = constant
                name_codes(constant)

    name_trees(ast.parse(text).body, "")
    # the future statement of the file itself holds, not one of this file
    name_codes(compile(text, path, "exec", dont_inherit=True))
    return _File(trees, codes)


def _tree(item: type | types.FunctionType) -> ast.Module:
    """The definition of `item` as it runs in this process.

    Raises:
        ValueError: its file was edited after it was imported: the key would name other code
            than that which builds the entry.
    """
    path = getattr(sys.modules[item.__module__], "__file__", None)
    if path is None or item.__qualname__ not in _file(path).trees:  # a notebook's own function
        return ast.parse(textwrap.dedent(inspect.getsource(item)))
    file = _file(path)
    parts = vars(item).values() if isinstance(item, type) else [item]
    for part in parts:
        live = getattr(part, "__code__", None)
        stored = file.codes.get(live.co_qualname) if live is not None else None
        if live is not None and stored is not None and not _same_code(live, stored):
            raise ValueError(
                f"{Path(path).name} was edited after it was loaded (see {item.__qualname__}); "
                "restart the kernel, so that the cache names what really runs"
            )
    return ast.Module(body=[copy.deepcopy(file.trees[item.__qualname__])], type_ignores=[])


def _same_code(a: types.CodeType, b: types.CodeType) -> bool:
    """Whether two code objects do the same, wherever they stand in their file."""
    if a.co_code != b.co_code or a.co_names != b.co_names or len(a.co_consts) != len(b.co_consts):
        return False
    for x, y in zip(a.co_consts, b.co_consts, strict=True):
        both = isinstance(x, types.CodeType) and isinstance(y, types.CodeType)
        if not (_same_code(x, y) if both else x == y):
            return False
    return True


def _references(tree: ast.AST, space: Mapping[str, object]) -> list[tuple[str, object]]:
    """Names and module attributes in `tree` that `space` can resolve."""
    found: list[tuple[str, object]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in space:
            found.append((node.id, space[node.id]))
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = space.get(node.value.id)
            ours = isinstance(owner, types.ModuleType) and owner.__name__.split(".")[0] == "lib"
            if ours and hasattr(owner, node.attr):
                found.append((f"{node.value.id}.{node.attr}", getattr(owner, node.attr)))
    return found


def _is_constant(value: object) -> bool:
    """Whether `repr` gives the value, the same in every process (that of a set does not)."""
    if isinstance(value, tuple):
        return all(_is_constant(part) for part in value)
    return isinstance(value, (int, float, str, bytes))


def _without_docstrings(tree: ast.AST) -> ast.AST:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


@contextmanager
def _owned(path: Path, kind: str, key: str) -> Iterator[None]:
    """Hold the lock of an entry; while another process does, name it and wait."""
    from filelock import FileLock, Timeout

    lock, owner = FileLock(path.with_suffix(".lock")), path.with_suffix(".pid")
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=WAIT_SECONDS)
        except Timeout:
            pid = _text(owner) or "unknown"
            print(f"waiting for process {pid}, which is building {kind} {key}", file=sys.stderr)
            lock.acquire()
    try:
        with _explained(path):
            owner.write_text(str(os.getpid()))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn a folder that cannot be written into one sentence that says what to do."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"cannot write the cache entry {path.stem} in {path.parent}: "
            f"{error.strerror or error}; free some space or set CACHE_DIR to a folder that "
            "can be written"
        ) from error


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _build(
    path: Path, kind: str, key: str, build: Callable[[], Mapping[str, Tensor]]
) -> tuple[dict[str, Tensor], float]:
    from safetensors.torch import save

    start = time.perf_counter()
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in build().items()}
    seconds = time.perf_counter() - start
    note = {"kind": kind, "key": key, "seconds": f"{seconds:.3f}", "sha256": state_hash(tensors)}
    data = save(tensors, metadata=note)
    temporary = path.with_suffix(f".{os.getpid()}.part")
    with _explained(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    for stale in path.parent.glob(f"{path.stem}.*.part"):  # left by a killed process
        stale.unlink(missing_ok=True)
    return tensors, seconds


def _read_if_whole(path: Path) -> tuple[dict[str, Tensor], float] | None:
    """The entry, or None; a damaged file is dealt with under the lock, once."""
    try:
        return _read(path) if path.is_file() else None
    except DamagedEntry:
        return None


def _read_or_set_aside(path: Path) -> tuple[dict[str, Tensor], float] | None:
    """The entry, or None; a damaged file is reported and renamed. The caller holds the lock."""
    if not path.is_file():
        return None
    try:
        return _read(path)
    except DamagedEntry as error:
        aside = path.with_suffix(".bad")
        with _explained(path):
            os.replace(path, aside)
        print(f"{error}; kept as {aside.name}, building it again", file=sys.stderr)
        return None


def _read(path: Path) -> tuple[dict[str, Tensor], float]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            note = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedEntry(f"cache entry {path.name} cannot be read ({error})") from error
    if note.get("sha256") != state_hash(tensors):
        raise DamagedEntry(f"cache entry {path.name} does not match its checksum")
    if f"{note.get('kind')}-{note.get('key')}" != path.stem:
        raise DamagedEntry(f"cache entry {path.name} holds another entry")
    return tensors, float(note["seconds"])


def _log() -> Path:
    directory = settings.cache_dir()
    return directory.with_name(directory.name + ".log")


def _is_logged(kind: str, key: str) -> bool:
    line = f"built {kind} {key} "
    return _log().is_file() and any(x.startswith(line) for x in _log().read_text().splitlines())


def _note_use(kind: str, key: str, seconds: float) -> None:
    """Tell the engine what this process took from the cache, and what it cost to build."""
    if os.environ.get("CACHE_USE_LOG"):
        _append(Path(os.environ["CACHE_USE_LOG"]), f"used {kind} {key} {seconds:.1f}")


def _append(path: Path, line: str) -> None:
    with open(path, "a") as file:  # one short write in append mode is atomic on a local disk
        file.write(line + "\n")
