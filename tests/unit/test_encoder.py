"""The small image-text encoder: its tokens, its loss, its file, and how it is judged."""

from __future__ import annotations

import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from lib.data import scenes
from lib.data.annotations import Annotations, Concept
from lib.data.scenes.vocabulary import value
from lib.monitoring import encoder, encoder_floors, encoder_training
from lib.monitoring.encoder_training import Settings, Tokens

TINY = Settings(n_pairs=64, steps=2, batch_size=16, embed=16, width=16, heads=2, layers=1)


@pytest.fixture(scope="module")
def tiny() -> encoder.Encoder:
    state = encoder_training.train(TINY, 0)
    return encoder._encoder(TINY, state, encoder.digest_of(TINY, 0))


def test_tokens_are_open_clips_numbered_by_rank() -> None:
    from open_clip.tokenizer import SimpleTokenizer

    texts = scenes.make(200, 3).captions
    ours, theirs = Tokens(48)(texts), SimpleTokenizer()(list(texts), 48)
    ids = encoder_training.compact_ids()
    assert len(ids) < 110
    for mine, other, text in zip(ours, theirs, texts, strict=True):
        n = int(mine.argmax()) + 1  # the end has the largest number
        assert [ids[k] for k in mine[:n].tolist()] == other[:n].tolist(), text
        assert int(other.argmax()) + 1 == n


def test_cutting_padding_away_leaves_the_embeddings_as_they_are() -> None:
    model = encoder_training.build(TINY, torch.Generator().manual_seed(1))
    rows = Tokens(TINY.length)(["roof", "a photo of a red striped boat in a harbour", "red"])
    wanted = F.normalize(model.encode_text(rows), dim=-1)
    torch.testing.assert_close(encoder_training.encode_texts(model, rows), wanted)


def test_a_short_caption_belongs_to_every_image_that_shows_all_its_words() -> None:
    red, boat = value("red"), value("boat")
    short = torch.tensor([[red, 0], [red, boat], [0, 0], [boat, 0]])
    visible = torch.zeros(4, 74, dtype=torch.bool)
    visible[0, red - 1] = visible[1, [red - 1, boat - 1]] = visible[3, boat - 1] = True
    found = encoder_training.positives(short, visible)
    assert found.tolist() == [[1, 0, 0, 0], [1, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1]]


def test_the_loss_is_the_ordinary_one_when_each_caption_has_one_image() -> None:
    s = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    right = torch.arange(5)
    wanted = 0.5 * (F.cross_entropy(s, right) + F.cross_entropy(s.T, right))
    torch.testing.assert_close(encoder_training.contrastive(s, torch.eye(5)), wanted)


def test_two_positives_share_a_target() -> None:
    s, belongs = torch.zeros(2, 2), torch.ones(2, 2)
    assert math.isclose(encoder_training.contrastive(s, belongs), math.log(2), rel_tol=1e-6)
    s[0, 0] = 3.0  # certainty about one of two equal positives costs more than indifference
    assert encoder_training.contrastive(s, belongs) > math.log(2)


def test_alternative_words_are_set_against_each_other_and_against_all_images() -> None:
    s = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    shows = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]).bool()
    of_images = F.cross_entropy(s[:3], torch.tensor([0, 1, 1]))  # the last shows no word
    columns = s.log_softmax(0)
    of_words = -(columns[0, 0] + (columns[1, 1] + columns[2, 1]) / 2) / 2  # none shows the third
    found = encoder_training.among_words(s, shows)
    torch.testing.assert_close(found, 0.5 * (of_images + of_words))
    assert encoder_training.among_words(s, torch.zeros(4, 3).bool()) == 0


def test_the_learning_rate_rises_and_ends_at_its_last_share() -> None:
    first = encoder_training.FIRST
    rates = [encoder_training.rate(k, first) for k in range(first.steps)]
    assert rates[0] == 1 / 40
    assert rates[39] == 1.0
    assert rates[40] == 1.0
    assert all(a >= b for a, b in pairwise(rates[40:]))
    assert abs(rates[-1] - 0.02) < 1e-3


