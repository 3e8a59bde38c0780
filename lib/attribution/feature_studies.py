"""What notebook 47 computes of maps: every method, and something to judge it by.

Document 4, recap of feature attribution. `prepare` gathers maps of every method for some images of
a classifier, and what they are judged by; `known_answer_study` does so where the answer is
planted. Changes and concepts are in `feature_contrasts`. Everything slow goes through the cache,
method by method.

Public names: `prepare`, `Study`, `known_answer_study`, `Known`, `interval`, `GRADIENT_MAPS`,
`SALIENCY`, `IN_OUTPUT_UNITS`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from lib import bootstrap, cache, probes
from lib.attribution import (
    coalitions,
    feature_axioms,
    feature_checks,
    feature_subjects,
    known_answer,
)
from lib.attribution import feature_methods as methods
from lib.attribution.feature_subjects import Asked, Code, Subject
from lib.config import Run
from lib.training.loop import Progress

GRADIENT_MAPS = ("gradient", "input x gradient", "SmoothGrad", "guided backpropagation")
SALIENCY = (*GRADIENT_MAPS, "Grad-CAM")
IN_OUTPUT_UNITS = (
    "input x gradient",
    "integrated gradients",
    "LIME",
    "KernelSHAP",
    "Shapley sampling",
)
# methods of the sanity check
CHECKED = (
    "gradient",
    "input x gradient",
    "guided backpropagation",
    "Grad-CAM",
    "integrated gradients",
)
SENSITIVE = ("gradient", "SmoothGrad", "integrated gradients", "Grad-CAM")
N_FEW = 8  # rows of the study of sample sizes
KNOWN_PATCHES = 4  # a side, of the 16x16 images
NOISE = 0.02  # of the stability study, a share of the pixel range

Maps = dict[str, Tensor]


def interval(values: Tensor, *, seed: int = 0, median: bool = False) -> tuple[float, float]:
    """Mean or median of some rows, and half of its 95% bootstrap interval over them."""
    generator = torch.Generator().manual_seed(seed)
    values = values.double().cpu()
    if median:
        low, high = bootstrap.interval(
            lambda rows: values[rows].median(1).values,
            len(values),
            generator=generator,
            n_draws=2000,
        )
        return values.median().item(), (high - low).item() / 2
    low, high = probes.bootstrap_interval(values, generator=generator)
    return values.mean().item(), (high - low).item() / 2


# --- a classifier


@dataclass(frozen=True)
class Study:
    """Maps of every method for the images of a classifier, with what judges them."""

    subject: Subject
    maps: Maps  # method -> [n, c, h, w]
    controls: Maps
    rise: Tensor  # [n] output minus that of the baseline
    exact: Tensor  # [n, 9] Shapley values of the patches
    gap_by_steps: Mapping[int, Tensor]  # steps of integrated gradients -> completeness gap, [n]
    distance_by_samples: Mapping[str, Mapping[int, Tensor]]  # method -> coalitions -> [few]
    stability: Mapping[str, Tensor]  # method -> [n]
    curves: Mapping[str, feature_checks.Curves]  # method or control -> curves
    sanity: feature_checks.Sanity

    @cached_property
    def of_patches(self) -> Maps:
        """Method or control -> sums over the patches, `[n, 9]`."""
        both = {**self.maps, **self.controls}
        groups = self.subject.groups
        return {name: coalitions.group_sums(m, groups).double() for name, m in both.items()}

    def distance(self, method: str) -> Tensor:
        """Of a method's patch sums from the Shapley values, over their length, `[n]`."""
        return (self.of_patches[method] - self.exact).norm(dim=1) / self.exact.norm(dim=1)

    def order(self, method: str) -> Tensor:
        """Rank correlation with the Shapley values over the patches, signs counted, `[n]`."""
        return feature_checks.rank_correlation(self.of_patches[method], self.exact, signed=True)

    def completeness(self, method: str) -> Tensor:
        """Relative gap of a method's sum from the rise of the output, `[n]`."""
        return feature_axioms.completeness_gap(self.maps[method], self.rise)


