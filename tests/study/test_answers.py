import numpy as np
import pytest

from tdsm.study.answers import paired_interval


def test_the_interval_is_that_of_paired_differences():
    random = np.random.default_rng(0)
    one, other = random.random((3, 400)) < 0.7, random.random((3, 400)) < 0.5
    middle, low, high = paired_interval(one, other)
    d = one.mean(0) - other.mean(0)
    assert middle == pytest.approx(one.mean() - other.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * d.std(ddof=1) / 20)
    assert paired_interval(one, one) == (0.0, 0.0, 0.0)
