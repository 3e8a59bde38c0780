"""Published image-text models: found, refused or named as missing, never downloaded."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import open_clip
import pytest
import torch

from lib.data.base import DamagedData, MissingData
from lib.monitoring import encoder_pretrained

SMALL = {
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 16,
        "heads": 2,
        "layers": 1,
    },
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that open_clip knows by name, and its weights in a file."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "tiny-test.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model("tiny-test")
    torch.save(model.state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def test_a_local_file_gives_the_models_own_embeddings(small: Path) -> None:
    found = encoder_pretrained.fetch("tiny-test", small)
    model = open_clip.create_model("tiny-test")
    open_clip.load_checkpoint(model, str(small))
    tokens = open_clip.get_tokenizer("tiny-test")(["cat", "windmill"])
    wanted = model.eval().encode_text(tokens, normalize=True)
    torch.testing.assert_close(found.words(["cat", "windmill"]), wanted.detach())
    images = torch.randint(0, 256, (3, 40, 64, 3), dtype=torch.uint8)
    torch.testing.assert_close(found.images(images).norm(dim=1), torch.ones(3))
    assert found.name == "tiny-test (weights.pt)"
    assert found.digest == encoder_pretrained.fetch("tiny-test", small).digest


def test_images_are_made_square_and_standardised() -> None:
    prepare = encoder_pretrained._preparer(32, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    grey = torch.full((2, 40, 64, 3), 255, dtype=torch.uint8)
    grey[:, :, :8] = grey[:, :, -8:] = 0  # outside of the central square
    x = prepare(grey)
    assert x.shape == (2, 3, 32, 32)
    torch.testing.assert_close(x[:, :, :, 4:-4], torch.full((2, 3, 32, 24), 2.0))


def test_openai_weights_need_the_model_with_quickgelu() -> None:
    with pytest.raises(ValueError, match=r"QuickGELU.*ask for ViT-B-16-quickgelu"):
        encoder_pretrained.fetch("ViT-B-16", "openai")


def test_unknown_names_and_tags_are_refused() -> None:
    with pytest.raises(ValueError, match="no model 'ViT-Z'"):
        encoder_pretrained.fetch("ViT-Z")
    with pytest.raises(ValueError, match="no weights 'mine' for ViT-B-16-quickgelu"):
        encoder_pretrained.fetch("ViT-B-16-quickgelu", "mine")


def test_absent_weights_are_named_with_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *a, **k: None)
    with pytest.raises(MissingData) as caught:
        encoder_pretrained.fetch()
    text = str(caught.value)
    for part in ("ViT-B-16-quickgelu (openai)", "600 MB", "licence: MIT", "open_clip.create_model"):
        assert part in text
    assert "\n" not in text
    with pytest.raises(MissingData, match="give the path"):
        encoder_pretrained.fetch("tiny-test", tmp_path / "none.pt")


def test_a_file_of_another_kind_is_refused(small: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.pt").write_bytes(b"not weights")
    with pytest.raises(DamagedData, match="does not hold the weights of tiny-test"):
        encoder_pretrained.fetch("tiny-test", tmp_path / "bad.pt")
    torch.save({"other": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(DamagedData, match="does not hold the weights"):
        encoder_pretrained.fetch("tiny-test", tmp_path / "other.pt")


def test_without_open_clip_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(ImportError, match="open_clip_torch"):
        encoder_pretrained.fetch()
