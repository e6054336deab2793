import json
import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from tdsm.base.randomness import generator
from tdsm.base.text import Table
from tdsm.data import Data, ImageSet
from tdsm.data.sampling import stratified_sample
from tdsm.features.config import MapConfig
from tdsm.figures import charts, pictures
from tdsm.pipeline.findings import write_findings
from tdsm.pipeline.quality import reconstruction_of
from tdsm.pipeline.rows import read_predictions, scored_rows
from tdsm.pipeline.run import Run
from tdsm.pipeline.table import best
from tdsm.report import gather as module
from tdsm.report.gather import gather
from tests.tinyrun import demo, finished

PICTURES = {"reconstructions", "components-0", "components-1", "tdsm-0", "tdsm-1"}
STATISTICS = {"token-statistics", "pca", "t-sne"}
RESULTS = {"accuracy", "confusion-tdsm", "confusion-baseline"}


class Closed(ImageSet):
    """Images nobody may look at."""

    def floats(self, indices=None):
        raise AssertionError("the training images were opened")

    def subset(self, indices):
        raise AssertionError("the training images were opened")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(demo(tmp_path_factory.mktemp("demo") / "run"))


def read(run, name):
    return json.loads((run.path / f"{name}.json").read_text())


def gathered(run, table=None, history=None):
    made = gather(run, scored_rows(run) if table is None else table, history or [], reconstruction_of(run))
    plt.close("all")
    return made


def test_the_report_shows_all_it_must(run):
    inputs = gathered(run, history=read(run, "field/curves"))
    assert inputs.figures.keys() == PICTURES | STATISTICS | RESULTS | {"curves"}
    assert all(isinstance(figure, Figure) and caption for figure, caption in inputs.figures.values())
    assert inputs.config == run.config.model_dump(mode="json")
    assert inputs.rows == read(run, "table")
    assert inputs.notes == run.data.notes
    assert inputs.environment["versions"]["torch"]
    assert inputs.command == read(run, "environment")["command"]
    assert f"{reconstruction_of(run)['psnr']:.2f} dB" in inputs.summary[0]
    assert inputs.summary[1] == reconstruction_of(run)["sanity"]
    assert (inputs.field["training images"], inputs.field["test images"]) == (108, 60)


def test_a_field_that_was_not_trained_here_has_no_curves(run):
    assert "curves" not in gathered(run).figures


def test_no_figure_is_made_of_training_or_validation_images(run, monkeypatch):
    asked = []
    whole = Run.samples

    def spy(run, row, split):
        asked.append(split)
        return whole(run, row, split)

    monkeypatch.setattr(Run, "samples", spy)
    closed = {
        name: Closed(part.images, part.labels, part.ids, part.classes)
        for name, part in (("train", run.data.train), ("validation", run.data.validation))
    }
    data = Data(**closed, test=run.data.test, name=run.data.name, notes=run.data.notes)
    gather(replace(run, data=data), scored_rows(run), [], reconstruction_of(run))
    plt.close("all")
    assert asked == ["test"]


def spy_on(monkeypatch, module, name):
    calls = []
    whole = getattr(module, name)
    spy = replace(whole, draw=lambda *arguments: calls.append(arguments) or whole.draw(*arguments))
    monkeypatch.setattr(module, name, spy)
    return calls


def drawn_images(run, count):
    return stratified_sample(run.data.test.labels, count, generator(run.config.seed, "report"))


