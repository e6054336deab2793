import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tdsm.base.statistics import accuracy_interval, confusion_matrix, psnr, wilson_interval


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
    low, high = wilson_interval(correct, total)
    z, p = 1.959963984540054, correct / total
    centre = (p + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * math.sqrt(p * (1 - p) / total + z**2 / (4 * total**2))
    assert low == pytest.approx(max(0.0, centre - half), abs=1e-9)
    assert high == pytest.approx(min(1.0, centre + half), abs=1e-9)
    assert 0 <= low <= p <= high <= 1


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
    ends = np.roots([1 + z**2 / m, -(2 * p + z**2 / m), p**2])  # (p − x)² = z² x(1 − x) / m, what Wilson solves
    assert accuracy_interval(is_right) == pytest.approx(tuple(sorted(ends)))


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.integers(1, 4))
def test_seeds_that_never_differ_from_images_or_each_other_leave_wilsons_interval(numbers, seeds):
    correct, total = numbers
    is_right = (torch.arange(total) < correct).repeat(seeds, 1)
    low, high = accuracy_interval(is_right)
    if seeds == 1 or total == 1 or correct in (0, total):
        assert (low, high) == wilson_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1


def test_seeds_that_differ_widen_the_interval():
    same = (torch.arange(1000) < 500).repeat(3, 1)
    other = torch.arange(1000) < torch.tensor([[400], [500], [600]])
    widths = [high - low for low, high in map(accuracy_interval, (same, other))]
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
        low, high = accuracy_interval(right_answers(seeds, count, random=random, **options))
        held += low <= truth.double().mean().item() <= high
    assert held / 400 >= 0.92


def spread(options):
    """Return the deviation of image and seed together: one seed an image."""
    return math.hypot(2.0, options.get("of_seeds", 0.3))


def test_the_confusion_matrix_counts_rows_as_truth():
    labels, predictions = torch.randint(3, (50,)), torch.randint(3, (50,))
    expected = torch.zeros(4, 4, dtype=torch.long)
    for label, prediction in zip(labels, predictions, strict=True):
        expected[label, prediction] += 1
    assert torch.equal(confusion_matrix(labels, predictions, 4), expected)
