"""MobileNetV2 without batch norm: the folded network computes what the published one does."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2

from lib import mobilenet, models, training


def published(n_out: int = 1000) -> nn.Module:
    """torchvision's network with drawn weights and statistics; stride 2 pads below and right."""
    generator = torch.Generator().manual_seed(0)
    model = models.initialise(mobilenet_v2(weights=None, num_classes=n_out), generator)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.3, generator=generator)
        if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
            module.padding = (0, 0)
            module.register_forward_pre_hook(
                lambda _, inputs: (nn.functional.pad(inputs[0], (0, 1, 0, 1)),)
            )
    return model.eval()


def test_folding_changes_no_output() -> None:
    whole = published()
    ours = training.network_of("mobilenet_v2", {"n_out": 1000}, mobilenet.folded(whole))
    x = torch.rand(2, 3, 96, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        want = whole(x)
        # float32 through 52 layers whose products are taken in another order
        torch.testing.assert_close(ours(x), want, rtol=1e-3, atol=1e-3 * float(want.abs().max()))
        inner = nn.Sequential(*list(ours.features)[:8])(x)
        torch.testing.assert_close(inner, whole.features[:8](x), rtol=1e-3, atol=1e-3)


def test_layers_carry_the_published_names() -> None:
    ours = dict(models.build("mobilenet_v2", torch.Generator().manual_seed(0)).named_modules())
    whole = dict(mobilenet_v2(weights=None).named_modules())
    for name in ("features.0", "features.7", "features.14.conv.0", "features.18"):
        assert name in ours
        assert name in whole
    assert not any(isinstance(m, nn.BatchNorm2d) for m in ours.values())
    # a bias each in place of two numbers a batch norm
    norms = sum(m.num_features for m in whole.values() if isinstance(m, nn.BatchNorm2d))
    assert models.n_parameters(ours[""]) == models.n_parameters(whole[""]) - norms == 3_487_816


def test_a_new_head_keeps_all_other_layers() -> None:
    state = mobilenet.folded(published(7))
    generator = torch.Generator().manual_seed(2)
    fresh = training.with_new_head(
        "mobilenet_v2", {"n_out": 3}, state, head="classifier", generator=generator
    )
    assert fresh["classifier.weight"].shape == (3, 1280)
    assert all(fresh[k].equal(v) for k, v in state.items() if not k.startswith("classifier"))


def test_other_networks_and_sides_are_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="want a MobileNetV2 of 52 convolutions"):
        mobilenet.folded(models.build("resnet20", generator))
    ours = models.build("mobilenet_v2", generator, n_out=2)
    with pytest.raises(ValueError, match="sides that 32 divides"):
        ours(torch.zeros(1, 3, 112, 112))
