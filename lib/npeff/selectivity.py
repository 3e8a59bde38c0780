"""What a perturbation does to predictions: KL divergences on top examples and on others.

A component is selective if moving along its direction changes predictions on its top examples
more than on random examples: the KL-ratio is the quotient of the two mean divergences. Two controls
tell what of it is no merit of the direction: the ratio of mean PEF norms, how sensitive the top
examples are to any change, and random directions of equal norm on the same parameters.

`lib.npeff.divergence` computes the divergences and says how precise they are.

Public names: `baseline_examples`, `measure`, `respond`, `Selectivity`,
`random_ratios`, `norm_ratios`, `predicted_kl`, `summarise`, `Summary`.

Source: document 3, sections 2.3 (equation 5) and 3.1.2, figure 3; specification 5.2 to 5.4.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.features import Progress
from lib.npeff.divergence import CHUNK, FORWARD, Data, Reference, checked_rows
from lib.npeff.perturb import Directions, random_directions, scatter
from lib.npeff.store import DIAGONAL, LOW_RANK, Parameters

N_BASELINE = 10_000  # the paper's


@dataclass(frozen=True)
class Selectivity:
    """Divergences of k perturbations, S signs each (+ and -, or one that is known)."""

    top: Tensor  # int64 [k, T], the examples of each component
    baseline: Tensor  # int64 [B]
    kl_top: Tensor  # float64 [k, S, 2, T], nats; FORWARD and REVERSE
    kl_baseline: Tensor  # float64 [k, S, 2], means over the baseline
    accuracy_top: Tensor  # float64 [k, 1 + S], before and after
    accuracy_baseline: Tensor  # float64 [k, 1 + S]

    def ratios(self, kind: int = FORWARD) -> Tensor:
        """KL-ratio of each sign, float64 `[k, S]`; NaN where nothing changes at all."""
        return self.kl_top[:, :, kind].mean(2) / self.kl_baseline[:, :, kind]

    def sign(self, kind: int = FORWARD) -> Tensor:
        """Index of the sign with the larger KL-ratio, int64 `[k]`; the paper reports that one."""
        return self.ratios(kind).nan_to_num(-torch.inf, posinf=torch.inf).argmax(1)

    def ratio(self, kind: int = FORWARD) -> Tensor:
        """KL-ratio of the better sign, float64 `[k]`."""
        return self.ratios(kind).gather(1, self.sign(kind)[:, None])[:, 0]


def baseline_examples(n: int, generator: torch.Generator, size: int = N_BASELINE) -> Tensor:
    """`size` random examples of n, ascending, or all of them if there are fewer: int64 `[B]`.

    Source: specification 5.2; the paper's code takes the first ones instead.
    """
    if n < 1 or size < 1:
        raise ValueError(f"want examples to draw from and a size of at least 1, got {n}, {size}")
    return torch.randperm(n, generator=generator)[:size].sort().values


def measure(
    model: nn.Module,
    data: Data,
    directions: Directions,
    *,
    norm: float,
    top: Tensor,
    baseline: Tensor,
    chunk: int = CHUNK,
    progress: Progress | None = None,
) -> Selectivity:
    """Move along every direction, both ways, and compare top examples with the baseline.

    Args:
        model: logits ``[n, C]`` from inputs; taken in eval mode, left as it was.
        data: inputs ``[n, ...]`` and labels ``[n]``.
        norm: length of a perturbation; the paper's is 0.1, and 0.3 to mend heuristics.
        top: int64 ``[r, T]`` of `concept_search.top_examples`, rows of `data`.
        baseline: int64 ``[B]`` of `baseline_examples`, rows of `data`.
        chunk: examples of a forward pass; does not change the result beyond round-off.
        progress: wraps the range of components.

    Raises:
        ValueError: a norm that is not positive, rows that the data do not have, another model's
            directions, or logits with NaN.

    Source: specification 5.2. One pass per component and sign. Batching directions by
    ``torch.func.vmap`` was measured on a processor: as fast for small dense networks, and up to
    four times slower for convolutions, so that there is one loop.
    """
    if not norm > 0:
        raise ValueError(f"want a norm above 0, got {norm}")
    changes = (_both(directions.change(j, norm)) for j in range(len(directions)))
    return respond(
        model,
        data,
        changes,
        directions.parameters,
        top=checked_rows(top, len(directions), len(data[0])),
        baseline=baseline,
        chunk=chunk,
        progress=progress,
    )


def respond(
    model: nn.Module,
    data: Data,
    changes: Iterable[Tensor],
    parameters: Parameters,
    *,
    top: Tensor,
    baseline: Tensor,
    chunk: int = CHUNK,
    progress: Progress | None = None,
) -> Selectivity:
    """`measure` for any changes of the parameters.

    Args:
        changes: for each of k components ``[S, m]``, in the flat order of `parameters`.
    """
    n = len(data[0])
    top, baseline = checked_rows(top, len(top), n), checked_rows(baseline[None], 1, n)[0]
    before = Reference.of(model, data, torch.cat([top.flatten(), baseline]), chunk)
    kl_top, kl_baseline, right_top, right_baseline = [], [], [], []
    steps = range(len(top))
    pairs = zip(progress(steps) if progress else steps, changes, strict=True)
    n_top = top.shape[1]
    for j, signs in pairs:
        # top examples are mostly in the baseline too: each goes once through the model
        rows, at = torch.cat([top[j], baseline]).unique(return_inverse=True)
        kl, right = before.after(model, signs, parameters, rows, chunk)
        kl_top.append(kl[:, :, at[:n_top]])
        kl_baseline.append(kl[:, :, at[n_top:]].mean(2))
        right_top.append(right[:, at[:n_top]].mean(1))
        right_baseline.append(right[:, at[n_top:]].mean(1))
    return Selectivity(
        top,
        baseline,
        torch.stack(kl_top),
        torch.stack(kl_baseline),
        torch.stack(right_top),
        torch.stack(right_baseline),
    )


def random_ratios(
    model: nn.Module,
    data: Data,
    directions: Directions,
    *,
    norm: float,
    top: Tensor,
    baseline: Tensor,
    n_draws: int,
    generator: torch.Generator,
    kind: int = FORWARD,
    chunk: int = CHUNK,
    progress: Progress | None = None,
) -> Tensor:
    """KL-ratios of random directions of equal norm on the same parameters, float64 `[r, n_draws]`.

    The better of two signs, as for components. Components whose directions have the same support
    share their draws: one pass serves the top examples of all of them.

    Args:
        progress: wraps the range of draws, once per distinct support.

    Source: specification 5.3, the second control.
    """
    if not norm > 0 or n_draws < 1:
        raise ValueError(f"want a norm above 0 and at least 1 draw, got {norm} and {n_draws}")
    top = checked_rows(top, len(directions), len(data[0]))
    baseline = checked_rows(baseline[None], 1, len(data[0]))[0]
    before = Reference.of(model, data, torch.cat([top.flatten(), baseline]), chunk)
    groups: dict[bytes, list[int]] = {}
    for j in range(len(directions)):
        groups.setdefault((directions.unit[j] != 0).cpu().numpy().tobytes(), []).append(j)
    found = torch.zeros(len(top), n_draws, dtype=torch.float64)
    for members in groups.values():
        support = directions.unit[members[0]] != 0
        mine = top[members]
        rows, at = torch.cat([mine.flatten(), baseline]).unique(return_inverse=True)
        where = at[: mine.numel()].view(mine.shape)
        others = at[mine.numel() :]
        steps = range(n_draws)
        for draw in progress(steps) if progress else steps:
            unit = random_directions(support, 1, generator)[0].to(directions.unit)
            change = scatter(norm * unit, directions.kept, directions.parameters)
            kl, _ = before.after(model, _both(change), directions.parameters, rows, chunk)
            both = kl[:, kind][:, where].mean(2) / kl[:, kind][:, others].mean(1)[:, None]
            found[members, draw] = both.amax(0)
    return found


def predicted_kl(
    coefficients: Tensor,
    norms: Tensor,
    components: Tensor,
    changes: Tensor,
    *,
    kind: str = LOW_RANK,
) -> Tensor:
    """The divergence that a decomposition predicts, float64 `[S, n]`, nats.

    ``alpha_i sum_j W_ij delta^T H_j delta / 2`` with ``H_j = g_j g_j^T``, or ``diag(h_j)``.

    Args:
        coefficients: W ``[n, r]`` of a decomposition of normalised PEFs.
        norms: alpha, the norms that they were divided by, ``[n]``.
        components: G or H, ``[r, m']``, with the lengths that belong to W.
        changes: ``[S, m']`` on the kept parameters; what a change does elsewhere is not predicted.

    Source: document 3, equation 5.
    """
    n, r = coefficients.shape
    m = components.shape[-1]
    if components.shape != (r, m) or norms.shape != (n,) or changes.shape[1:] != (m,):
        raise ValueError(
            f"want W [n, r], norms [n], components [r, m'] and changes [S, m'], got "
            f"{tuple(coefficients.shape)}, {tuple(norms.shape)}, {tuple(components.shape)} and "
            f"{tuple(changes.shape)}"
        )
    if kind not in (LOW_RANK, DIAGONAL):
        raise ValueError(f"want kind {LOW_RANK!r} or {DIAGONAL!r}, got {kind!r}")
    d, h = changes.double(), components.double()
    squares = (d @ h.T).square() if kind == LOW_RANK else d.square() @ h.T
    return squares @ coefficients.double().T * norms.double() / 2


def norm_ratios(norms: Tensor, top: Tensor, baseline: Tensor) -> Tensor:
    """Mean PEF norm of each component's top examples over that of the baseline, float64 `[r]`.

    Source: document 3, section 3.1.2; specification 5.3.
    """
    if norms.ndim != 1 or not norms.isfinite().all() or not (norms >= 0).all():
        raise ValueError(f"want finite norms [n], not negative, got {tuple(norms.shape)}")
    top, baseline = (
        checked_rows(top, len(top), len(norms)),
        checked_rows(baseline[None], 1, len(norms))[0],
    )
    norms = norms.double().cpu()
    return norms[top].mean(1) / norms[baseline].mean()


@dataclass(frozen=True)
class Summary:
    """KL-ratios of components against the ratios of PEF norms and of random directions."""

    n: int  # components whose ratios are defined and finite
    n_undefined: int  # the others, left out
    median_kl: float
    median_norm: float
    median_random: float  # over components and draws


def summarise(kl: Tensor, norm: Tensor, random: Tensor) -> Summary:
    """Figure 3 in medians.

    Args:
        kl: KL-ratios ``[r]``, norm: PEF-norm ratios ``[r]``, random: ``[r, draws]``.

    Source: specification 5.4; the paper shows histograms and gives no numbers for them.
    """
    if norm.shape != kl.shape or random.shape[:1] != kl.shape or random.ndim != 2:
        raise ValueError(
            f"want ratios [r], [r] and [r, draws], got {tuple(kl.shape)}, {tuple(norm.shape)} and "
            f"{tuple(random.shape)}"
        )
    everything = torch.cat([kl[:, None], norm[:, None], random], 1).double()
    usable = (everything.isfinite() & (everything > 0)).all(1)
    if not usable.any():
        raise ValueError("no component has ratios that are finite and above 0; raise the norm")
    kl, norm, random = kl[usable], norm[usable], random[usable]
    return Summary(
        len(kl),
        int((~usable).sum()),
        float(kl.quantile(0.5)),
        float(norm.quantile(0.5)),
        float(random.flatten().quantile(0.5)),
    )


def _both(change: Tensor) -> Tensor:
    return torch.stack([change, -change])
