import io

import numpy as np
import pytest
import trimesh
from matplotlib.colors import to_rgb
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from tdsm.base.errors import ResourceError, UsageError
from tdsm.figures import shapes as module
from tdsm.figures.shapes import mesh_bytes, painted_shape, vertex_colours
from tdsm.figures.style import PALETTE

BALL = trimesh.creation.icosphere(subdivisions=1)
VERTICES, FACES = np.array(BALL.vertices), np.array(BALL.faces)
NUMBERS, AMOUNTS = np.arange(len(VERTICES)) % 3, VERTICES[:, 1]


def test_every_painting_has_a_picture_and_amounts_a_bar():
    figure = painted_shape(VERTICES, FACES, {"part": NUMBERS, "given": AMOUNTS}, names={"part": ["a", "b", "c"]})
    assert [text.get_text() for text in figure.texts] == ["part", "given"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "c"]
    assert [axes.name for axes in figure.axes] == ["3d", "3d", "rectilinear"]


@pytest.fixture
def drawn(monkeypatch):
    """The corners and colours of the faces that are drawn."""
    seen = {}

    def record(corners, facecolors, **style):
        seen.update(corners=corners, colours=facecolors)
        return Poly3DCollection(corners, facecolors=facecolors, **style)

    monkeypatch.setattr(module, "Poly3DCollection", record)
    return seen


def test_what_lies_up_is_drawn_up(drawn):
    painted_shape(VERTICES * [1, 5, 1], FACES, {"part": NUMBERS})
    np.testing.assert_allclose(np.ptp(drawn["corners"], axis=(0, 1)), [2, 2, 10], rtol=0.2)
    painted_shape(VERTICES * [5, 1, 1], FACES, {"part": NUMBERS}, up=0)
    np.testing.assert_allclose(np.ptp(drawn["corners"], axis=(0, 1)), [2, 2, 10], rtol=0.2)


def test_faces_turned_to_the_light_are_brighter(drawn):
    painted_shape(VERTICES, FACES, {"all": np.zeros(len(VERTICES), int)})
    brightness, height = drawn["colours"].sum(1), drawn["corners"].mean(1)[:, 2]
    assert np.corrcoef(brightness, height)[0, 1] > 0.5


def test_only_the_most_frequent_of_many_numbers_are_named():
    figure = painted_shape(VERTICES, FACES, {"token": np.arange(len(VERTICES))})
    (legend,) = figure.legends
    assert len(legend.get_texts()) == 8
    assert figure.texts[1].get_text() == f"and {len(VERTICES) - 8} more"


def test_whole_numbers_keep_their_hue_and_amounts_are_white_at_zero():
    np.testing.assert_allclose(vertex_colours(np.array([2, 0, 2])), [to_rgb(PALETTE[k]) for k in (2, 0, 2)])
    many = vertex_colours(np.arange(40))
    assert len(np.unique(many.round(3), axis=0)) == 40
    low, zero, high = vertex_colours(np.array([-0.2, 0.0, 0.2]))
    assert zero.min() > 0.95
    assert low[2] > low[0]
    assert high[0] > high[2]


@pytest.mark.parametrize("kind", ["ply", "glb"])
def test_a_file_holds_surface_and_colours(kind):
    data = io.BytesIO(mesh_bytes(VERTICES, FACES, NUMBERS, kind))
    read = trimesh.load(data, file_type=kind, force="mesh", process=False)
    np.testing.assert_allclose(read.vertices, VERTICES, atol=1e-6)
    assert read.faces.tolist() == FACES.tolist()
    np.testing.assert_allclose(read.visual.vertex_colors[:, :3], 255 * vertex_colours(NUMBERS), atol=0.51)


def test_what_does_not_fit_is_said():
    with pytest.raises(UsageError, match="'part' has shape"):
        painted_shape(VERTICES, FACES, {"part": NUMBERS[1:]})
    with pytest.raises(UsageError, match="at least one of each"):
        painted_shape(VERTICES, FACES[:0], {"part": NUMBERS})
    with pytest.raises(UsageError, match="NaN"):
        painted_shape(VERTICES, FACES, {"given": AMOUNTS * np.nan})


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "trimesh", None)
    with pytest.raises(ResourceError, match=r"tdsm\[shapes\]"):
        mesh_bytes(VERTICES, FACES, NUMBERS)
