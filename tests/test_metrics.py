import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdsm.metrics import confusion_matrix, psnr, wilson_interval


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


def test_the_confusion_matrix_counts_rows_as_truth():
    labels, predictions = torch.randint(3, (50,)), torch.randint(3, (50,))
    expected = torch.zeros(4, 4, dtype=torch.long)
    for label, prediction in zip(labels, predictions, strict=True):
        expected[label, prediction] += 1
    assert torch.equal(confusion_matrix(labels, predictions, 4), expected)
