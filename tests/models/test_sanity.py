import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdsm.base.statistics import psnr
from tdsm.models.sanity import field_sanity, mean_image


@given(st.integers(1, 20), st.integers(1, 7))
def test_batches_change_nothing(count, size):
    images = torch.rand(count, 3, 5, 4, generator=torch.Generator().manual_seed(count)) * 2 - 1
    batches = [images[rows] for rows in torch.arange(count).split(size)]
    mean = mean_image(iter(batches))
    torch.testing.assert_close(mean, images.mean(dim=0), rtol=0, atol=1e-6)
    whole, found = field_sanity(20.0, [images], mean), field_sanity(20.0, iter(batches), mean)
    assert found["psnr_mean_image"] == pytest.approx(whole["psnr_mean_image"])
    assert found["psnr_mean_colour"] == pytest.approx(whole["psnr_mean_colour"])


def test_the_guesses_are_the_mean_image_and_each_images_mean_colour():
    images, mean = torch.rand(6, 3, 8, 8) * 2 - 1, torch.rand(3, 8, 8) - 0.5
    found = field_sanity(20.0, images.split(2), mean)
    shown = images.movedim(1, -1)
    flat = shown.mean(dim=(1, 2), keepdim=True).expand_as(shown)
    assert found["psnr_mean_image"] == pytest.approx(psnr(shown, mean.movedim(0, -1).expand_as(shown)).mean().item())
    assert found["psnr_mean_colour"] == pytest.approx(psnr(shown, flat).mean().item())


@pytest.mark.parametrize(("above", "nothing"), [(-3.0, True), (0.9, True), (1.1, False), (15.0, False)])
def test_a_field_hardly_better_than_the_better_guess_has_learned_almost_nothing(above, nothing):
    images = torch.rand(4, 1, 8, 8) * 2 - 1
    guesses = field_sanity(0.0, [images], torch.zeros(1, 8, 8))
    better = max(guesses["psnr_mean_image"], guesses["psnr_mean_colour"])
    words = field_sanity(better + above, [images], torch.zeros(1, 8, 8))["sanity"]
    assert ("has learned almost nothing" in words) == nothing
    assert f"{better + above:.1f} dB" in words
