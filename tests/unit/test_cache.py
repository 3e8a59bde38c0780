"""What names a cache entry, and that what went in comes out."""

from __future__ import annotations

import ast
import importlib
import itertools
import sys
import time
import types
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lib import cache

PACKAGES = itertools.count()  # a name of its own each time: modules are imported once

MAIN = """
from {package} import other
from {package}.other import helper, Base, untouched

FACTOR = 2
STEPS = (1, 2)

class Part(Base):
    pass

def train(x):
    part = Part()
    return helper(x) * FACTOR + STEPS[0]
"""
OTHER = '''
WEIGHT = 3

class Base:
    def score(self):
        return 1

def helper(x):
    """Weigh x."""
    return deep(x) * WEIGHT

def deep(x):
    return x + 1  # one more

def untouched(x):
    return x
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of this test alone, two levels down, so that its log is ours as well."""
    monkeypatch.setenv("CACHE_DIR", str(tmp_path / "build" / "cache"))
    monkeypatch.delenv("CACHE_USE_LOG", raising=False)
    return tmp_path / "build" / "cache"


@pytest.fixture
def key_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Key of `train` of a small package, after replacing a text in one of its two files."""
    monkeypatch.syspath_prepend(tmp_path)

    def key(old: str = "", new: str = "") -> str:
        package = f"toy_package_{next(PACKAGES)}"
        source = tmp_path / package
        source.mkdir()
        main, other = MAIN.format(package=package), OTHER
        assert old in main + other
        (source / "__init__.py").write_text("")
        (source / "main.py").write_text(main.replace(old, new))
        (source / "other.py").write_text(other.replace(old, new))
        importlib.invalidate_caches()
        module = importlib.import_module(f"{package}.main")
        found = cache.sources([module.train])
        # the packages differ in nothing but their name
        plain = {name.replace(package, "toy"): text for name, text in found.items()}
        for name in [name for name in sys.modules if name.startswith(package)]:
            monkeypatch.delitem(sys.modules, name)
        return repr(sorted(plain.items())).replace(package, "toy")

    return key


def test_the_key_is_the_same_again(key_after: Callable[..., str]):
    assert key_after() == key_after()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("STEPS[0]", "STEPS[1]"),  # the function itself
        ("deep(x) * WEIGHT", "deep(x) + WEIGHT"),  # one that it calls
        ("x + 1", "x + 2"),  # one that that one calls, in another file
        ("return 1", "return 5"),  # a base class of a class that it uses
        ("FACTOR = 2", "FACTOR = 4"),  # a constant
        ("STEPS = (1, 2)", "STEPS = (1, 3)"),  # a tuple
        ("WEIGHT = 3", "WEIGHT = 9"),  # a constant of the called function's file
    ],
)
def test_a_change_of_what_is_computed_changes_the_key(
    key_after: Callable[..., str], old: str, new: str
):
    assert key_after(old, new) != key_after()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  # one more", "  # and another"),
        ('"""Weigh x."""', '"""Weigh x by the constant above."""'),
        ("return deep(x) * WEIGHT", "return (\n        deep(x)\n        * WEIGHT\n    )"),
        ("def untouched(x):\n    return x", "def untouched(x):\n    return -x"),
    ],
)
def test_comments_layout_and_unused_functions_are_not_in_the_key(
    key_after: Callable[..., str], old: str, new: str
):
    assert key_after(old, new) == key_after()


def test_configuration_and_kind_are_in_the_key_but_not_their_order():
    code = [cache.state_hash]
    base = cache.key_of("model", {"seed": 0, "spec": {"width": 4}}, code)
    assert base == cache.key_of("model", {"spec": {"width": 4}, "seed": 0}, code)
    others = [
        cache.key_of("model", {"seed": 1, "spec": {"width": 4}}, code),
        cache.key_of("model", {"seed": 0, "spec": {"width": 5}}, code),
        cache.key_of("stack", {"seed": 0, "spec": {"width": 4}}, code),
        cache.key_of("model", {"seed": 0, "spec": {"width": 4}}, [cache.key_of]),
    ]
    assert len({base, *others}) == 5
    assert len(base) == 16
    assert int(base, 16) >= 0


def test_modules_of_lib_are_followed_through_their_attributes():
    """`lib.cache` reads `settings.cache_dir()`, a function of another file."""
    assert "lib.config.cache_dir" in cache.sources([cache.fetch])


def test_code_that_is_no_function_is_refused():
    with pytest.raises(TypeError, match="functions and classes, got Linear"):
        cache.key_of("model", {}, [torch.nn.Linear(1, 1)])


TENSORS = {
    "bfloat16": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).bfloat16(),
    "half": torch.tensor([0.1, float("inf")]).half(),
    "double": torch.tensor([[1e-300, -0.0]], dtype=torch.float64),
    "int": torch.tensor([-(2**62), 7]),
    "byte": torch.arange(5, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "scalar": torch.tensor(2.5),
    "count": torch.tensor(3),  # as BatchNorm's num_batches_tracked
    "empty": torch.zeros(0, 4),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "part": torch.arange(100.0)[90:],
}


def test_tensors_of_every_kind_return_as_they_were(folder: Path):
    code = [cache.state_hash]
    first = cache.fetch("all", {}, lambda: TENSORS, code=code)
    again = cache.fetch("all", {}, pytest.fail, code=code)  # type: ignore[arg-type]
    for name, tensor in TENSORS.items():
        for got in (first[name], again[name]):
            assert got.dtype == tensor.dtype
            assert_close(got, tensor, rtol=0, atol=0)
    assert set(again) == set(TENSORS)
    assert cache.state_hash(again) == cache.state_hash(TENSORS)


def test_tensors_that_share_memory_or_need_gradients_are_stored(folder: Path):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    cache.fetch("tied", {}, lambda: {"a": weight, "b": weight}, code=[cache.state_hash])
    got = cache.fetch("tied", {}, dict, code=[cache.state_hash])
    assert not got["a"].requires_grad
    assert_close(got["a"], got["b"])


def test_an_entry_is_built_once_and_logged_once(folder: Path):
    calls = []

    def build() -> dict[str, Tensor]:
        calls.append(1)
        return {"x": torch.ones(1)}

    for _ in range(3):
        cache.fetch("one", {"n": 1}, build, code=[cache.state_hash])
    key = cache.key_of("one", {"n": 1}, [cache.state_hash])
    assert len(calls) == 1
    assert (folder.parent / "cache.log").read_text().startswith(f"built one {key} ")
    assert (folder.parent / "cache.log").read_text().count("\n") == 1
    left = sorted(p.suffix for p in folder.iterdir())
    assert left in ([".lock", ".safetensors"], [".safetensors"])


def test_the_engine_is_told_what_was_used(folder: Path, monkeypatch: pytest.MonkeyPatch):
    used = folder.parent.parent / "used.log"
    monkeypatch.setenv("CACHE_USE_LOG", str(used))
    for _ in range(2):
        cache.fetch("one", {}, lambda: {"x": torch.ones(1)}, code=[cache.state_hash])
    key = cache.key_of("one", {}, [cache.state_hash])
    assert [line.split()[:3] for line in used.read_text().splitlines()] == [
        ["used", "one", key]
    ] * 2


def test_state_hash_tells_names_shapes_types_and_values_apart():
    x = torch.arange(4.0)
    states: list[dict[str, Tensor]] = [
        {"a": x},
        {"b": x},
        {"a": x.reshape(2, 2)},
        {"a": x.view(torch.int32)},  # the same bytes
        {"a": x + torch.tensor([0, 0, 0, 1e-6])},
        {"a": x, "b": x},
    ]
    assert len({cache.state_hash(state) for state in states}) == len(states)
    assert cache.state_hash({"a": x, "b": -x}) == cache.state_hash({"b": -x, "a": x})
    strided = torch.stack([x, -x], dim=1)[:, 0]
    assert cache.state_hash({"a": strided}) == cache.state_hash({"a": x})


@pytest.mark.parametrize(
    ("old", "new", "refused"), [("+ 1", "+ 2", True), ("\n\n", "\n#\n", False)]
)
def test_code_edited_after_it_was_loaded_is_not_taken_for_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, refused: bool
):
    path = tmp_path / f"toy_edited_{next(PACKAGES)}.py"
    text = "import math\n\ndef train(x):\n    return x + 1\n"
    path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module(path.stem)
    path.write_text(text.replace(old, new))
    if refused:
        with pytest.raises(ValueError, match=r"was edited after it was loaded .*; restart"):
            cache.sources([module.train])
    else:
        assert "BinOp" in cache.sources([module.train])[f"{path.stem}.train"]


def test_source_is_parsed_by_one_thread_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 loses count of a tree's depth when two threads parse."""
    inside: list[int] = []
    most: list[int] = []
    tree = cache._tree

    def watched(item: type | types.FunctionType) -> ast.Module:
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        found = tree(item)
        inside.pop()
        return found

    monkeypatch.setattr(cache, "_tree", watched)
    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(lambda _: cache.key_of("x", {}, [cache.state_hash]), range(8)))
    assert len(set(keys)) == 1
    assert max(most) == 1
