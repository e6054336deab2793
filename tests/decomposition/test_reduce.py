import numpy as np
import pytest
import torch

from tdsm.base.errors import UsageError
from tdsm.decomposition import REDUCTIONS
from tdsm.decomposition.reduce import num_maps, reduce_components
from tests import reference


@pytest.mark.parametrize("points", [(6,), (2, 3), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_follow_their_definition(reduction, channels, points):
    components = torch.randn(2, 5, *points, channels, dtype=torch.float64)
    maps = reduce_components(components, reduction)
    assert maps.shape == (2, *points, num_maps(5, channels, reduction))
    for one, seen in zip(components.flatten(2, -2), maps.flatten(1, -2), strict=True):
        np.testing.assert_allclose(seen, reference.spatial_map(one.numpy(), reduction), rtol=1e-12, atol=1e-12)


def test_rgb_is_token_major_and_its_mean_is_mean():
    components = torch.randn(1, 4, 5, 3)
    rgb = reduce_components(components, "rgb")
    assert torch.equal(rgb[..., 2 * 3 + 1], components[:, 2, :, 1])
    torch.testing.assert_close(rgb.unflatten(-1, (4, 3)).mean(-1), reduce_components(components, "mean"))


def test_norm_has_a_finite_gradient_at_black():
    components = torch.zeros(1, 2, 3, 3, requires_grad=True)
    reduce_components(components, "l2").sum().backward()
    assert components.grad.isfinite().all()


def test_unknown_reduction_is_named():
    with pytest.raises(UsageError, match="unknown reduction 'max'; expected one of mean, rgb, l2"):
        reduce_components(torch.zeros(1, 2, 3, 3), "max")
