import itertools
from dataclasses import replace

import pytest
import torch

from tdsm import class_evidence, decompose
from tdsm.classification.heads import TDSMClassifier
from tdsm.explore.heads import FittedHead
from tdsm.features.config import MapConfig
from tdsm.pipeline.rows import read_predictions
from tests.conftest import small_field
from tests.samples import all_floats

EVERY = {
    "solo": ("tdsm", "avg", MapConfig(dtype="float32")),
    "rgb": ("tdsm", "flatten", MapConfig(dtype="float32", reduction="rgb")),
    "selected": ("tdsm", "cnn", MapConfig(dtype="float32", selection="3,0,2")),
    "additive": ("additive", "avg", MapConfig(dtype="float32")),
    "both": ("additive+reconstruction", "cnn", MapConfig(dtype="float32", selection="4,1")),
    "tokens": ("tokens", "flatten", MapConfig()),
    "picture": ("reconstruction", "flatten", MapConfig()),
}
CHANNELS = {"solo": 5, "rgb": 15, "selected": 3, "additive": 5, "both": 5, "tokens": 14, "picture": 3}


@pytest.fixture
def field():
    return small_field(torch.float32)


@pytest.fixture
def image():
    return torch.rand(1, 3, 6, 8) * 2 - 1


def fitted(field, name, size=(6, 8)):
    """A head with random weights and statistics."""
    feature, kind, maps = EVERY[name]
    size = (5, 1) if name == "tokens" else size
    classifier = TDSMClassifier(CHANNELS[name], 4, kind, size).eval()
    with torch.no_grad():
        classifier.fit_statistics(torch.randn_like(classifier.mean), torch.rand_like(classifier.mean) + 0.5)
    return FittedHead(name, "", field, feature, classifier, maps)


def test_heads_say_what_the_table_says(run, studio):
    assert list(studio.heads) == ["tdsm-avg", "pixels-linear", "tokens-avg"]
    images = all_floats(run.data.test)
    for name, head in studio.heads.items():
        said = [head.scores(image[None], run.field.encode(image[None])).argmax().item() for image in images]
        assert said == read_predictions(run, name)[0].tolist()


@pytest.mark.parametrize("name", ["solo", "rgb", "selected", "tokens"])
def test_what_is_missing_is_blanked_and_the_rest_is_as_before(field, image, name):
    head, tokens = fitted(field, name), field.encode(image)
    everything = head.inputs(image, tokens, [0, 1, 2, 3, 4])
    some = head.inputs(image, tokens, [1, 3])
    owned = head.places(5, 3)
    here = (owned[1] | owned[3]).expand_as(everything)
    torch.testing.assert_close(some[here], everything[here])
    torch.testing.assert_close(some[~here], head.classifier.mean.expand_as(some)[~here])
    none = head.scores(image, tokens, [])
    torch.testing.assert_close(none, head.classifier(head.classifier.mean.expand_as(everything))[0])


def test_a_head_of_maps_of_all_tokens_reads_maps_of_those_left(field, image):
    head, tokens = fitted(field, "additive"), field.encode(image)
    left = decompose(field, tokens[:, [0, 4]], size=(6, 8), method="additive").components.mean(-1).movedim(1, -1)
    torch.testing.assert_close(head.inputs(image, tokens, [0, 4])[..., [0, 4]], left)


def test_maps_beside_the_picture_are_each_what_they_are(field, image):
    head, tokens = fitted(field, "both"), field.encode(image)
    inputs = head.inputs(image, tokens, [0, 1, 2])
    left = decompose(field, tokens[:, [0, 1, 2]], size=(6, 8), method="additive").components[:, 1].mean(-1)
    torch.testing.assert_close(inputs[..., 1], left)
    torch.testing.assert_close(inputs[..., 0], head.classifier.mean[..., 0].expand(1, 6, 8))
    torch.testing.assert_close(inputs[..., 2:], field.decode(tokens[:, [0, 1, 2]], size=(6, 8)))
    assert head.places(5, 3)[:, 0, 0].nonzero().tolist() == [[1, 1], [4, 0]]
    assert not head.falls(image, tokens).adds_up


@pytest.mark.parametrize("name", ["solo", "rgb"])
def test_shares_less_their_mean_over_classes_are_the_class_evidence(field, image, name):
    head, tokens = fitted(field, name), field.encode(image)
    shares = head.falls(image, tokens).by_token
    inputs = head.inputs(image, tokens, [0, 1, 2, 3, 4])
    for number in range(4):
        evidence = class_evidence(head.classifier, inputs, torch.tensor([number])).by_map[0]
        expected = evidence.unflatten(0, (5, -1)).sum(1)
        torch.testing.assert_close(shares[:, number] - shares.mean(1), expected, atol=1e-4, rtol=1e-4)


def test_a_head_of_the_picture_reads_what_the_tokens_left_decode_to(field, image):
    head, tokens = fitted(field, "picture"), field.encode(image)
    picture = field.decode(tokens[:, [1, 2]], size=(6, 8))
    torch.testing.assert_close(head.scores(image, tokens, [1, 2]), head.classifier(picture)[0])
    assert head.scores(image, tokens, []) is None
    assert head.falls(image, tokens) is None


@pytest.mark.parametrize("name", ["solo", "rgb", "tokens"])
def test_evidence_of_a_linear_head_adds_up_whichever_tokens_are_on(field, image, name):
    head, tokens = fitted(field, name), field.encode(image)
    falls = head.falls(image, tokens)
    assert falls.adds_up
    for keep in itertools.chain.from_iterable(itertools.combinations(range(5), n) for n in (0, 1, 3, 5)):
        summed = falls.blank + falls.by_token[list(keep)].sum(0)
        torch.testing.assert_close(summed, head.scores(image, tokens, keep), atol=1e-4, rtol=1e-4)


def test_evidence_of_another_head_is_what_its_scores_fall_by(field, image):
    head, tokens = fitted(field, "selected"), field.encode(image)
    falls = head.falls(image, tokens)
    assert not falls.adds_up
    for token in range(5):
        without = head.scores(image, tokens, [k for k in range(5) if k != token])
        torch.testing.assert_close(falls.scores - without, falls.by_token[token], atol=1e-5, rtol=1e-4)
    assert falls.by_token[[1, 4]].abs().max() < 1e-6  # which it does not read


def test_maps_are_read_in_the_precision_they_were_stored_in(field, image):
    head, tokens = fitted(field, "solo"), field.encode(image)
    coarse = replace(head, maps=MapConfig(dtype="float16"))
    stored = head.inputs(image, tokens, [0, 1, 2, 3, 4]).half().float()
    assert torch.equal(coarse.inputs(image, tokens, [0, 1, 2, 3, 4]), stored)