def prepare(run: Run, progress: Progress | None = None) -> Study:
    """Explain the images of `run.size.data` by every method, and judge the maps.

    Raises:
        MissingData: real data that are not below DATA_ROOT.
    """
    subject, size, seed = feature_subjects.load(run), run.size, run.seed
    maps = {name: _maps(name, subject, subject.options, seed, progress) for name in methods.METHODS}
    controls = {
        name: methods.control(name, subject.x, baseline=subject.baseline, seed=seed)
        for name in methods.CONTROLS
    }
    steps = {k: replace(subject.options, n_steps=k) for k in size.n_steps_grid}
    rise = _rise(subject)
    return Study(
        subject,
        maps,
        controls,
        rise,
        _exact(subject),
        {
            k: feature_axioms.completeness_gap(
                _maps("integrated gradients", subject, options, seed, progress), rise
            )
            for k, options in steps.items()
        },
        _by_samples(subject, size.n_samples_grid, seed, progress),
        {name: _stability(name, subject, seed, progress) for name in SENSITIVE},
        _curves(subject, {**maps, **controls}, size.n_curve),
        _sanity(subject, size.sanity_steps, seed, progress),
    )


def _rise(subject: Subject) -> Tensor:
    nothing = torch.full_like(subject.x[:1], subject.baseline)
    before = torch.cat([methods.outputs(subject.model, nothing, int(y)) for y in subject.y])
    chunk = subject.options.chunk
    return methods.outputs(subject.model, subject.x, subject.y, chunk=chunk) - before


def _key(subject: Asked, **more: object) -> dict[str, object]:
    """What a result of a subject depends on."""
    options = {k: v for k, v in asdict(subject.options).items() if not isinstance(v, Tensor)}
    return {
        "network": subject.network,
        "model": cache.state_hash(subject.model.state_dict()),
        "x": cache.state_hash({"x": subject.x, "y": subject.y, "groups": subject.groups}),
        "baseline": subject.baseline,
        "options": options,
        **more,
    }


def _maps(
    name: str,
    subject: Asked,
    options: methods.Options,
    seed: int,
    progress: Progress | None,
    sd: float = 0.0,
) -> Tensor:
    """Maps of one method by the cache, with noise of `sd` on the images."""

    def build() -> dict[str, Tensor]:
        noise = torch.randn(subject.x.shape, generator=torch.Generator().manual_seed(seed))
        x = subject.x + sd * noise.to(subject.x)
        base = subject.baseline
        found = methods.attribute(
            name,
            subject.model,
            x,
            subject.y,
            baseline=base,
            options=options,
            seed=seed,
            progress=progress,
        )
        return {"maps": found}

    config = _key(replace(subject, options=options), method=name, seed=seed, sd=sd)
    code: Code = [methods.attribute, methods.METHODS[name]]
    return cache.fetch("maps", config, build, code=code)["maps"].to(subject.x.device)


def _exact(subject: Subject) -> Tensor:
    def build() -> dict[str, Tensor]:
        values = coalitions.exact_shapley(
            subject.model,
            subject.x,
            subject.y,
            baseline=subject.baseline,
            groups=subject.groups,
            chunk=subject.options.chunk,
        )
        return {"values": values}

    return cache.fetch("shapley", _key(subject), build, code=[coalitions.exact_shapley])["values"]


