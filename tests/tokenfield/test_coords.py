import numpy as np
import pytest
import torch

from tdsm.base.errors import UsageError
from tdsm.tokenfield.coords import FourierFeatures, grid, sinusoids
from tests import reference


@pytest.mark.parametrize("size", [(7,), (3, 4), (32, 32), (48, 40), (2, 3, 4), (1, 5)])
def test_grid_is_row_major_with_corners(size):
    expected = reference.grid(size)
    np.testing.assert_allclose(grid(size).numpy(), expected, rtol=0, atol=2e-7)
    assert np.ptp(expected, axis=0).tolist() == [2.0 if n > 1 else 0.0 for n in size]


@pytest.mark.parametrize("size", [(), (0, 4), (4, -1)])
def test_grid_refuses_sizes_that_are_no_counts(size):
    with pytest.raises(UsageError, match="expected one count of at least 1 per axis"):
        grid(size)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_features_are_sines_then_cosines(axes):
    features = FourierFeatures(axes, 6, scale=15.0).double()
    coords = torch.rand(2, 9, axes, dtype=torch.float64) * 2 - 1
    seen = features(coords)
    np.testing.assert_allclose(seen, reference.fourier(coords.numpy(), features.matrix.numpy()), rtol=0, atol=1e-14)


def test_matrix_is_gaussian_of_the_given_scale_and_saved_untrained():
    features = FourierFeatures(2, 5000, scale=15.0)
    assert abs(features.matrix.mean()) < 5 * 15 / 100  # 5 standard errors of 10 000 draws
    assert abs(features.matrix.std() / 15 - 1) < 5 / 141
    assert list(features.state_dict()) == ["matrix"]
    assert not list(features.parameters())


@pytest.mark.parametrize(("count", "width"), [(1, 1), (8, 16), (5, 7), (256, 384)])
def test_sinusoids(count, width):
    np.testing.assert_allclose(sinusoids(count, width), reference.sinusoids(count, width), rtol=0, atol=3e-5)
