"""Ground truth of data attribution: what networks trained on known subsets really output.

Document 4, the linear datamodeling score and datamodels; specification sections 2.2 and 3.1.
A `Setting` says what is trained on what and which number of a target is the output. Subsets have
an exact size; each is trained on with one or several seeds; only the outputs are kept. Trainings
run in stacks of `Setting.stack` networks (one at a time where that is 1), each stack one entry of
the cache, so that a killed run continues where it was, here or on a cluster.

A number of epochs is kept, not of steps: a network of half of the rows takes half the steps. The
objective is the mean loss over the subset plus a fixed weight decay.

Convention of this project, so that what is fitted never meets what it is judged by: notebooks
measure the truth with `seed` and whatever is fitted on trained networks with `seed + FITTING`.

Public names: `Setting`, `Truth`, `measure`, `subset_outputs`, `checkpoints`, `network_seed`,
`FITTING`, and `sample_subsets` of `subsets.py`.
"""

from __future__ import annotations

import io
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lib import cache, models, training
from lib.attribution.subsets import check_subsets, membership, sample_subsets
from lib.data.base import DamagedData, Split, open_archive
from lib.files import write_if_changed
from lib.gradients import margin
from lib.parallel import map_tasks
from lib.training.loop import LOSSES, SCHEDULES, Prepare, Progress, Recipe

FITTING = 1000  # added to the seed of a truth for the networks that datamodels are fitted on
SUBSET, CHECKPOINT, REMOVAL = 0, 1, 2  # what a network's seed is for
CHECKPOINT_STACK = 10  # so that 10 checkpoints are the first 10 of 50


@dataclass(frozen=True)
class Setting:
    """What is trained, on what, and the output of a target that is attributed."""

    name: str
    network: str  # a key of `models.NETWORKS`
    spec: Mapping[str, object]
    recipe: Recipe
    train: Split  # x [n, ...], y [n]; their device is where networks are trained
    targets: Split  # [T]
    prepare: Prepare | None = None  # a function of `lib`, applied to inputs of both
    stack: int = 100  # networks trained as one; 1 trains them one by one
    output: Callable[[Tensor, Tensor], Tensor] = margin  # (outputs [b, C], y [b]) -> [b]

    @cached_property
    def data_hash(self) -> str:
        """SHA-256 of training rows and targets."""
        rows = {"x": self.train.x, "y": self.train.y, "tx": self.targets.x, "ty": self.targets.y}
        return cache.state_hash(rows)

    def __str__(self) -> str:
        return f"{self.name}, {len(self.train)} rows, {len(self.targets)} targets"


