import pytest
import torch

from tdsm.features.config import MapConfig
from tdsm.features.kinds import FEATURES, Encoded
from tdsm.study.mirror import mirror_errors
from tests.samples import all_floats
from tests.tinyrun import digits


def test_pixels_are_mirrored_and_maps_are_as_far_off_as_they_are(run):
    few = digits().validation.subset(torch.arange(6))
    found = mirror_errors(run.field, few, ["pixels", "solo"], MapConfig(batch_size=6, dtype="float32"))
    assert found["pixels"] == {"error": 0.0, "beside": 0.0}
    maps, mirrored = (
        FEATURES["solo"].compute(Encoded(run.field, given, MapConfig())).double().detach()
        for given in (all_floats(few), all_floats(few).flip(-1))
    )
    own, other = ((mirrored - flipped).norm() for flipped in (maps.flip(2), maps.roll(1, 0).flip(2)))
    assert found["solo"]["error"] == pytest.approx((own / mirrored.norm()).item(), rel=1e-4)
    assert found["solo"]["beside"] == pytest.approx((own / other).item(), rel=1e-4)
    assert found["solo"]["error"] > 0.001


def test_images_are_taken_in_batches(run):
    few = digits().validation.subset(torch.arange(8))
    whole, parts = (
        mirror_errors(run.field, few, ["solo"], MapConfig(batch_size=size))["solo"]["error"] for size in (8, 4)
    )
    assert whole == pytest.approx(parts, rel=1e-3)
