"""Feature attribution by one call: `attribute(method, model, x, target, baseline=...)`.

Document 4, recap of feature attribution: LIME, SHAP and the versions of the saliency map. The
methods are captum's; here they get what makes their results comparable:

* One explicit baseline, the input that stands for "nothing". Every method sees inputs as their
  difference from it, so that "input x gradient" is `(x - baseline) * gradient` for all.
* One shape. Maps have the shape of `x`; where a method scores groups of features (patches), each
  group's score is spread evenly over it, so that a sum over a region is the region's score.
* Seeds. What draws at random draws for each row from its own seed, whatever rows come with it.

Public names: `attribute`, `METHODS`, `RANDOMISED`, `Options`, `patches`, `outputs`, `CONTROLS`,
`control`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.features import Progress, evaluating

KERNEL_WIDTH = 0.25  # of LIME's weights, in cosine distance, as in its authors' code
RIDGE = 1.0  # of LIME's linear fit, as in its authors' code


@dataclass(frozen=True)
class Options:
    """What methods may be told; each reads what it knows."""

    groups: Tensor | None = None  # int64, shape of one input: group of each feature, from 0
    layer: str | None = None  # whose maps Grad-CAM weighs, a name in `model.named_modules()`
    n_steps: int = 50  # of the path of integrated gradients
    n_smooth: int = 25  # noisy copies of SmoothGrad
    noise: float = 0.15  # their sd, as a share of the range of |x - baseline| of the row
    n_samples: int = 256  # perturbed inputs of LIME, coalitions of KernelSHAP
    n_orders: int = 25  # of Shapley sampling
    chunk: int = 64  # rows a forward pass


class Centred(nn.Module):
    """`model(u + baseline)`: the model as a function of the difference from the baseline."""

    def __init__(self, model: nn.Module, baseline: Tensor) -> None:
        super().__init__()
        self.model, self.baseline = model, baseline

    def forward(self, u: Tensor) -> Tensor:
        return self.model(u + self.baseline)


Method = Callable[[Centred, Tensor, Tensor, Options], Tensor]


def attribute(
    method: str,
    model: nn.Module,
    x: Tensor,
    target: Tensor | int,
    *,
    baseline: Tensor | float,
    options: Options | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """What each feature of each row contributes to the output of a class, by a method of captum.

    Args:
        method: a key of `METHODS`.
        model: in evaluation mode here; maps `[n, ...]` to outputs `[n, k]` (logits).
        x: `[n, ...]`, float.
        target: the output to explain, one for all rows or int64 `[n]`.
        baseline: the input that stands for nothing: a number, or a tensor of the shape of a row.
        options: see `Options`; `groups` are what LIME and the SHAP methods score (default: every
            feature by itself), `layer` is needed by Grad-CAM alone.
        seed: of what is drawn; row i draws from `seed + i`.
        progress: wraps the range of rows or of chunks.

    Returns:
        Contributions of the shape of `x`, positive where a feature raises the output; units of
        the output (of the output a unit of `x` for gradient, SmoothGrad and guided
        backpropagation; Grad-CAM has none, and no negative values).

    Raises:
        ValueError: an unknown method, NaN in `x`, a target that the model does not have, a baseline
            or groups of another shape, guided backpropagation of a model without `nn.ReLU`
            modules, or Grad-CAM without a layer of maps.

    Source: document 4, recap, and the papers of the methods.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; known: {', '.join(METHODS)}")
    options = options or Options()
    base = _checked_baseline(x, baseline)
    wanted = _checked_target(model, x, target)
    _check_groups(x, options.groups)
    u, centred = (x - base).detach(), Centred(model, base)
    step = 1 if method in RANDOMISED else options.chunk
    starts = range(0, len(x), step)
    found = []
    with evaluating(model), warnings.catch_warnings(), torch.random.fork_rng(enabled=True):
        warnings.filterwarnings("ignore", module="captum")  # hooks set, gradients asked for
        for start in progress(starts) if progress else starts:
            torch.manual_seed(seed + start)
            rows = slice(start, start + step)
            found.append(METHODS[method](centred, u[rows], wanted[rows], options).detach())
    return torch.cat(found).to(x.dtype)


def patches(shape: tuple[int, ...], rows: int, columns: int) -> Tensor:
    """Number each pixel of an image by the patch it lies in: int64 of `shape` `(c, h, w)`.

    Patches are as equal as the sides allow; all channels of a pixel share one.
    """
    c, h, w = shape
    if not (1 <= rows <= h and 1 <= columns <= w):
        raise ValueError(f"an image of {h} x {w} has no {rows} x {columns} patches; ask for fewer")
    down, right = torch.arange(h) * rows // h, torch.arange(w) * columns // w
    return (down[:, None] * columns + right[None, :]).expand(c, h, w).contiguous()


