"""Every figure shows the data it was given, on the scale it states, also when there is next to nothing to show."""

import ast
import inspect
import io

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import same_color
from PIL import Image

from tdsm.base.errors import UsageError
from tdsm.figures import charts, pictures, style

HOSTILE = r"$\frac{$ <b>"


@pytest.fixture
def random():
    return np.random.default_rng(0)


def shown(axes):
    """Return the array an axes shows."""
    return np.asarray(axes.images[0].get_array())


def row(name="avg", role="tdsm", accuracy=0.5, low=0.4, high=0.6):
    return {"name": name, "role": role, "accuracy": accuracy, "low": low, "high": high}


def kept(method, count):
    return {"method": method, "count": count, "accuracy": 0.5, "ends": (0.4, 0.6)}


def battery():
    """Return figures of ordinary and of degenerate inputs: name -> figure."""
    random = np.random.default_rng(0)
    image, maps = random.random((6, 10, 3)), random.normal(size=(6, 10, 70))
    components = random.normal(size=(70, 6, 10, 3))
    record = {"step": 1, "loss": 0.5, "seconds": 1.0, "psnr": 20.0}
    many = [{"step": s, "loss": 1 / s, "seconds": s} for s in range(1, 201)]
    names = [f"a class of number {k}" for k in range(100)]
    return {
        "reconstructions": pictures.reconstructions(image[None].repeat(20, 0), image[None].repeat(20, 0), [30.0] * 20),
        "reconstructions_one": pictures.reconstructions(np.zeros((1, 8, 8, 1)), np.zeros((1, 8, 8, 1)), [np.inf]),
        "component_grid": pictures.component_grid(image, image, components, range(70)),
        "component_grid_one": pictures.component_grid(image, image, components[:1], [255]),
        "tdsm_slices": pictures.tdsm_slices(image, maps, range(1000, 1070)),
        "tdsm_slices_one": pictures.tdsm_slices(np.zeros((30, 8, 1)), np.ones((30, 8, 1)), [0]),
        "methods": pictures.methods(image, random.normal(size=(4, 8, 6, 10)), ["leave_one_out"] * 4, range(240, 248)),
        "methods_one": pictures.methods(np.zeros((30, 8, 1)), np.zeros((1, 1, 30, 8)), ["solo"], [0]),
        "token_statistics": charts.token_statistics(maps[0], np.abs(maps[0])),
        "token_statistics_one": charts.token_statistics(np.zeros((1, 1)), np.zeros((1, 1))),
        "confusion": charts.confusion(np.full((10, 10), 12345), names[:10]),
        "confusion_many": charts.confusion(np.eye(100), names),
        "confusion_one": charts.confusion(np.zeros((1, 1)), [HOSTILE]),
        "embedding": charts.embedding(random.normal(size=(90, 2)), np.arange(90) % 30, names[:30], "t-SNE"),
        "embedding_one": charts.embedding(np.zeros((1, 2)), [0], [HOSTILE], HOSTILE),
        "curves": charts.curves(many),
        "curves_one": charts.curves([record]),
        "accuracy_bars": charts.accuracy_bars([row(), row("a rather long name of a baseline", "baseline")], 0.1),
        "accuracy_bars_one": charts.accuracy_bars([row(HOSTILE, accuracy=1.0, low=0.9, high=1.0)]),
        "token_counts": charts.token_counts(
            [kept(name, count) for name in ("learned", "stride", "random", "first") for count in (4, 8, 64)],
            kept("all", 256),
        ),
        "handles": charts.handles(
            {edit: np.abs(random.normal(size=(3, 4, 2))) for edit in ("dropped", "kept")},
            ["additive", "attention", "random"],
            [1, 2, 4, 8],
        ),
        "handles_one": charts.handles({"dropped": np.zeros((1, 1, 2)) + 0.1}, ["random"], [1]),
        "token_counts_one": charts.token_counts([kept(HOSTILE, 1)], kept("all", 2)),
    }


@pytest.fixture(scope="module")
def drawn():
    return battery()


def test_every_figure_has_a_caption_and_a_place_in_this_battery(drawn):
    drawings = {
        name: value
        for module in (pictures, charts)
        for name, value in vars(module).items()
        if isinstance(value, style.Drawing)
    }
    assert drawings.keys() == {name.removesuffix("_one").removesuffix("_many") for name in drawn}
    assert all(value.caption.endswith(".") for value in drawings.values())
    assert len({value.caption for value in drawings.values()}) == len(drawings)


