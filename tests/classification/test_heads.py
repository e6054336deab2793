import inspect

import pytest
import torch

from tdsm.base import io
from tdsm.base.errors import UsageError
from tdsm.classification.heads import HEADS, TDSMClassifier, linear_weights

MAPS, CLASSES, SIZE = 6, 4, (5, 8)
VARIANTS = {
    "ridge": ("ridge", {}),
    "avg": ("avg", {}),
    "max": ("max", {}),
    "flatten": ("flatten", {}),
    "flatten, MLP": ("flatten", {"hidden_dim": 7}),
    "cnn 1×1, mean": ("cnn", {"kernel_size": 1, "width": 8, "pooling": "mean"}),
    "cnn 1×1": ("cnn", {"kernel_size": 1, "width": 6}),
    "cnn 3×3, mean": ("cnn", {"kernel_size": 3, "width": 8, "pooling": "mean"}),
    "cnn 3×3": ("cnn", {"kernel_size": 3, "width": 8, "depth": 3}),
    "resnet": ("resnet", {"width": 8, "depth": 1}),
    "resnet, deep and narrow": ("resnet", {"width": 3, "depth": 2}),
    "attention, by location": ("attention", {"num_weightings": 3}),
    "attention, global": ("attention", {"num_weightings": 3, "attention_scope": "global"}),
    "transformer": ("transformer", {"width": 8}),
}
ORDER_OF_PLACES_UNSEEN = {"avg", "max", "cnn 1×1, mean", "attention, by location", "attention, global"}
ANY_SIZE = {"avg", "max", "attention, by location", "attention, global"}


@pytest.fixture(params=VARIANTS)
def variant(request):
    return request.param


@pytest.fixture
def classifier(variant):
    pool, options = VARIANTS[variant]
    return TDSMClassifier(MAPS, CLASSES, pool, SIZE, **options).double().eval()


@pytest.fixture
def maps():
    return torch.randn(3, *SIZE, MAPS, dtype=torch.float64)


def test_every_head_is_in_this_battery():
    assert {pool for pool, _ in VARIANTS.values()} == set(HEADS)


def test_the_author_s_arguments_come_first():
    assert list(inspect.signature(TDSMClassifier).parameters)[:3] == ["num_tokens", "num_classes", "pool"]
    assert TDSMClassifier(num_tokens=64, num_classes=10, pool="avg")(torch.zeros(2, 32, 32, 64)).shape == (2, 10)


def test_scores_and_gradients(classifier, maps):
    logits = classifier(maps.requires_grad_())
    assert logits.shape == (3, CLASSES)
    logits.square().sum().backward()
    unreached = [name for name, p in classifier.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []
    assert maps.grad.flatten(1).any(dim=1).all()


def test_images_do_not_see_one_another(classifier, maps):
    torch.testing.assert_close(classifier(maps)[1:2], classifier(maps[1:2]), rtol=1e-11, atol=1e-11)


def test_a_constant_map_has_finite_scores_and_gradients(classifier):
    maps = torch.full((2, *SIZE, MAPS), 0.7, dtype=torch.float64, requires_grad=True)
    logits = classifier(maps)
    logits.sum().backward()
    assert logits.isfinite().all()
    assert maps.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in classifier.parameters())


def test_whether_the_order_of_places_matters(variant, classifier, maps):
    moved = maps.flatten(1, 2)[:, torch.randperm(40)].unflatten(1, SIZE)
    same = torch.allclose(classifier(moved), classifier(maps), rtol=1e-10, atol=1e-10)
    assert same == (variant in ORDER_OF_PLACES_UNSEEN)


def test_other_sizes_are_read_unless_the_head_is_made_for_one(variant, classifier):
    other = torch.randn(2, 7, 3, MAPS, dtype=torch.float64)
    if variant not in ANY_SIZE:
        with pytest.raises(UsageError, match=r"shape \(2, 7, 3, 6\), expected \(batch, 5, 8, 6\)"):
            classifier(other)
    else:
        assert classifier(other).shape == (2, CLASSES)


@pytest.mark.parametrize("shape", [(2, MAPS, *SIZE), (2, *SIZE, MAPS + 1), (2, *SIZE, 1)])
def test_maps_of_another_width_are_refused(classifier, shape):
    with pytest.raises(UsageError, match=rf"maps have shape {str(shape).replace('(', '.').replace(')', '.')}"):
        classifier(torch.zeros(shape))


def test_rgb_maps_are_three_times_as_wide(variant):
    pool, options = VARIANTS[variant]
    assert TDSMClassifier(3 * MAPS, CLASSES, pool, SIZE, **options)(torch.zeros(2, *SIZE, 18)).shape == (2, CLASSES)


