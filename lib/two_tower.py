"""An image-text model of two towers: open_clip's own class, small, and its contrastive training.

Images and captions are embedded on one sphere; a batch is a classification of each image among the
batch's captions and of each caption among its images. Networks train in stacks (`torch.func.vmap`
over stacked weights), each with its own weights, rows and order of them, drawn from its own seed.

Attribution needs an output for every pair. `InBatch` gives it as a network of one argument, the
pair's row: its logits against a simulated batch of embeddings that were computed before and are
held fixed; `contrastive` and `margin` read an output from them.

Source: document 4, applications of TRAK: CLIP; specification section 7.3.

Public names: `build`, `train_stacked`, `embed_stacked`, `unstack`, `Embedded`, `InBatch`,
`contrastive`, `margin`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lib.training.loop import Progress, Recipe, optimise

Stack = Mapping[str, Tensor]  # each tensor of a network's state with a leading axis
FIRST_SCALE = math.log(1 / 0.07)  # of the class: its logarithm of the inverse temperature
WEIGHT_SD, POSITION_SD = 0.02, 0.01  # of the class: word and position embeddings


def build(spec: Mapping[str, int], generator: torch.Generator) -> nn.Module:
    """open_clip's `CLIP` with every weight drawn from `generator`, in training mode.

    Args:
        spec: `image_size`, `patch` (side of a patch), `n_words`, `length` (of a caption), `width`,
            `heads`, `layers` (both towers), `embed` (dimension of the joint embedding).

    Raises:
        ImportError: open_clip is not installed.
    """
    try:
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    except ImportError as error:
        raise ImportError(
            "the two-tower model needs the package open_clip_torch of requirements.txt; fact "
            "tracing and the image galleries work without it"
        ) from error
    vision = CLIPVisionCfg(
        layers=spec["layers"],
        width=spec["width"],
        head_width=spec["width"] // spec["heads"],
        patch_size=spec["patch"],
        image_size=spec["image_size"],
        mlp_ratio=2.0,
    )
    text = CLIPTextCfg(
        context_length=spec["length"],
        vocab_size=spec["n_words"],
        width=spec["width"],
        heads=spec["heads"],
        layers=spec["layers"],
        mlp_ratio=2.0,
    )
    with torch.random.fork_rng(devices=[]):  # its constructor draws weights of its own
        model = CLIP(spec["embed"], vision, text, nonscalar_logit_scale=True)
    return _initialise(model, generator)


@torch.no_grad()
def _initialise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw all weights: normalised layers at one, matrices by their fan-in, embeddings small."""
    normal = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    for name, weight in model.named_parameters():
        last = name.rpartition(".")[2]
        if name in normal:
            weight.fill_(1.0)
        elif last == "logit_scale":
            weight.fill_(FIRST_SCALE)
        elif last.endswith("bias"):
            weight.zero_()
        elif "embedding" in name:
            sd = WEIGHT_SD if last == "weight" else POSITION_SD
            weight.normal_(0.0, sd, generator=generator)
        else:  # matrices; `proj` and `text_projection` have their inputs first
            fan_in = len(weight) if last in ("proj", "text_projection") else weight[0].numel()
            weight.normal_(0.0, fan_in**-0.5, generator=generator)
    return model