def test_nothing_leaves_its_figure(drawn):
    for name, figure in drawn.items():
        (left, bottom), (right, top) = figure.get_tightbbox().get_points()
        width, height = figure.get_size_inches()
        assert min(left, bottom, width - right, height - top) > -0.01, name


def test_no_figure_is_wider_than_a_page_column(drawn):
    assert max(figure.get_size_inches()[0] for figure in drawn.values()) < 11.5


def test_every_figure_becomes_a_png(drawn):
    for figure in drawn.values():
        picture = Image.open(io.BytesIO(style.png(figure, dpi=50)))
        assert picture.size == tuple((figure.get_size_inches() * 50).astype(int))
        assert np.asarray(picture.convert("L")).std() > 1


def test_drawing_leaves_no_global_state():
    before = dict(matplotlib.rcParams)
    charts.curves([{"step": 1, "loss": 0.5, "seconds": 1.0}])
    assert dict(matplotlib.rcParams) == before
    for module in (style, pictures, charts):
        nodes = ast.walk(ast.parse(inspect.getsource(module)))
        assert not any("pyplot" in (node.module or "") for node in nodes if isinstance(node, ast.ImportFrom))
        assert not hasattr(module, "pyplot")


def test_hostile_names_are_shown_as_they_are(drawn):
    names = [label.get_text() for label in drawn["confusion_one"].axes[0].get_xticklabels()]
    assert names == [HOSTILE]
    assert [text.get_text() for text in drawn["embedding_one"].legends[0].get_texts()] == [HOSTILE]
    assert [label.get_text() for label in drawn["accuracy_bars_one"].axes[0].get_yticklabels()] == [HOSTILE]


@pytest.mark.parametrize(
    "draw",
    [
        lambda bad: pictures.reconstructions(bad[None, ..., None], bad[None, ..., None], [1.0]),
        lambda bad: pictures.component_grid(bad[..., None], bad[..., None], bad[None, ..., None], [0]),
        lambda bad: pictures.tdsm_slices(np.zeros((2, 2, 1)), bad[..., None], [0]),
        lambda bad: charts.token_statistics(bad, bad),
        lambda bad: charts.confusion(bad, ["a", "b"]),
        lambda bad: charts.embedding(bad, [0, 0], ["a"], "PCA"),
    ],
    ids=["reconstructions", "component_grid", "tdsm_slices", "token_statistics", "confusion", "embedding"],
)
def test_values_that_cannot_be_drawn_are_refused(draw):
    with pytest.raises(UsageError, match="holds NaN or infinity"):
        draw(np.array([[0.0, np.nan], [1.0, 2.0]]))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (5, 12), (24, 8)], ids=str)
def test_reconstructions_show_images_and_error(random, size, channels):
    images, other = random.random((2, *size, channels)), random.random((2, *size, channels))
    figure = pictures.reconstructions(images, other, [21.04, np.inf])
    assert len(figure.axes) == 3 * 2 + 1
    picture = images if channels == 3 else images[..., 0]
    error = np.abs(images - other).mean(-1)
    np.testing.assert_allclose(shown(figure.axes[1]), picture[1])
    np.testing.assert_allclose(shown(figure.axes[2]), (other if channels == 3 else other[..., 0])[0])
    np.testing.assert_allclose(shown(figure.axes[5]), error[1])
    assert [figure.axes[k].images[0].get_clim() for k in (4, 5)] == [(0, error.max())] * 2
    assert [figure.axes[k].get_xlabel() for k in (4, 5)] == ["21.0 dB", "∞ dB"]
    box = figure.axes[0].get_window_extent()
    assert box.height / box.width == pytest.approx(size[0] / size[1])


def test_a_perfect_reconstruction_has_a_white_error(drawn):
    error = drawn["reconstructions_one"].axes[2].images[0]
    np.testing.assert_array_equal(error.to_rgba(np.zeros((1, 1))), np.ones((1, 1, 4)))
    assert error.get_clim() == (0, 1 / 255)


