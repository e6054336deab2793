import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tdsm.base.statistics import (
    PAIRED,
    PAIRED_SEEDS,
    WILSON,
    WILSON_SEEDS,
    accuracy_interval,
    confusion_matrix,
    mcnemar,
    paired_difference,
    psnr,
    wilson_interval,
)


def ends(interval):
    return interval.low, interval.high


def test_psnr_is_the_formula_image_by_image():
    images, shown = torch.rand(3, 5, 4, 2) * 2 - 1, torch.rand(3, 5, 4, 2) * 2 - 1
    for image, other, ratio in zip(images.numpy(), shown.numpy(), psnr(images, shown), strict=True):
        error = np.mean(((image - other) / 2) ** 2)  # on the [0, 1] scale
        assert ratio.item() == pytest.approx(10 * math.log10(1 / error), abs=1e-4)


def test_psnr_clips_what_a_screen_would_clip_and_stops_at_100_dB():
    white = torch.ones(1, 2, 2, 1)
    assert psnr(white, 3 * white).item() == psnr(white, white).item() == 100.0
    assert psnr(white, -5 * white).item() == pytest.approx(0.0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_interval_is_wilsons_formula(numbers):
    correct, total = numbers
    found = wilson_interval(correct, total)
    (low, high), z, p = ends(found), 1.959963984540054, correct / total
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    assert low == pytest.approx(max(0.0, centre - half), abs=1e-9)
    assert high == pytest.approx(min(1.0, centre + half), abs=1e-9)
    assert 0 <= low <= p <= high <= 1
    assert (found.value, found.method) == (p, WILSON)


def right_answers(seeds, count, *, of_images=2.0, of_seeds=0.3, level=1.0, random=None):
    """Draw whether S seeds are right on n images; both have their own level on the logit scale."""
    random = random or np.random.default_rng(0)
    logits = level + of_images * random.standard_normal(count) + of_seeds * random.standard_normal((seeds, 1))
    return torch.from_numpy(random.random((seeds, count)) < 1 / (1 + np.exp(-logits)))


@pytest.mark.parametrize(("seeds", "count"), [(2, 50), (3, 400), (10, 30)])
def test_the_interval_of_several_seeds_is_the_formula(seeds, count):
    is_right = right_answers(seeds, count)
    values = is_right.double().numpy()
    p = values.mean()
    parts = values.mean(axis=0).var(ddof=1) / count, values.mean(axis=1).var(ddof=1) / seeds
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (count - 1) + parts[1] ** 2 / (seeds - 1))
    z, m = stats.t(freedom).ppf(0.975), p * (1 - p) / sum(parts)
    roots = np.roots([1 + z**2 / m, -(2 * p + z**2 / m), p**2])  # (p − x)² = z² x(1 − x) / m, what Wilson solves
    found = accuracy_interval(is_right)
    assert (found.value, *ends(found)) == pytest.approx((p, *sorted(roots)))
    assert found.method == WILSON_SEEDS


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.integers(1, 4))
def test_seeds_that_never_differ_from_images_or_each_other_leave_wilsons_interval(numbers, seeds):
    correct, total = numbers
    is_right = (torch.arange(total) < correct).repeat(seeds, 1)
    found = accuracy_interval(is_right)
    low, high = ends(found)
    if seeds == 1 or total == 1 or correct in (0, total):
        assert (low, high) == pytest.approx(ends(wilson_interval(correct, total)))
    assert found.method == (WILSON if seeds == 1 else WILSON_SEEDS)
    assert 0 <= low <= correct / total <= high <= 1


def test_seeds_that_differ_widen_the_interval():
    same = (torch.arange(1000) < 500).repeat(3, 1)
    other = torch.arange(1000) < torch.tensor([[400], [500], [600]])
    widths = [high - low for low, high in (ends(accuracy_interval(right)) for right in (same, other))]
    assert widths[1] > 5 * widths[0]  # Student's t of two degrees of freedom


@pytest.mark.parametrize(
    ("seeds", "count", "options"),
    [
        (3, 400, {"of_seeds": 0.0}),
        (3, 400, {"of_seeds": 0.15}),
        (5, 400, {"of_seeds": 0.5}),
        (3, 60, {"level": 5.0}),
    ],
    ids=["images_vary", "both_vary", "seeds_vary", "nearly_all_right"],
)
def test_the_interval_holds_the_accuracy_of_other_seeds_on_other_images(seeds, count, options):
    random = np.random.default_rng(1)
    truth = right_answers(1, 400_000, random=random, **{**options, "of_seeds": 0.0, "of_images": spread(options)})
    held = 0
    for _ in range(400):
        found = accuracy_interval(right_answers(seeds, count, random=random, **options))
        held += found.low <= truth.double().mean().item() <= found.high
    assert held / 400 >= 0.92


def spread(options):
    """Return the deviation of image and seed together: one seed an image."""
    return math.hypot(2.0, options.get("of_seeds", 0.3))


def agreeing(both, one, other, neither):
    """Return who is right on each sample, from the four counts of a paired table."""
    counts = torch.tensor([both, one, other, neither])
    return [torch.tensor(rights).repeat_interleave(counts) for rights in ([1, 1, 0, 0], [1, 0, 1, 0])]