@dataclass(frozen=True)
class Truth:
    """Outputs of networks trained on subsets, with the story of how they came about."""

    subsets: Tensor  # int64 [m, k], sorted row indices
    outputs: Tensor  # float32 [m, R, T]
    manifest: Mapping[str, object]  # seeds, versions, recipe, hash of the data, seconds

    @property
    def mean(self) -> Tensor:
        """Outputs averaged over the R seeds, `[m, T]`."""
        return self.outputs.mean(1)

    def save(self, folder: Path) -> None:
        """Write `truth.npz` (packed masks, indices, outputs) and `truth.json` (the manifest)."""
        n = int(str(self.manifest["n"]))
        masks = membership(self.subsets, n).bool().numpy()
        buffer = io.BytesIO()
        np.savez(
            buffer,
            packed=np.packbits(masks, axis=1),
            indices=self.subsets.numpy().astype(np.int32),
            outputs=self.outputs.numpy(),
        )
        write_if_changed(folder / "truth.npz", buffer.getvalue())
        text = json.dumps({**self.manifest, "sha256": self._hash()}, indent=1, sort_keys=True)
        write_if_changed(folder / "truth.json", text + "\n")

    @classmethod
    def load(cls, folder: Path) -> Truth:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no truth in the folder.
            DamagedData: array and manifest do not belong together.
        """
        for name in ("truth.json", "truth.npz"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"no {name} in {folder}; measure the truth and save it")
        manifest = json.loads((folder / "truth.json").read_text())
        found = open_archive(folder / "truth.npz", ("packed", "indices", "outputs"))
        subsets = torch.from_numpy(found["indices"].astype(np.int64))
        truth = cls(subsets, torch.from_numpy(found["outputs"]), manifest)
        masks = np.unpackbits(found["packed"].astype(np.uint8), axis=1, count=int(manifest["n"]))
        wanted = manifest.pop("sha256", None)
        same = torch.equal(membership(subsets, masks.shape[1]).byte(), torch.from_numpy(masks))
        if not same or truth._hash() != wanted:
            raise DamagedData(
                f"truth.npz in {folder} is not the one that truth.json describes; measure again"
            )
        return truth

    def _hash(self) -> str:
        return cache.state_hash({"subsets": self.subsets, "outputs": self.outputs})


def measure(
    setting: Setting,
    m: int,
    *,
    alpha: float = 0.5,
    repeats: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Truth:
    """Draw m subsets, train `repeats` networks on each, and keep what they output.

    Args:
        setting: what is trained.
        m: number of subsets.
        alpha: share of the rows in each.
        repeats: R networks a subset, each with its own seed.
        seed: of the subsets and of the networks.
        progress: wraps the range of stacks.

    Source: specification sections 2.1 (truth: R > 1) and 3.1 (datamodels: R = 1).
    """
    subsets = sample_subsets(len(setting.train), m, alpha, seed=seed)
    outputs, wall, cpu = _collect(setting, subsets, repeats, seed, progress)
    manifest = {
        "setting": setting.name,
        "network": setting.network,
        "spec": dict(setting.spec),
        "recipe": asdict(setting.recipe),
        "output": setting.output.__name__,
        "data_sha256": setting.data_hash,
        "n": len(setting.train),
        "n_targets": len(setting.targets),
        "m": m,
        "alpha": alpha,
        "subset_size": subsets.shape[1],
        "repeats": repeats,
        "seed": seed,
        "wall_seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
        },
    }
    return Truth(subsets, outputs, manifest)


def subset_outputs(
    setting: Setting,
    subsets: Tensor,
    *,
    repeats: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Outputs of all targets from networks trained on each subset.

    Args:
        setting: what is trained.
        subsets: sorted row indices, int64 `[m, k]`.
        repeats: R networks a subset; a network's seed depends on (`seed`, subset, repeat) alone.
        seed: base seed.
        progress: wraps the range of stacks.

    Returns:
        float32 `[m, R, T]`, on the CPU.

    Raises:
        ValueError: subsets that are no sets of rows; repeats < 1.
        TaskError: a training failed, for instance with a loss that is not finite.
    """
    return _collect(setting, subsets, repeats, seed, progress)[0]


@dataclass(frozen=True)
class _Stack:
    """One unit of work: the networks of some subsets."""

    setting: Setting
    subsets: Tensor  # [N, k]
    seeds: tuple[int, ...]
    first: int  # subset
    repeat: int

    def __str__(self) -> str:
        last = self.first + len(self.seeds) - 1
        return f"{self.setting.name}, subsets {self.first} to {last}, repeat {self.repeat}"


def _collect(
    setting: Setting, subsets: Tensor, repeats: int, seed: int, progress: Progress | None
) -> tuple[Tensor, float, float]:
    """Outputs `[m, R, T]`, and the seconds that they took when they were computed."""
    check_subsets(subsets, len(setting.train))
    if repeats < 1 or setting.stack < 1:
        raise ValueError(f"want repeats and stack >= 1, got {repeats} and {setting.stack}")
    _ = setting.data_hash  # once, not once a stack
    starts = range(0, len(subsets), setting.stack)
    stacks = []
    for repeat in range(repeats):  # outermost: more repeats reuse the entries of fewer
        for start in starts:
            rows = subsets[start : start + setting.stack]
            seeds = tuple(network_seed(seed, SUBSET, start + j, repeat) for j in range(len(rows)))
            stacks.append(_Stack(setting, rows, seeds, start, repeat))
    on_processor = setting.train.x.device.type == "cpu"
    parts = map_tasks(_fetch_outputs, stacks, progress=progress, together=on_processor)
    flat = torch.cat([part["outputs"] for part in parts])  # [R m, T]
    wall, cpu = torch.stack([part["seconds"] for part in parts]).sum(0).tolist()
    return flat.unflatten(0, (repeats, len(subsets))).transpose(0, 1).contiguous(), wall, cpu