def _by_samples(
    subject: Subject, grid: Sequence[int], seed: int, progress: Progress | None
) -> dict[str, dict[int, Tensor]]:
    """Distance of two estimates from the exact values, by coalitions evaluated, of a few rows."""
    few = replace(subject, x=subject.x[:N_FEW], y=subject.y[:N_FEW])
    exact = _exact(subject)[:N_FEW]
    found: dict[str, dict[int, Tensor]] = {"KernelSHAP": {}, "Shapley sampling": {}}
    for n in grid:
        # an order of d features takes d evaluations
        options = replace(subject.options, n_samples=n, n_orders=max(1, n // exact.shape[1]))
        for name, distances in found.items():
            maps = _maps(name, few, options, seed, progress)
            sums = coalitions.group_sums(maps, subject.groups).double()
            distances[n] = (sums - exact).norm(dim=1) / exact.norm(dim=1)
    return found


def _stability(name: str, subject: Subject, seed: int, progress: Progress | None) -> Tensor:
    sd = NOISE * (subject.high - subject.low)
    noise = torch.randn(subject.x.shape, generator=torch.Generator().manual_seed(seed))
    near = subject.x + sd * noise.to(subject.x)
    before = _maps(name, subject, subject.options, seed, progress)
    after = _maps(name, subject, subject.options, seed, progress, sd)
    chunk = subject.options.chunk
    outputs = [methods.outputs(subject.model, x, subject.y, chunk=chunk) for x in (subject.x, near)]
    return feature_axioms.sensitivity(before, after, outputs[1] - outputs[0], _rise(subject))


def _curves(subject: Subject, maps: Maps, n_steps: int) -> dict[str, feature_checks.Curves]:
    found = {}
    for name, m in maps.items():

        def build(m: Tensor = m) -> dict[str, Tensor]:
            curves = feature_checks.perturbation_curves(
                subject.model,
                subject.x,
                subject.y,
                m,
                baseline=subject.baseline,
                n_steps=n_steps,
                chunk=subject.options.chunk,
            )
            return asdict(curves)

        config = _key(subject, maps=cache.state_hash({"maps": m}), n_steps=n_steps)
        code = [feature_checks.perturbation_curves]
        found[name] = feature_checks.Curves(**cache.fetch("curves", config, build, code=code))
    return found


def _sanity(
    subject: Subject, n_steps: int, seed: int, progress: Progress | None
) -> feature_checks.Sanity:
    options = replace(subject.options, n_steps=n_steps)

    def explain(model: nn.Module) -> Maps:
        forgot = replace(subject, model=model)
        return {name: _maps(name, forgot, options, seed, None) for name in CHECKED}

    return feature_checks.cascade(
        subject.model, subject.x, explain, layers=subject.stages, seed=seed, progress=progress
    )


# --- images with a known answer


@dataclass(frozen=True)
class Known:
    """Localisation of every method on images whose answer is planted."""

    rows: known_answer.Planted
    maps: Mapping[str, Maps]  # network -> method -> maps; the controls under "no network"
    auc: Mapping[str, Mapping[str, Tensor]]  # network -> method or control -> [n]
    accuracy: float  # of the trained network
    kept: float  # its predictions that stay when all but the glyph is replaced

    def above_edges(self, name: str, network: str = "trained") -> Tensor:
        """Localisation minus that of the edge filter, image by image, `[n]`."""
        return self.auc[network][name] - self.auc["no network"]["edges"]


def known_answer_study(run: Run, progress: Progress | None = None) -> Known:
    """Explain the built and the trained network of `known_answer` by every method."""
    size, seed = run.size.known, run.seed
    rows = known_answer.draw(size["n_images"], torch.Generator().manual_seed(seed + 1000))
    fresh = known_answer.draw(400, torch.Generator().manual_seed(seed + 2000))
    networks = {
        "built": known_answer.GlyphNetwork().eval(),
        "trained": known_answer.trained(size["n_train"], seed=seed),
    }
    layers = {"built": "pool", "trained": "conv2"}
    shape = (1, known_answer.SIDE, known_answer.SIDE)
    maps: dict[str, Maps] = {}
    for network, model in networks.items():
        options = methods.Options(
            groups=methods.patches(shape, KNOWN_PATCHES, KNOWN_PATCHES),
            layer=layers[network],
            n_steps=run.size.n_steps,
            n_smooth=run.size.n_smooth,
            n_samples=run.size.n_samples,
            n_orders=run.size.n_orders,
            chunk=256,
        )
        asked = Asked(f"planted, {network}", model, rows.x, rows.y, 0.0, options)
        maps[network] = {
            name: _maps(name, asked, options, seed, progress) for name in methods.METHODS
        }
    maps["no network"] = {
        name: methods.control(name, rows.x, baseline=0.0, seed=seed) for name in methods.CONTROLS
    }
    return Known(
        rows,
        maps,
        {
            network: {name: known_answer.localisation(m, rows.mask) for name, m in found.items()}
            for network, found in maps.items()
        },
        (networks["trained"](fresh.x).argmax(1) == fresh.y).double().mean().item(),
        known_answer.kept_without_rest(
            networks["trained"], fresh, torch.Generator().manual_seed(seed)
        ),
    )