def test_statistics_standardise_and_are_saved(classifier, maps, variant, tmp_path):
    before = classifier(maps)
    shape = (MAPS,) if variant in ANY_SIZE else (*SIZE, MAPS)
    mean, deviation = torch.randn(shape).double(), torch.rand(shape).double() + 0.5
    classifier.fit_statistics(mean, deviation)
    scaled = maps * deviation + mean
    torch.testing.assert_close(classifier(scaled), before, rtol=1e-10, atol=1e-10)
    io.write_tensors(tmp_path / "head.safetensors", classifier.state_dict())
    pool, options = VARIANTS[variant]
    restored = TDSMClassifier(MAPS, CLASSES, pool, SIZE, **options).double().eval()
    restored.load_state_dict(io.read_tensors(tmp_path / "head.safetensors"))
    assert torch.equal(restored.mean, mean)
    assert torch.equal(restored(scaled), classifier(scaled))


def test_what_is_constant_in_training_is_only_centred(classifier, maps):
    mean = torch.randn_like(classifier.mean)
    classifier.fit_statistics(mean, torch.zeros_like(mean))
    torch.testing.assert_close(classifier(maps), classifier.head(maps - mean))


def test_average_and_maximum_are_what_they_say(maps):
    for pool, reduced in (("avg", maps.mean(dim=(1, 2))), ("max", maps.amax(dim=(1, 2)))):
        classifier = TDSMClassifier(MAPS, CLASSES, pool).double()
        torch.testing.assert_close(classifier(maps), classifier.head.classify(reduced))


@pytest.mark.parametrize("scope", ["location", "global"])
def test_attention_follows_its_definition(maps, scope):
    """Features (tdsm · weights) summed over tokens, several weightings, then mean and deviation over space."""
    head = TDSMClassifier(MAPS, CLASSES, "attention", num_weightings=2, attention_scope=scope).double().head
    seen = maps if scope == "location" else maps.mean(dim=(1, 2), keepdim=True).expand_as(maps)
    features = []
    for j in range(2):
        rows = slice(j * MAPS, (j + 1) * MAPS)
        weights = torch.softmax(seen @ head.weigh.weight[rows].T + head.weigh.bias[rows], dim=-1)
        features.append((maps * weights).sum(dim=-1))
    pictures = torch.stack(features, dim=-1)
    pooled = torch.cat([pictures.mean(dim=(1, 2)), pictures.flatten(1, 2).std(dim=1, correction=0)], dim=-1)
    torch.testing.assert_close(head(maps), head.classify(pooled), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pool", ["cnn", "resnet"])
def test_convolutions_compute_channels_last(pool):
    classifier, seen = TDSMClassifier(MAPS, CLASSES, pool, SIZE, width=8), []
    for module in classifier.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda module, given, made: seen.extend([module.weight, *given, made]))
    classifier(torch.randn(2, *SIZE, MAPS))
    assert len(seen) >= 6
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in seen)


@pytest.mark.parametrize("variant", ["avg", "flatten", "ridge"], indirect=True)
def test_linear_heads_fold_into_weights_on_maps_as_they_are(classifier, maps):
    classifier.fit_statistics(torch.randn(MAPS).double(), torch.rand(MAPS).double() + 0.5)
    weight, bias = linear_weights(classifier, SIZE)
    torch.testing.assert_close(torch.einsum("bhwk,chwk->bc", maps, weight) + bias, classifier(maps))


def test_what_is_not_linear_cannot_be_folded():
    linear = {
        name
        for name, (pool, options) in VARIANTS.items()
        if TDSMClassifier(MAPS, CLASSES, pool, SIZE, **options).head.is_linear
    }
    assert linear == {"ridge", "avg", "flatten"}
    with pytest.raises(UsageError, match="a cnn head is not linear"):
        linear_weights(TDSMClassifier(MAPS, CLASSES, "cnn", SIZE), SIZE)


def test_dropout_is_for_training_only(maps):
    classifier = TDSMClassifier(MAPS, CLASSES, "avg", dropout=0.5).double()
    assert not torch.equal(classifier(maps), classifier(maps))
    classifier.eval()
    assert torch.equal(classifier(maps), classifier(maps))


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        ((MAPS, CLASSES, "mean"), {}, "unknown head 'mean'; expected one of ridge, avg, max"),
        ((0, CLASSES), {}, "num_tokens 0"),
        ((MAPS, 0), {}, "num_classes 0"),
        ((MAPS, CLASSES, "flatten", (0, 4)), {}, r"size \(0, 4\)"),
        ((MAPS, CLASSES, "cnn"), {"kernel": 3}, "kernel"),
        ((MAPS, CLASSES, "cnn"), {"kernel_size": 5}, "kernel_size"),
        ((MAPS, CLASSES, "attention"), {"attention_scope": "everywhere"}, "attention_scope"),
        ((MAPS, CLASSES, "avg"), {"dropout": 1.0}, "dropout"),
    ],
)
def test_options_that_cannot_be_are_named(arguments, options, words):
    with pytest.raises(UsageError, match=words) as caught:
        TDSMClassifier(*arguments, **options)
    assert "\n" not in str(caught.value)