def _fetch_outputs(stack: _Stack) -> dict[str, Tensor]:
    setting = stack.setting
    config = {
        "network": setting.network,
        "spec": dict(setting.spec),
        "recipe": asdict(setting.recipe),
        "data": setting.data_hash,
        "subsets": cache.state_hash({"subsets": stack.subsets}),
        "seeds": list(stack.seeds),
    }

    def build() -> dict[str, Tensor]:
        wall, cpu = time.perf_counter(), time.process_time()
        outputs = _train_outputs(
            setting.network,
            setting.spec,
            setting.recipe,
            setting.train,
            setting.targets,
            setting.output,
            setting.prepare,
            stack.subsets,
            stack.seeds,
        )
        seconds = [time.perf_counter() - wall, time.process_time() - cpu]
        return {"outputs": outputs, "seconds": torch.tensor(seconds, dtype=torch.float64)}

    recipe = setting.recipe
    code: list[Callable[..., object]] = [
        _train_outputs,
        setting.output,
        models.NETWORKS[setting.network],
        LOSSES[recipe.loss],
        SCHEDULES[recipe.schedule],
    ]
    code += [setting.prepare] if setting.prepare else []
    return cache.fetch(f"outputs-{setting.network}", config, build, code=code)


def _train_outputs(
    network: str,
    spec: Mapping[str, object],
    recipe: Recipe,
    train: Split,
    targets: Split,
    output: Callable[[Tensor, Tensor], Tensor],
    prepare: Prepare | None,
    subsets: Tensor,
    seeds: Sequence[int],
) -> Tensor:
    """Outputs float32 `[N, T]` of one network a subset."""
    if len(seeds) == 1:
        generator = torch.Generator().manual_seed(seeds[0])
        model = models.build(network, generator, train.x.device, **spec)
        rows = subsets[0].to(train.x.device)
        x, y = train.x[rows], train.y[rows]
        training.train(model, x, y, recipe, generator=generator, prepare=prepare)
        logits = training.predict(model, targets.x, prepare=prepare)
        return output(logits, targets.y)[None].float().cpu()
    x = prepare(train.x) if prepare else train.x
    target_x = prepare(targets.x) if prepare else targets.x
    state = training.train_stacked(network, spec, x, train.y, recipe, seeds=seeds, subsets=subsets)
    logits, _ = training.forward_stacked(network, spec, state, target_x)
    flat = output(logits.flatten(0, 1), targets.y.repeat(len(seeds)))
    return flat.unflatten(0, (len(seeds), -1)).float().cpu()


def checkpoints(
    setting: Setting, n_models: int, *, share: float = 0.5, seed: int = 0
) -> list[nn.Module]:
    """Networks to read gradients from, each trained on its own random share of the rows.

    Args:
        setting: what is trained.
        n_models: how many; the first ones do not depend on it.
        share: of the rows, in (0, 1]; 1 trains each on all rows.
        seed: base seed. None of the networks shares a seed with those of `subset_outputs`.

    Returns:
        The networks in evaluation mode, trained at most once (`lib.cache`).
    """
    if n_models < 1 or not 0 < share <= 1:
        raise ValueError(f"want n_models >= 1 and share in (0, 1], got {n_models} and {share}")
    n = len(setting.train)
    if share == 1:
        subsets = torch.arange(n).expand(n_models, -1)
    else:
        subsets = sample_subsets(n, n_models, share, seed=network_seed(seed, CHECKPOINT, 0, 1))
    seeds = [network_seed(seed, CHECKPOINT, k, 0) for k in range(n_models)]
    if setting.stack == 1:
        return [_checkpoint(setting, rows, s) for rows, s in zip(subsets, seeds, strict=True)]
    x = setting.prepare(setting.train.x) if setting.prepare else setting.train.x
    found: list[nn.Module] = []
    for a, b in pairwise([*range(0, n_models, CHECKPOINT_STACK), n_models]):
        state = training.fetch_stack(
            setting.network,
            setting.spec,
            x,
            setting.train.y,
            setting.recipe,
            seeds=seeds[a:b],
            subsets=subsets[a:b].contiguous(),
        )
        found += [training.unstack(setting.network, setting.spec, state, k) for k in range(b - a)]
    return found


def _checkpoint(setting: Setting, rows: Tensor, seed: int) -> nn.Module:
    return training.fetch_model(
        setting.network,
        setting.spec,
        lambda: (setting.train.x[rows], setting.train.y[rows]),
        setting.recipe,
        seed=seed,
        data_hash=f"{setting.data_hash} {cache.state_hash({'rows': rows})}",
        prepare=setting.prepare,
        device=str(setting.train.x.device),
    )


def network_seed(seed: int, purpose: int, index: int, repeat: int) -> int:
    """A seed of its own for each network, whatever process or stack it is trained in."""
    words = np.random.SeedSequence([seed, purpose, index, repeat]).generate_state(2, np.uint32)
    return (int(words[0]) << 31) ^ int(words[1])