def test_long_lists_are_cut_and_say_so(drawn):
    assert len(drawn["reconstructions"].axes) == 3 * 12 + 1
    assert drawn["reconstructions"].texts[0].get_text() == "Reconstruction, 12 of 20 images"
    assert len(drawn["component_grid"].axes) == 2 + 64
    assert "first 64 of 70 tokens" in drawn["component_grid"].texts[0].get_text()
    assert len(drawn["tdsm_slices"].axes) == 1 + 64 + 1
    assert "first 64 of 70 tokens" in drawn["tdsm_slices"].texts[0].get_text()


def test_components_are_shifted_clipped_and_the_clipping_is_stated():
    image = np.full((2, 4, 3), 0.25)
    components = np.array([-1.0, 0.0, 3.0, -2.0])[:, None, None, None] * np.ones((4, 2, 4, 3))
    figure = pictures.component_grid(image, image, components, [0, 64, 128, 192])
    assert [axes.get_title() for axes in figure.axes[2:]] == ["0", "64", "128", "192"]
    assert [shown(axes).mean() for axes in figure.axes] == [0.25, 0.25, 0.0, 0.5, 1.0, 0.0]
    assert "50.0 % of values clipped" in figure.texts[0].get_text()


def test_slices_stand_around_their_own_mean_on_one_scale(random):
    maps = random.normal(loc=[5.0, 0.0, -5.0], size=(9, 7, 3))
    figure = pictures.tdsm_slices(np.zeros((9, 7, 3)), maps, [4, 5, 6])
    means = maps.mean((0, 1))
    for k, axes in enumerate(figure.axes[1:4]):
        np.testing.assert_allclose(shown(axes), maps[..., k] - means[k])
        low, high = axes.images[0].get_clim()
        assert low == -high == -np.quantile(np.abs(maps - means), 0.995)
    assert figure.axes[1].get_title() == f"4 · +{means[0]:.2f}"
    assert figure.axes[3].get_title() == f"6 · −{-means[2]:.2f}"
    assert [text.get_text() for text in figure.axes[4].get_xticklabels()] == [f"−{high:.2g}", "0", f"{high:.2g}"]


def test_a_constant_map_is_pale_everywhere(drawn):
    tile = drawn["tdsm_slices_one"].axes[1].images[0]
    np.testing.assert_array_equal(shown(drawn["tdsm_slices_one"].axes[1]), np.zeros((30, 8)))
    assert tile.to_rgba(np.zeros((1, 1)))[0, 0].min() > 0.95


def test_token_statistics_draw_means_and_percentiles(random):
    mean, deviation = random.normal(size=(50, 4)), random.random((50, 4))
    figure = charts.token_statistics(mean, deviation)
    for axes, values in zip(figure.axes, (mean, deviation), strict=True):
        np.testing.assert_allclose(axes.lines[0].get_ydata(), values.mean(0))
        ends = np.array([segment[:, 1] for segment in axes.collections[0].get_segments()])
        np.testing.assert_allclose(ends, np.quantile(values, [0.1, 0.9], axis=0).T)
    assert figure.axes[0].get_title(loc="left").endswith("of 50 images")


def test_confusion_writes_counts_and_shades_shares():
    figure = charts.confusion(np.array([[3, 1, 0], [0, 0, 0], [0, 2, 2]]), ["cat", "dog", "owl"])
    axes = figure.axes[0]
    np.testing.assert_array_equal(shown(axes), [[0.75, 0.25, 0], [0, 0, 0], [0, 0.5, 0.5]])
    assert [text.get_text() for text in axes.texts] == list("310000022")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog", "owl"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")
    assert axes.get_title(loc="left") == "8 test images, 62.5 % correct"


def test_confusion_of_many_classes_only_shades(drawn):
    axes = drawn["confusion_many"].axes[0]
    assert len(axes.texts) == 0
    assert shown(axes).shape == (100, 100)
    assert [label.get_text() for label in axes.get_yticklabels()][1] == "a class of number 3"
    assert len(axes.get_yticklabels()) <= charts.MAX_NAMED_CLASSES


def test_embedding_draws_each_class_at_its_points(random):
    points, labels = random.normal(size=(40, 2)), np.arange(40) % 12
    points[labels == 3] += 50
    figure = charts.embedding(points, labels, [f"c{k}" for k in range(13)], "PCA")
    axes = figure.axes[0]
    for k, dots in enumerate(axes.collections):
        np.testing.assert_allclose(dots.get_offsets(), points[labels == k])
    looks = {(tuple(dots.get_facecolor()[0]), dots.get_paths()[0].vertices.tobytes()) for dots in axes.collections}
    assert len(looks) == 12
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"c{k}" for k in range(12)]
    written = {text.get_text(): text.get_position() for text in axes.texts}
    np.testing.assert_allclose(written["c3"], np.median(points[labels == 3], axis=0))
    assert axes.get_title(loc="left") == "PCA, 40 images"