def test_pictures_are_of_the_test_images_and_the_selected_tokens(run, monkeypatch):
    shown, grids = (spy_on(monkeypatch, pictures, name) for name in ("reconstructions", "component_grid"))
    config = run.config.model_copy(update={"maps": MapConfig(selection="stride:2")})
    module._pictures(replace(run, config=config))
    plt.close("all")
    (images, reconstruction, ratios) = shown[0]
    rows = drawn_images(run, 8)
    expected = run.data.test.images[rows].movedim(1, -1).numpy() / 255
    np.testing.assert_allclose(images, expected, atol=1e-6)
    errors = ((np.clip(reconstruction, 0, 1) - expected) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(ratios, 10 * np.log10(1 / errors), atol=1e-3)
    assert [list(arguments[3]) for arguments in grids] == [[0, 2], [0, 2]]
    labels = run.data.test.labels[rows]
    second = next(row for row, label in zip(rows, labels, strict=True) if label != labels[0])
    np.testing.assert_allclose(grids[1][0], run.data.test.images[second].movedim(0, -1).numpy() / 255, atol=1e-6)
    tokens = run.field.encode(run.data.test.floats(second[None]))[:, 2:3]
    alone = run.field.decode(tokens, size=(8, 8))[0].detach().numpy()
    np.testing.assert_allclose(grids[1][2][1], alone, atol=1e-5)


def test_shares_of_the_largest_class_stand_in_the_chart(run, monkeypatch):
    calls = spy_on(monkeypatch, charts, "accuracy_bars")
    module._results(run, read(run, "table"))
    assert calls[0][1] == run.data.test.labels.bincount().max().item() / 60


def test_what_was_found_out_is_shown(run):
    tables = [Table("One", ["tokens"], [["4"]], findings=["Few do."]), Table("Two", ["a"], [["b"]], ["a"])]
    rows = [{"method": name, "count": 2, "accuracy": 0.5, "ends": [0.4, 0.6]} for name in ("random", "all")]
    _, text = write_findings(run, "study-tokens", tables, {"rows": rows})
    assert "### One\n\nFew do.\n\n| tokens |" in text
    inputs = gathered(run)
    shutil.rmtree(run.path / "findings")
    assert [table.title for table in inputs.tables] == ["One", "Two"]
    assert "token-counts" in inputs.figures
    assert "methods" not in inputs.figures


def test_confusions_are_of_the_rows_that_validation_chose(run, monkeypatch):
    calls = spy_on(monkeypatch, charts, "confusion")
    drawn = module._results(run, read(run, "table"))
    plt.close("all")
    for role, (matrix, classes) in zip(("tdsm", "baseline"), calls, strict=True):
        row = best(read(run, "table"), role)
        (predicted,) = read_predictions(run, row["name"])
        expected = np.zeros((10, 10), dtype=int)
        np.add.at(expected, (run.data.test.labels.numpy(), predicted.numpy()), 1)
        np.testing.assert_array_equal(matrix, expected)
        assert np.trace(matrix) == row["correct"]
        assert classes == run.data.test.classes
        assert row["name"] in drawn[f"confusion-{role}"][1]


def test_confusions_count_every_image_once_a_seed(run, monkeypatch):
    calls, table = spy_on(monkeypatch, charts, "confusion"), read(run, "table")
    seeds = torch.stack([run.data.test.labels, (run.data.test.labels + 1) % 10, run.data.test.labels])
    monkeypatch.setattr(module, "read_predictions", lambda run, name: seeds)
    drawn = module._results(run, table)
    plt.close("all")
    counts = np.bincount(run.data.test.labels, minlength=10)
    np.testing.assert_array_equal(calls[0][0], 2 * np.diag(counts) + np.roll(np.diag(counts), 1, axis=1))
    assert drawn["confusion-tdsm"][1].endswith("Every image counts once for each of 3 seeds.")


def test_rows_of_one_role_alone_make_one_confusion(run):
    table = [row for row in read(run, "table") if row["role"] == "baseline"]
    names = gathered(run, table=table).figures.keys()
    assert "confusion-baseline" in names
    assert "confusion-tdsm" not in names


def test_statistics_are_of_the_stored_test_maps(run, monkeypatch):
    calls, embedded = (spy_on(monkeypatch, charts, name) for name in ("token_statistics", "embedding"))
    monkeypatch.setattr(module, "EMBEDDED_IMAGES", 20)
    module._statistics(run)
    plt.close("all")
    maps = run.samples(module.ROWS["tdsm-avg"], "test").features[drawn_images(run, 20)].numpy()
    np.testing.assert_allclose(calls[0][0], maps.mean(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(calls[0][1], maps.std(axis=(1, 2)), atol=1e-5)
    for points, labels, *_ in embedded:
        assert points.shape == (20, 2)
        np.testing.assert_array_equal(labels, run.data.test.labels[drawn_images(run, 20)])


def test_too_few_images_are_not_embedded():
    assert module._tsne(torch.randn(9, 4)) is None
    assert module._tsne(torch.randn(10, 4)).shape == (10, 2)
    assert module._pca(torch.randn(5, 1)) is None
    assert module._pca(torch.randn(5, 2)).shape == (5, 2)