def test_embeddings_are_unit_vectors_that_do_not_depend_on_chunks(
    tiny: encoder.Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = scenes.make(7, 9)
    images, words = tiny.images(world.images), tiny.words(["red", "boat"])
    assert images.shape == (7, 16)
    torch.testing.assert_close(images.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(words.norm(dim=1), torch.ones(2))
    monkeypatch.setattr(encoder, "IMAGE_CHUNK", 2)
    torch.testing.assert_close(tiny.images(world.images), images)
    torch.testing.assert_close(tiny.similarities(world.images, ["red", "boat"]), images @ words.T)


def test_the_same_seed_gives_the_same_weights(tiny: encoder.Encoder) -> None:
    again = encoder_training.train(TINY, 0)
    assert all(torch.equal(v, again[k]) for k, v in tiny.model.state_dict().items())
    other = encoder_training.train(TINY, 1)
    assert not torch.equal(other["visual.out.weight"], again["visual.out.weight"])


def test_the_digest_names_settings_and_seed(tiny: encoder.Encoder) -> None:
    assert tiny.digest == encoder.digest_of(TINY, 0)
    assert len({tiny.digest, encoder.digest_of(TINY, 1), encoder.digest_of()}) == 3


def test_saved_weights_are_read_back_and_those_of_another_seed_refused(
    tiny: encoder.Encoder, tmp_path: Path
) -> None:
    path = tmp_path / "encoder.safetensors"
    encoder.save(tiny, path)
    again = encoder.load(path, 0, TINY)
    assert torch.equal(again.words(["red"]), tiny.words(["red"]))
    with pytest.raises(ValueError, match="its scenes, recipe or seed are not these"):
        encoder.load(path, 1, TINY)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="not a whole file"):
        encoder.load(path, 0, TINY)
    with pytest.raises(FileNotFoundError, match="no encoder"):
        encoder.load(tmp_path / "none", 0, TINY)


def test_an_unknown_word_gets_one_sentence(tiny: encoder.Encoder) -> None:
    with pytest.raises(ValueError, match="never taught the word 'unicorn'") as caught:
        tiny.words(["red", "a unicorn"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="at least one"):
        tiny.words([])
    with pytest.raises(ValueError, match="list of words"):
        tiny.words("red")
    with pytest.raises(ValueError, match="more than 46 tokens"):
        tiny.words(["red " * 47])


def test_images_of_another_kind_are_refused(tiny: encoder.Encoder) -> None:
    with pytest.raises(ValueError, match=r"uint8 \[n, h, w, 3\]"):
        tiny.images(torch.zeros(1, 3, 48, 48))


def test_without_open_clip_one_sentence_says_what_still_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "open_clip.model", None)
    with pytest.raises(ImportError, match=r"open_clip_torch .*Network Dissection .* work without"):
        encoder_training.build(TINY, torch.Generator())


def test_the_oracle_is_standardised_coverage() -> None:
    concepts = tuple(Concept(k, w, w, "color") for k, w in enumerate(("red", "blue", "pink"), 1))
    planes = torch.tensor([[[[1, 1]]], [[[1, 2]]], [[[2, 2]]]]).short()
    labels = Annotations(
        concepts, planes, torch.zeros(3, 1).int(), torch.ones(3, 6, dtype=torch.bool)
    )
    found = encoder.oracle(labels)
    root = math.sqrt(1.5)
    wanted = torch.tensor([[root, -root, 0.0], [0.0, 0.0, 0.0], [-root, root, 0.0]])
    torch.testing.assert_close(found, wanted)


def test_the_oracle_passes_every_floor_and_noise_none() -> None:
    world = scenes.probe(1500, 77)
    good = encoder_floors.measure_similarities(encoder.oracle(world.annotations()), world)
    assert good.is_good_enough
    assert str(good) == "encoder above all floors"
    assert all(m.value == 1.0 for m in good.zero_shot)
    noise = torch.randn(1500, 74, generator=torch.Generator().manual_seed(0))
    bad = encoder_floors.measure_similarities(noise, world)
    assert not any(m.holds for m in bad.zero_shot + bad.auc)
    assert str(bad).startswith("encoder too weak for colour swatch")


def test_the_area_under_the_curve_counts_ordered_pairs() -> None:
    scores = torch.tensor([[3.0, 1.0], [2.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    positive = torch.tensor([[1, 1], [0, 0], [1, 0], [0, 1]]).bool()
    assert encoder_floors.roc_auc(scores, positive).tolist() == [0.75, 0.5]
    assert encoder_floors.roc_auc(scores[:, :1], torch.ones(4, 1).bool()).isnan().all()
