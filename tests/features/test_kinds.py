import pytest
import torch
import torch.nn.functional as F

from tdsm.features.config import MapConfig
from tdsm.features.kinds import FEATURES, Encoded
from tests.conftest import small_field


@pytest.fixture(scope="module")
def encoded():
    torch.manual_seed(0)
    return Encoded(small_field(torch.float32, channels=3), torch.rand(2, 3, 8, 6), MapConfig(size=(4, 3)))


@pytest.mark.parametrize("name", [name for name in FEATURES if "+" in name])
def test_features_side_by_side_are_those_of_each(name, encoded):
    parts = [FEATURES[part].compute(encoded) for part in name.split("+")]
    assert torch.equal(FEATURES[name].compute(encoded), torch.cat(parts, dim=-1))


def test_features_that_need_no_field_are_of_the_images_alone(encoded):
    other = Encoded(small_field(torch.float32, channels=3), encoded.images, encoded.config)
    for kind in FEATURES.values():
        if not kind.needs_field:
            assert torch.equal(kind.compute(encoded), kind.compute(other))


@pytest.mark.parametrize(("pool", "function"), [("avg", F.adaptive_avg_pool2d), ("max", F.adaptive_max_pool2d)])
@pytest.mark.parametrize("method", ["solo", "additive"])
def test_pooled_maps_are_the_maps_pooled(encoded, method, pool, function):
    config = MapConfig(size=(4, 3), method=method, reduction="rgb", selection="0,3", pool=pool, cells=2)
    given = Encoded(encoded.field, encoded.images, config)
    maps = FEATURES["tdsm"].compute(given)
    pooled = FEATURES["pooled"].compute(given)
    assert pooled.shape == (2, 2, 2, 6)
    torch.testing.assert_close(pooled, function(maps.movedim(-1, 1), (2, 2)).movedim(1, -1))