def train_stacked(
    spec: Mapping[str, int],
    images: Tensor,
    texts: Tensor,
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    subsets: Tensor,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """Train one network a seed, all at once, by the contrastive loss of its minibatches.

    Args:
        images: `[n, 3, side, side]`, texts: `[n, length]`, shared by all networks.
        recipe: its loss and augmentation are not used.
        seeds: N seeds; subsets: row indices `[N, m]`, network k trains on `subsets[k]`.
        progress: wraps the range of epochs.

    Returns:
        The stacked state.

    Raises:
        ValueError: shapes that disagree, rows out of range, or a loss that is not finite.
    """
    if len(images) != len(texts) or subsets.ndim != 2 or len(subsets) != len(seeds):
        raise ValueError(
            f"want as many images as texts and subsets [N, m] for N = {len(seeds)} seeds, got "
            f"{len(images)}, {len(texts)} and {list(subsets.shape)}"
        )
    if subsets.min() < 0 or subsets.max() >= len(images):
        raise ValueError(
            f"subsets index {len(images)} pairs, got {int(subsets.min())}..{int(subsets.max())}"
        )
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    members = [build(spec, generator) for generator in generators]
    parameters, buffers = stack_module_state(members)
    skeleton = copy.deepcopy(members[0]).to("meta")

    def loss_of(rows: Tensor) -> Tensor:
        flat = rows.reshape(-1)
        x = images.index_select(0, flat).unflatten(0, rows.shape)
        t = texts.index_select(0, flat).unflatten(0, rows.shape)
        a, b, scale = _stacked(skeleton, parameters, buffers, x, t)
        logits = scale[..., None] * a @ b.mT  # [N, images, texts]
        right = logits.diagonal(dim1=1, dim2=2)
        return (0.5 * (logits.logsumexp(1) + logits.logsumexp(2)) - right).mean(1).sum()

    def batches() -> Iterator[Tensor]:
        order = torch.stack([torch.randperm(subsets.shape[1], generator=g) for g in generators])
        yield from subsets.gather(1, order).split(recipe.batch_size, dim=1)

    optimise(list(parameters.values()), subsets.shape[1], recipe, batches, loss_of, progress)
    return {k: v.detach() for k, v in parameters.items()}


@torch.no_grad()
def embed_stacked(
    spec: Mapping[str, int], state: Stack, images: Tensor, texts: Tensor
) -> tuple[Tensor, Tensor]:
    """Unit embeddings of the same pairs by every network: two `[N, n, d]`."""
    n = len(next(iter(state.values())))
    model = build(spec, torch.Generator().manual_seed(0))
    buffers = {k: v.expand(n, *v.shape) for k, v in model.named_buffers()}
    x, t = (rows.expand(n, *rows.shape) for rows in (images, texts))
    a, b, _ = _stacked(model.to("meta"), dict(state), buffers, x, t)
    return a, b


def _stacked(
    skeleton: nn.Module, parameters: Stack, buffers: Stack, images: Tensor, texts: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit embeddings `[N, b, d]` of each network's own pairs, and scales `[N, 1]`."""

    def one(
        weights: dict[str, Tensor], fixed: dict[str, Tensor], x: Tensor, t: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return functional_call(skeleton, (weights, fixed), (x, t))

    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels know no axis of networks
        return vmap(one)(dict(parameters), dict(buffers), images, texts)


def unstack(spec: Mapping[str, int], state: Stack, index: int) -> nn.Module:
    """Network `index` of a stack as a module of its own, in evaluation mode."""
    model = build(spec, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(state[name][index])
    return model.eval()


class Embedded(nn.Module):
    """A two-tower model as a function of a pair's row: embeddings `[b, 2, d]` of rows `[b]`."""

    images: Tensor
    texts: Tensor

    def __init__(self, clip: nn.Module, images: Tensor, texts: Tensor) -> None:
        super().__init__()
        self.clip = clip
        self.register_buffer("images", images)
        self.register_buffer("texts", texts)

    def forward(self, rows: Tensor) -> Tensor:
        return self.embed(rows)[0]

    def embed(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings, and the scale of similarities `[1]`."""
        with sdpa_kernel(SDPBackend.MATH):
            image, text, scale = self.clip(self.images[rows], self.texts[rows])
        return torch.stack([image, text], dim=-2), scale


class InBatch(Embedded):
    """Logits of a pair against a simulated batch, `[b, 2, 1 + B]`: the pair's own come first.

    The first row of logits has the pair's image against the batch's texts, the second its text
    against the batch's images. Embeddings of the batch are constants. A pair that is part of the
    batch does not meet itself there.
    """

    batch: Tensor
    fixed: Tensor

    def __init__(self, clip: nn.Module, images: Tensor, texts: Tensor, batch: Tensor) -> None:
        """Embed the batch, row indices `[B]`, with the model as it is."""
        super().__init__(clip, images, texts)
        self.register_buffer("batch", batch)
        with torch.no_grad():
            self.register_buffer("fixed", super().forward(batch))

    def forward(self, rows: Tensor) -> Tensor:
        pair, scale = self.embed(rows)  # [b, 2, d]
        own = (pair[:, 0] * pair[:, 1]).sum(-1)[:, None, None].expand(-1, 2, 1)
        others = torch.einsum("bsd,Bsd->bsB", pair, self.fixed.flip(1))
        logits = scale * torch.cat([own, others], dim=-1)
        itself = F.pad(rows[:, None] == self.batch, (1, 0))[:, None]
        return logits.masked_fill(itself, -torch.inf)


def contrastive(out: Tensor) -> Tensor:
    """The output of a pair: log-probabilities of its text and of its image, added.

    Args:
        out: logits of `InBatch`, `[..., 2, 1 + B]`.

    Source: specification section 7.3: -log(1 + sum over the batch of exp(sim(z, z') - sim(z, z))),
    image to text plus text to image; similarities are scaled as in training. Training minimises
    half of its negative.
    """
    return out.log_softmax(-1)[..., 0].sum(-1)


def margin(out: Tensor) -> Tensor:
    """The other output of a pair: its margins over the batch, from image and from text, added.

    Args:
        out: logits of `InBatch`, `[..., 2, 1 + B]`, with at least one pair besides its own.

    Source: specification section 1's margin, log(p / (1 - p)), in both directions. It is
    `contrastive` without the 1 in its logarithm, as the published software has it; there
    similarities are not scaled, here they are, as in training.
    """
    return (out[..., 0] - out[..., 1:].logsumexp(-1)).sum(-1)
