"""Which notebooks there are, what parameters they take, and what a call of `make` asks for.

Everything is read with `json` and `ast`, so that a wrong name is refused before anything runs.
Public names: `Problem`, `Parameter`, `Request`, `available`, `parameters`, `cells`, `request`.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lib.config import PROFILES, ROOT, cache_dir, data_root, figures_root

FOLDER = ROOT / "notebooks"
OF_MAKE = ("PROFILE", "DEVICE", "SEED")  # variables of make that are also notebook parameters
TYPES = ("str", "int", "float", "bool", "list")
TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Problem(Exception):
    """What was asked for cannot be done; the message is the sentence for the user."""


@dataclass(frozen=True)
class Parameter:
    """One line of the cell tagged `parameters`."""

    name: str
    type: str  # one of TYPES

    def parse(self, text: str) -> object:
        """The value that `text` stands for.

        Raises:
            Problem: `text` is not of this parameter's type.
        """
        try:
            if self.type == "bool":
                return TRUTH[text.lower()]
            if self.type == "list":
                return _listed(text)
            return {"int": int, "float": float}.get(self.type, str)(text)
        except (KeyError, ValueError, SyntaxError) as error:
            raise Problem(f"{self.name} is of type {self.type}; got {text!r}") from error


def _listed(text: str) -> list[object]:
    """`[1, 2]` or `1,2`; an item that is not a literal is a word."""
    inner = text.strip().removeprefix("[").removesuffix("]")
    items: list[object] = []
    for item in filter(None, (part.strip() for part in inner.split(","))):
        try:
            items.append(ast.literal_eval(item))
        except (ValueError, SyntaxError):
            items.append(item)
    return items


@dataclass(frozen=True)
class Request:
    """What one call of make asks for, checked."""

    profile: str
    device: str
    seed: int
    notebooks: tuple[str, ...]
    label: str = "all"  # of ONLY, for file names
    values: Mapping[str, str] = field(default_factory=dict)  # of P, as written

    @property
    def is_variant(self) -> bool:
        """Whether results differ from the committed ones on purpose."""
        return bool(self.values) or self.seed != 0

    @property
    def run_folder(self) -> Path:
        """Executed notebooks, logs and stamps; of a variant also its figures."""
        folder = ROOT / "build" / self.profile
        if not self.is_variant:
            return folder
        pairs = ([("SEED", str(self.seed))] if self.seed else []) + sorted(self.values.items())
        exact = " ".join(f"{name}={value}" for name, value in pairs)
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", "_".join(f"{k}-{v}" for k, v in pairs))[:60]
        return folder / "variants" / f"{readable}_{hashlib.sha256(exact.encode()).hexdigest()[:6]}"

    @property
    def figures_dir(self) -> Path:
        """What FIGURES_DIR is for the notebooks."""
        return self.run_folder / "figures" if self.is_variant else figures_root()

    def record(self, notebook: str) -> Path:
        """Where `run.json` is kept: with the figures if those are committed with it."""
        if self.profile == "quick" or self.is_variant:
            return self.run_folder / notebook / "run.json"
        return self.figures_dir / self.profile / notebook / "run.json"

    def stamp(self) -> str:
        """All that results depend on beside files; a change of it makes a notebook stale."""
        pairs = [f"{name}={value}" for name, value in sorted(self.values.items())]
        given = {"PROFILE": self.profile, "DEVICE": self.device, "SEED": self.seed}
        given |= {"DATA_ROOT": data_root(), "CACHE_DIR": cache_dir(), "P": " ".join(pairs)}
        return "".join(f"{name} {value}\n" for name, value in given.items())

    def arguments(self, notebook: str) -> dict[str, object]:
        """What papermill injects: the variables of make and P, as far as the notebook has them."""
        known = parameters(notebook)
        given: dict[str, object] = {"PROFILE": self.profile, "DEVICE": self.device}
        given["SEED"] = self.seed
        given |= {name: known[name].parse(text) for name, text in self.values.items()}
        return {name: value for name, value in given.items() if name in known}


def available() -> list[str]:
    """Names of the notebooks, in order."""
    return sorted(path.stem for path in FOLDER.glob("[0-9][0-9]_*.ipynb"))


def cells(notebook: str) -> list[dict[str, object]]:
    """Code cells of a notebook: `source` as one string, `tags`.

    Raises:
        Problem: the file is not a notebook.
    """
    path = FOLDER / f"{notebook}.ipynb"
    try:
        found = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        return [
            {"source": "".join(c["source"]), "tags": c.get("metadata", {}).get("tags", [])}
            for c in found
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem(f"{path.relative_to(ROOT)} cannot be read as a notebook: {error}") from error


def parameters(notebook: str) -> dict[str, Parameter]:
    """Parameters of a notebook by name: the assignments of its cell tagged `parameters`.

    Raises:
        Problem: that cell is not Python.
    """
    found: dict[str, Parameter] = {}
    for cell in cells(notebook):
        if "parameters" not in cell["tags"]:  # type: ignore[operator]
            continue
        try:
            tree = ast.parse(str(cell["source"]))
        except SyntaxError as error:
            raise Problem(f"the parameters of {notebook} cannot be read: {error.msg}") from error
        for node in tree.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                kind = ast.unparse(node.annotation)
                found[node.target.id] = Parameter(node.target.id, kind if kind in TYPES else "str")
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                kind = type(getattr(node.value, "value", [])).__name__
                name = node.targets[0].id
                found[name] = Parameter(name, kind if kind in TYPES else "str")
    return found


def request(environment: Mapping[str, str]) -> Request:
    """Check what make exported: PROFILE, DEVICE, SEED, ONLY and P.

    Raises:
        Problem: one of them names what does not exist.
    """
    profile = environment.get("PROFILE") or "quick"
    if profile not in PROFILES:
        raise Problem(f"PROFILE is one of {', '.join(PROFILES)}; got {profile!r}")
    device = environment.get("DEVICE") or "auto"
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise Problem(f"DEVICE is auto, cpu, cuda or cuda:<k>; got {device!r}")
    seed = environment.get("SEED") or "0"
    if not seed.isdecimal():
        raise Problem(f"SEED is a whole number from 0; got {seed!r}")
    only = environment.get("ONLY") or ""
    chosen = _select(only)
    label = re.sub(r"[^A-Za-z0-9_]+", "-", only.strip()) or "all"
    values = _values(environment.get("P") or "", chosen if only.strip() else ())
    return Request(profile, device, int(seed), chosen, label, values)


def _select(only: str) -> tuple[str, ...]:
    names = available()
    wanted = only.replace(",", " ").split()
    for word in wanted:
        if not any(_matches(name, word) for name in names):
            raise Problem(
                f"ONLY={word} is no notebook or part; there are {', '.join(names) or 'none'}"
            )
    return tuple(n for n in names if not wanted or any(_matches(n, word) for word in wanted))


def _matches(notebook: str, word: str) -> bool:
    """51 or 51_tabular names a notebook, 5 the part it belongs to."""
    return word in (notebook, notebook[:2], notebook[:1])


def _values(text: str, chosen: tuple[str, ...]) -> dict[str, str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise Problem(f'P is read as P="NAME=value NAME=value"; in {text!r}: {error}') from error
    if words and not chosen:
        raise Problem("P needs ONLY: say which notebook these parameters are for, as in ONLY=51")
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise Problem(f'P is read as P="NAME=value NAME=value"; got {word!r}')
        if name in OF_MAKE:
            raise Problem(f"{name} is a variable of make: write {name}={value} outside of P")
        for notebook in chosen:
            known = {k: v for k, v in parameters(notebook).items() if k not in OF_MAKE}
            if name not in known:
                names = ", ".join(known) or "none beside PROFILE, DEVICE and SEED"
                raise Problem(f"{notebook} has no parameter {name}; it has {names}")
            known[name].parse(value)
        values[name] = value
    return values