def test_classifiers_whose_intervals_overlap_are_told_apart_by_their_pairs():
    one, other = (right.bool() for right in agreeing(81, 41, 16, 62))  # 61.0 and 48.5 % of 200 images
    alone = [accuracy_interval(right[None]) for right in (one, other)]
    assert [bound.value for bound in alone] == [0.61, 0.485]
    assert alone[0].low < alone[1].high
    found = paired_difference(one[None], other[None])
    assert (found.value, found.method) == (0.125, PAIRED)
    assert (found.high - found.low) / 2 == pytest.approx(0.072, abs=5e-4)
    assert not found.has_zero
    assert mcnemar(one, other) == pytest.approx(0.001, abs=5e-4)


@given(st.tuples(*[st.integers(0, 40)] * 4).filter(any))
def test_the_paired_interval_of_one_seed_is_the_adjusted_formula(table):
    one, other = (right.bool() for right in agreeing(*table))
    n = sum(table) + 2
    b, c = table[1] + 0.5, table[2] + 0.5  # Agresti and Min: half a sample more in each cell
    middle, half = (b - c) / n, stats.t(n - 1).ppf(0.975) * math.sqrt(((b + c) - (b - c) ** 2 / n) / n**2)
    found = paired_difference(one[None], other[None])
    assert ends(found) == pytest.approx((max(-1, middle - half), min(1, middle + half)), abs=1e-9)
    assert found.value == pytest.approx((table[1] - table[2]) / sum(table))
    assert found.low <= found.value <= found.high
    turned = paired_difference(other[None], one[None])
    assert ends(turned) == pytest.approx((-found.high, -found.low))
    assert mcnemar(one, other) == pytest.approx(mcnemar(other, one))


def test_the_paired_interval_of_several_seeds_is_the_formula():
    one, other = right_answers(3, 50), right_answers(4, 50, level=0.5, random=np.random.default_rng(3))
    first, second = one.double().numpy(), other.double().numpy()
    gain = np.append(first.mean(axis=0) - second.mean(axis=0), [0.5**0.5, -(0.5**0.5)])
    parts = [gain.var() / 52, first.mean(axis=1).var(ddof=1) / 3, second.mean(axis=1).var(ddof=1) / 4]
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / 51 + parts[1] ** 2 / 2 + parts[2] ** 2 / 3)
    half = stats.t(freedom).ppf(0.975) * math.sqrt(sum(parts))
    found = paired_difference(one, other)
    assert ends(found) == pytest.approx((gain.mean() - half, gain.mean() + half))
    assert (found.value, found.method) == (pytest.approx(first.mean() - second.mean()), PAIRED_SEEDS)


def test_a_classifier_without_seeds_adds_none():
    one, other = right_answers(3, 80), right_answers(1, 80, level=0.5)
    both = paired_difference(one, other)
    assert both.method == PAIRED_SEEDS
    repeated = paired_difference(one, other.repeat(2, 1))  # two seeds that never differ
    assert ends(both) == pytest.approx(ends(repeated))


def test_mcnemars_p_is_the_binomial_tail():
    one, other = (right.bool() for right in agreeing(10, 8, 2, 5))
    tail = sum(math.comb(10, k) for k in (0, 1, 2)) / 2**10
    assert mcnemar(one, other) == pytest.approx(2 * tail)
    assert mcnemar(one, one) == 1.0


@pytest.mark.parametrize(
    ("seeds", "count", "options"),
    [
        ((1, 1), 200, {"of_seeds": 0.0}),
        ((1, 1), 60, {"of_seeds": 0.0, "level": 4.0}),
        ((3, 3), 400, {"of_seeds": 0.15}),
        ((3, 1), 400, {"of_seeds": 0.15}),
        ((5, 5), 200, {"of_seeds": 0.5}),
    ],
    ids=["one_seed", "nearly_all_right", "both_vary", "against_no_seed", "seeds_vary"],
)
def test_the_paired_interval_holds_the_difference_of_other_seeds_on_other_images(seeds, count, options):
    random = np.random.default_rng(2)
    levels = options.pop("level", 1.0), options.pop("level", 1.0) + 0.4

    def draw(shape, level, hard, has_seeds):
        own = options["of_seeds"] * has_seeds * random.standard_normal((shape[0], 1))
        return torch.from_numpy(random.random(shape) < 1 / (1 + np.exp(-(level + 2 * hard + own))))

    hard = random.standard_normal(400_000)
    truth = 0.0
    for sign, level, own in zip((1, -1), levels, seeds, strict=True):
        of_seeds = options["of_seeds"] * (own > 1) * random.standard_normal(400_000)
        truth += sign * (1 / (1 + np.exp(-(level + 2 * hard + of_seeds)))).mean()
    held = 0
    for _ in range(1000):
        hard = random.standard_normal(count)
        pair = [draw((own, count), level, hard, own > 1) for own, level in zip(seeds, levels, strict=True)]
        found = paired_difference(*pair)
        held += found.low <= truth <= found.high
    assert held / 1000 >= 0.93


def test_the_confusion_matrix_counts_rows_as_truth():
    labels, predictions = torch.randint(3, (50,)), torch.randint(3, (50,))
    expected = torch.zeros(4, 4, dtype=torch.long)
    for label, prediction in zip(labels, predictions, strict=True):
        expected[label, prediction] += 1
    assert torch.equal(confusion_matrix(labels, predictions, 4), expected)
