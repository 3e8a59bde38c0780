"""What a decomposition of per-example Fishers is, and how it is kept on disk.

Each Fisher is approximated by ``sum_j W[i, j] H_j`` with coefficients ``W >= 0``. A pseudo-Fisher
`H_j` is ``g_j g_j^T`` in the low-rank case and a vector that is nowhere negative in the diagonal
case; row j of `components` is g_j or that vector. `unit` gives all components the same size, so
that coefficients can be compared across them.

Public names: `Decomposition`, `unit`, `explained`, `save`, `load`, `write_tensors`,
`read_tensors`, `DamagedFile`.

Source: document 3, sections 2.3 and 2.4; specification sections 0 and 2.6.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from lib import cache, files
from lib.npeff.store import DIAGONAL, LOW_RANK, Parameters

Option = str | int | float | bool | None
TENSORS = ("coefficients", "components", "kept", "losses", "loss_steps")


class DamagedFile(ValueError):
    """A file that is cut short, altered, or of another kind."""


@dataclass(frozen=True)
class Decomposition:
    """Coefficients and components, with what is needed to read them again."""

    kind: str  # LOW_RANK or DIAGONAL
    coefficients: Tensor  # W [n, r], not negative
    components: Tensor  # G (low-rank; the sign of a row is arbitrary) or H (diagonal) [r, m']
    kept: Tensor  # int64 [m'], ascending: the parameter position that a column is
    parameters: Parameters  # names and shapes in the flat order
    k: int  # entries kept of an example at most
    losses: Tensor  # float64 [s], L of 2.1, or ||X - WH||^2; the last one is the result's
    loss_steps: Tensor  # int64 [s], steps done when each was taken
    energy: float  # kappa, the loss of a decomposition that explains nothing
    seed: int
    options: Mapping[str, Option]  # everything else that decided the result
    snapshots: Tensor | None = None  # [t, n, r], coefficients on the way
    snapshot_steps: Tensor | None = None  # int64 [t]
    frozen: int = field(default=0)  # components, the last ones, that came from elsewhere

    def __post_init__(self) -> None:
        if self.kind not in (LOW_RANK, DIAGONAL):
            raise ValueError(f"want kind {LOW_RANK!r} or {DIAGONAL!r}, got {self.kind!r}")
        n_components = self.coefficients.shape[1]
        want = (n_components, len(self.kept))
        if self.components.shape != want:
            raise ValueError(f"want components {want}, got {tuple(self.components.shape)}")

    @property
    def n_components(self) -> int:
        """r."""
        return self.coefficients.shape[1]

    @property
    def loss(self) -> float:
        """L of the result."""
        return float(self.losses[-1])


def explained(decomposition: Decomposition) -> float:
    """``1 - L / kappa``: 1 is perfect, 0 is no better than nothing; 0 if all PEFs are zero."""
    if not decomposition.energy:
        return 0.0
    return 1 - decomposition.loss / decomposition.energy


def unit(decomposition: Decomposition) -> Decomposition:
    """The same decomposition with components of unit length, the most used one first.

    ``||H_j||_F = 1`` for each: a coefficient is the size of a component's share. The ranking of
    examples within a component stays. Components that are zero stay zero and come last.

    Source: specification 2.6; sorting by total coefficient is ours.
    """
    length = torch.linalg.vector_norm(decomposition.components, dim=1, dtype=torch.float64)
    size = length.square() if decomposition.kind == LOW_RANK else length
    inverse = torch.where(length > 0, length.reciprocal(), 0.0)
    coefficients = decomposition.coefficients.double() * size
    order = coefficients.sum(0).argsort(descending=True, stable=True)

    def scaled(w: Tensor) -> Tensor:
        return (w.double() * size)[..., order].to(w.dtype)

    g = decomposition.components
    snapshots = decomposition.snapshots
    return replace(
        decomposition,
        coefficients=scaled(decomposition.coefficients),
        components=(g * inverse[:, None].to(g.dtype))[order],
        snapshots=None if snapshots is None else scaled(snapshots),
        frozen=0,  # frozen components no longer come last
    )


def save(decomposition: Decomposition, path: Path) -> None:
    """Write a decomposition to one safetensors file, whole or not at all."""
    tensors = {name: getattr(decomposition, name) for name in TENSORS}
    if decomposition.snapshots is not None and decomposition.snapshot_steps is not None:
        tensors["snapshots"] = decomposition.snapshots
        tensors["snapshot_steps"] = decomposition.snapshot_steps
    note = {
        "what": "decomposition",
        "kind": decomposition.kind,
        "parameters": [[name, list(shape)] for name, shape in decomposition.parameters],
        "k": decomposition.k,
        "energy": decomposition.energy,
        "seed": decomposition.seed,
        "options": dict(decomposition.options),
        "frozen": decomposition.frozen,
    }
    write_tensors(path, tensors, note)


def load(path: Path) -> Decomposition:
    """Read what `save` wrote, onto the CPU.

    Raises:
        DamagedFile: the file is not whole, or no decomposition.
    """
    tensors, note = read_tensors(path)
    if note.get("what") != "decomposition":
        raise DamagedFile(f"{path.name} holds no decomposition but {note.get('what')!r}")
    return Decomposition(
        kind=note["kind"],
        parameters=tuple((name, tuple(shape)) for name, shape in note["parameters"]),
        k=note["k"],
        energy=note["energy"],
        seed=note["seed"],
        options=note["options"],
        frozen=note["frozen"],
        **{name: tensors[name] for name in TENSORS},
        snapshots=tensors.get("snapshots"),
        snapshot_steps=tensors.get("snapshot_steps"),
    )


def write_tensors(path: Path, tensors: Mapping[str, Tensor], note: Mapping[str, object]) -> None:
    """One safetensors file with a checksum and a note (JSON), written whole or not at all."""
    from safetensors.torch import save as to_bytes

    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"note": json.dumps(note), "sha256": cache.state_hash(whole)}
    files.write_whole(path, to_bytes(whole, metadata))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors, on the CPU, and the note of `write_tensors`.

    Raises:
        DamagedFile: the file is cut short or altered.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        note = json.loads(metadata["note"])
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise DamagedFile(
            f"{path.name} cannot be read ({error}); delete it and run again"
        ) from error
    if metadata.get("sha256") != cache.state_hash(tensors):
        raise DamagedFile(f"{path.name} does not match its checksum; delete it and run again")
    return tensors, note
