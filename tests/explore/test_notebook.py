import html
import re

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import tdsm
from tests.conftest import small_field
from tests.explore.test_export import inside


@pytest.fixture(scope="module")
def shown():
    torch.manual_seed(0)
    field, images = small_field(torch.float32), torch.rand(2, 3, 6, 8) * 2 - 1
    return field, images, tdsm.show(field, images)


def test_the_figure_shows_the_first_images_components(shown):
    field, images, found = shown
    assert isinstance(found.figure, Figure)
    pictures = [axes.images[0].get_array() for axes in found.figure.axes if axes.images]
    assert len(pictures) == 2 + 5
    expected = tdsm.component_images(field, field.encode(images[:1]), size=(6, 8))[0, 3]
    np.testing.assert_allclose(pictures[5], ((expected + 1) / 2).clamp(0, 1).detach().numpy(), atol=1e-6)
    assert found._repr_png_()[1:4] == b"PNG"


def test_the_frame_holds_the_page_of_all_images_and_methods(shown):
    _, images, found = shown
    frame = found._repr_html_()
    assert html.unescape(re.fullmatch(r'<iframe srcdoc="([^"]*)" .*></iframe>', frame, re.S)[1]) == found.page
    assert 'sandbox="allow-scripts allow-downloads"' in frame
    held, arrays = inside(found.page)
    assert [method["name"] for method in held["about"]["methods"]] == ["additive", "solo", "leave_one_out", "attention"]
    error = (arrays[1]["image"] - images[1].movedim(0, -1)).abs().max()
    assert error < 0.005


def test_the_page_can_be_kept(shown, tmp_path):
    assert shown[2].save(tmp_path / "page.html").read_text() == shown[2].page