def test_embedding_refuses_labels_without_a_class():
    with pytest.raises(UsageError, match="labels run from 0 to 2, but there are 2 classes"):
        charts.embedding(np.zeros((2, 2)), [0, 2], ["a", "b"], "PCA")


def test_curves_draw_loss_on_a_log_scale_and_psnr_where_measured():
    history = [{"step": s, "loss": 1 / s, "seconds": 60.0 * s} for s in (1, 2, 3)]
    history[1]["psnr"], history[2]["psnr"] = 22.5, 21.25
    loss, psnr = charts.curves(history).axes
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [[1, 1], [2, 1 / 2], [3, 1 / 3]])
    np.testing.assert_allclose(psnr.lines[0].get_xydata(), [[2, 22.5], [3, 21.25]])
    assert (loss.get_yscale(), psnr.get_yscale()) == ("log", "linear")
    assert loss.get_title(loc="left") == "3 steps in 3 min"
    assert psnr.get_title(loc="left") == "last 21.25 dB, highest 22.50 dB"


def test_curves_without_psnr_have_one_panel_and_a_running_mean(drawn):
    (loss,) = drawn["curves"].axes
    raw, smooth = (line.get_xydata() for line in loss.lines)
    assert len(raw) == 200
    np.testing.assert_allclose(smooth[0], [raw[4, 0], raw[:8, 1].mean()])


def test_curves_of_a_loss_that_reaches_zero_are_linear():
    assert charts.curves([{"step": 1, "loss": 0.0, "seconds": 0.0}]).axes[0].get_yscale() == "linear"


def test_curves_and_bars_refuse_nothing():
    with pytest.raises(UsageError, match="history is empty"):
        charts.curves([])
    with pytest.raises(UsageError, match="there is no row"):
        charts.accuracy_bars([])


def test_bars_are_sorted_coloured_by_role_and_carry_intervals():
    rows = [row("a", "tdsm", 0.25, 0.2, 0.3), row("b", "baseline", 0.5, 0.45, 0.55)]
    figure = charts.accuracy_bars(rows, majority=0.1)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a"]
    assert [bar.get_width() for bar in axes.patches] == [50, 25]
    assert same_color(axes.patches[0].get_facecolor()[:3], style.AMBER)
    assert same_color(axes.patches[1].get_facecolor()[:3], style.BLUE)
    np.testing.assert_allclose([line.get_xdata() for line in axes.lines], [[45, 55], [20, 30], [10, 10]])
    assert [text.get_text() for text in axes.texts] == ["50.0", "25.0"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert [text.get_text() for text in figure.legends[0].get_texts()][-1] == "largest class, 10.0 %"
    assert len(charts.accuracy_bars(rows).axes[0].lines) == 2


def test_pixels_of_an_image_arrive_in_the_png():
    red = np.zeros((1, 8, 8, 3))
    red[..., 0] = 1.0
    figure = pictures.reconstructions(red, red, [np.inf])
    picture = np.asarray(Image.open(io.BytesIO(style.png(figure))).convert("RGB"))
    share = (picture == [255, 0, 0]).all(-1).mean()
    box = figure.axes[0].get_window_extent()
    assert share == pytest.approx(2 * box.width * box.height / (figure.bbox.width * figure.bbox.height), rel=0.05)


def test_every_method_is_drawn_on_its_own_scale(random):
    components = random.normal(size=(2, 3, 6, 6)) * np.array([1.0, 1e-3])[:, None, None, None]
    axes = pictures.methods(np.zeros((6, 6, 1)), components, ["solo", "additive"], [4, 5, 6]).axes
    tiles = [a for a in axes[1:] if a.images]
    assert len(tiles) == 6
    for tile, values in zip(tiles, components.reshape(6, 6, 6), strict=True):
        np.testing.assert_array_equal(shown(tile), values)
    for row in (tiles[:3], tiles[3:]):
        assert {a.images[0].get_clim() for a in row} == {(-(m := max(np.abs(shown(a)).max() for a in row)), m)}
