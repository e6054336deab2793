"""A residual network begins with whitened patches, and normalises over the batch while it learns."""

import pytest
import torch
import torch.nn.functional as F

from tdsm.classification.config import HeadConfig
from tdsm.classification.heads import TDSMClassifier
from tdsm.classification.probe import Samples, new_head
from tdsm.classification.residual import NOISE, BatchNorm
from tdsm.features.store import FeatureRows

CLASSES = 4


def network(maps, size, **options):
    return TDSMClassifier(maps, CLASSES, "resnet", size, **{"width": 8, "depth": 1} | options).head


@pytest.mark.parametrize("size", [(1, 1), (7, 7), (16, 1), (28, 28), (64, 64)])
@pytest.mark.parametrize("maps", [1, 3, 40])
def test_maps_of_any_size_and_number_are_read(size, maps):
    head = network(maps, size)
    shown = torch.randn(2, *size, maps)
    head.prepare(lambda: shown)
    assert head(shown).shape == (2, CLASSES)
    assert head(shown[:1]).shape == (1, CLASSES)
    window = min(2, *size)
    assert head.patches.shape == (min(4 * 8, maps * window**2), maps, window, window)
    assert head.stride == (2 if size == (64, 64) else 1)


def test_every_stage_halves_the_size_and_doubles_the_width():
    head, seen = network(3, (28, 28), depth=2), []
    for part in head.convolve:
        part.register_forward_hook(lambda module, given, made: seen.append(tuple(made.shape[1:])))
    head(torch.randn(2, 28, 28, 3))
    assert seen == [(8, 14, 14)] * 3 + [(16, 7, 7)] * 3 + [(32, 4, 4)] * 3


def correlated(samples, size, maps):
    return torch.randn(samples, *size, maps).cumsum(1).cumsum(2) @ torch.randn(maps, maps)


def test_patches_are_white():
    maps = 10 * correlated(400, (8, 8), 2)
    head = network(2, (8, 8), width=16)
    head.prepare(lambda: maps)
    assert head.components == 8
    found = F.conv2d(maps.movedim(-1, 1), head.patches, stride=2).movedim(1, -1).flatten(0, 2)
    torch.testing.assert_close(found.mT @ found / len(found), torch.eye(8), atol=0.05, rtol=0)


def test_patches_keep_the_largest_components_and_make_no_noise_loud():
    maps = correlated(300, (8, 8), 3)
    maps[..., 2] = 1e-6 * torch.randn(300, 8, 8)
    whole, few = network(3, (8, 8), width=3), network(3, (8, 8), width=1)
    for head in (whole, few):
        head.prepare(lambda: maps)
    torch.testing.assert_close(few.patches.abs(), whole.patches[:4].abs(), rtol=1e-3, atol=1e-4)
    assert whole.patches.flatten(1).norm(dim=1).max() <= NOISE**-0.5 * (1 + 1e-4)


def test_a_new_head_is_prepared_on_standardised_training_features():
    features = 5 + 3 * correlated(200, (6, 6), 2)
    samples = Samples(FeatureRows([features]), torch.arange(200) % CLASSES)
    statistics = torch.full((6, 6, 2), 5.0), torch.full((6, 6, 2), 3.0)
    made = new_head(HeadConfig(kind="resnet", width=8, depth=1), statistics, samples, CLASSES, seed=0)
    head = network(2, (6, 6))
    head.prepare(lambda: (features - 5) / 3)
    torch.testing.assert_close(made.head.patches.abs(), head.patches.abs(), rtol=1e-3, atol=1e-4)


def test_images_are_apart_only_once_training_is_over():
    head, maps = network(3, (8, 8)), torch.randn(6, 8, 8, 3)
    assert not torch.allclose(head(maps)[:2], head(maps[:2]), atol=1e-3)
    head.eval()
    torch.testing.assert_close(head(maps)[:2], head(maps[:2]))


def test_one_value_a_channel_is_normalised_as_after_training():
    norm, one = BatchNorm(3), torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(norm(one), norm.eval()(one))
    reference, maps = torch.nn.BatchNorm2d(3), torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(norm.train()(maps), reference(maps))
    torch.testing.assert_close(norm.running_var, reference.running_var)