@torch.no_grad()
def outputs(model: nn.Module, x: Tensor, target: Tensor | int, *, chunk: int = 256) -> Tensor:
    """The explained output of each row, `[n]`, in evaluation mode."""
    wanted = _checked_target(model, x, target)
    with evaluating(model):
        out = torch.cat([model(part) for part in x.split(chunk)])
    return out.gather(1, wanted[:, None])[:, 0]


# --- controls: what needs no explanation of a model


def control(name: str, x: Tensor, *, baseline: Tensor | float, seed: int = 0) -> Tensor:
    """A map `[n, ...]` that knows nothing of the model.

    Args:
        name: "random" (one uniform number a pixel), "input" (`|x - baseline|`) or "edges" (size of
            the Sobel gradient of images `[n, c, h, w]`, the channels' mean).

    Raises:
        ValueError: an unknown control, or edges of rows that are no images.
    """
    if name not in CONTROLS:
        raise ValueError(f"unknown control {name!r}; known: {', '.join(CONTROLS)}")
    if name == "edges" and x.ndim != 4:
        raise ValueError(f"an edge filter wants images [n, c, h, w], got {tuple(x.shape)}")
    if name == "random":
        return torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)
    u = x - _checked_baseline(x, baseline)
    return u.abs() if name == "input" else _sobel(u).expand_as(x)


def _sobel(u: Tensor) -> Tensor:
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    kernels = torch.stack([across, across.T])[:, None].to(u)
    grey = F.pad(u.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    return F.conv2d(grey, kernels).norm(dim=1, keepdim=True)


# --- captum's methods, in coordinates where the baseline is zero


def _gradient(model: Centred, u: Tensor, target: Tensor, options: Options) -> Tensor:
    from captum.attr import Saliency

    return Saliency(model).attribute(u, target=target, abs=False)


def _input_x_gradient(model: Centred, u: Tensor, target: Tensor, options: Options) -> Tensor:
    from captum.attr import InputXGradient

    return InputXGradient(model).attribute(u, target=target)


def _smoothgrad(model: Centred, u: Tensor, target: Tensor, options: Options) -> Tensor:
    from captum.attr import NoiseTunnel, Saliency

    return NoiseTunnel(Saliency(model)).attribute(
        u,
        nt_type="smoothgrad",
        nt_samples=options.n_smooth,
        nt_samples_batch_size=min(options.n_smooth, options.chunk),
        stdevs=options.noise * (u.max() - u.min()).item(),
        target=target,
        abs=False,
    )


def _guided(model: Centred, u: Tensor, target: Tensor, options: Options) -> Tensor:
    from captum.attr import GuidedBackprop

    if not any(isinstance(m, nn.ReLU) for m in model.modules()):
        raise ValueError(
            "guided backpropagation changes the gradient of nn.ReLU modules and this model has "
            "none, so it would be the plain gradient; write its activations as nn.ReLU"
        )
    return GuidedBackprop(model).attribute(u, target=target)


def _grad_cam(model: Centred, u: Tensor, target: Tensor, options: Options) -> Tensor:
    from captum.attr import LayerAttribution, LayerGradCam

    layers = dict(model.model.named_modules())
    if options.layer not in layers or u.ndim != 4:
        known = ", ".join(name for name in layers if name)
        raise ValueError(
            f"Grad-CAM wants images [n, c, h, w] and a layer of maps, got x with {u.ndim} axes and "
            f"layer {options.layer!r}; the model has {known}"
        )
    cam = LayerGradCam(model, layers[options.layer]).attribute(
        u, target=target, relu_attributions=True
    )
    if cam.ndim != 4:
        raise ValueError(f"layer {options.layer!r} has no maps [n, c, h, w]; name an earlier one")
    large = LayerAttribution.interpolate(cam, tuple(u.shape[2:]), interpolate_mode="bilinear")
    return (large / u.shape[1]).expand_as(u)


def _integrated(model: Centred, u: Tensor, target: Tensor, options: Options) -> Tensor:
    from captum.attr import IntegratedGradients

    return IntegratedGradients(model).attribute(
        u, target=target, n_steps=options.n_steps, internal_batch_size=options.chunk
    )


def _lime(model: Centred, u: Tensor, target: Tensor, options: Options) -> Tensor:
    from captum._utils.models.linear_model import SkLearnRidge
    from captum.attr import Lime

    explainer = Lime(
        model, interpretable_model=SkLearnRidge(alpha=RIDGE), similarity_func=_lime_weight
    )
    return _spread(explainer, u, target, options, n_samples=options.n_samples)


def _lime_weight(original: Tensor, perturbed: Tensor, kept: Tensor, **_: object) -> float:
    """Weight of a sample by the cosine distance of the groups it keeps from all of them."""
    distance = 1 - kept.float().mean().sqrt().item()
    return float(torch.tensor(-((distance / KERNEL_WIDTH) ** 2) / 2).exp())


def _kernel_shap(model: Centred, u: Tensor, target: Tensor, options: Options) -> Tensor:
    from captum.attr import KernelShap

    return _spread(KernelShap(model), u, target, options, n_samples=options.n_samples)


def _shapley_sampling(model: Centred, u: Tensor, target: Tensor, options: Options) -> Tensor:
    from captum.attr import ShapleyValueSampling

    return _spread(ShapleyValueSampling(model), u, target, options, n_samples=options.n_orders)


def _spread(
    explainer: object, u: Tensor, target: Tensor, options: Options, *, n_samples: int
) -> Tensor:
    """Scores of groups, each divided by the size of its group."""
    groups = _groups(u, options.groups)
    scores = explainer.attribute(  # type: ignore[attr-defined]
        u,
        baselines=0,
        target=target,
        feature_mask=groups[None],
        n_samples=n_samples,
        perturbations_per_eval=options.chunk,
    )
    return scores / torch.bincount(groups.flatten())[groups]


def _groups(u: Tensor, groups: Tensor | None) -> Tensor:
    own = torch.arange(u[0].numel()).reshape(u.shape[1:])
    return (own if groups is None else groups).to(u.device)


METHODS: dict[str, Method] = {
    "gradient": _gradient,
    "input x gradient": _input_x_gradient,
    "SmoothGrad": _smoothgrad,
    "guided backpropagation": _guided,
    "Grad-CAM": _grad_cam,
    "integrated gradients": _integrated,
    "LIME": _lime,
    "KernelSHAP": _kernel_shap,
    "Shapley sampling": _shapley_sampling,
}
RANDOMISED = ("SmoothGrad", "LIME", "KernelSHAP", "Shapley sampling")
CONTROLS = ("random", "input", "edges")


# --- what is refused


def _checked_baseline(x: Tensor, baseline: Tensor | float) -> Tensor:
    if not x.is_floating_point() or x.ndim < 2 or len(x) == 0:
        raise ValueError(f"want x [n, ...], float, n >= 1; got {tuple(x.shape)} {x.dtype}")
    if not torch.isfinite(x).all():
        bad = int((~torch.isfinite(x.flatten(1))).any(1).nonzero()[0])
        raise ValueError(f"x holds NaN or infinity, first in row {bad}; clean or drop such rows")
    base = torch.as_tensor(baseline, dtype=x.dtype, device=x.device)
    if base.ndim and base.shape != x.shape[1:]:
        raise ValueError(
            f"want a baseline of one number or of the shape {tuple(x.shape[1:])} of a row, got "
            f"{tuple(base.shape)}; explain rows with other baselines in calls of their own"
        )
    return base


def _checked_target(model: nn.Module, x: Tensor, target: Tensor | int) -> Tensor:
    wanted = torch.as_tensor(target, device=x.device)
    wanted = wanted.expand(len(x)) if wanted.ndim == 0 else wanted
    with torch.no_grad(), evaluating(model):
        n_out = model(x[:1]).shape[-1]
    if wanted.shape != (len(x),) or wanted.is_floating_point():
        raise ValueError(
            f"want one target for all rows or int64 [{len(x)}], got {tuple(wanted.shape)} "
            f"{wanted.dtype}"
        )
    if wanted.min() < 0 or wanted.max() >= n_out:
        raise ValueError(
            f"the model has the outputs 0..{n_out - 1}, got targets {int(wanted.min())}.."
            f"{int(wanted.max())}; name a class that it knows"
        )
    return wanted.long()


def _check_groups(x: Tensor, groups: Tensor | None) -> None:
    if groups is None:
        return
    if groups.shape != x.shape[1:] or groups.is_floating_point():
        raise ValueError(
            f"want groups int64 of the shape {tuple(x.shape[1:])} of a row, got "
            f"{tuple(groups.shape)} {groups.dtype}"
        )
    if not torch.equal(groups.unique(), torch.arange(int(groups.max()) + 1).to(groups)):
        raise ValueError("groups are numbered 0, 1, ... without gaps; renumber them")
