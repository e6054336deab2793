"""Images of any place are classified as the run's own were: the same pixels, features and heads."""

import csv
import io as text_io
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tdsm.base.errors import CheckpointError, DataError, UsageError
from tdsm.pipeline.predict import predict_images
from tdsm.pipeline.rows import read_predictions
from tests.tinyrun import ROWS, colour_arrays, demo, finished, tdsm, trained

COUNT = 25  # test images asked about


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return demo(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def pictures(run, tmp_path_factory):
    """The first test images of the run, as files."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(finished(run).data.test.bytes(range(COUNT))):
        Image.fromarray(image[0].numpy()).save(folder / f"{number}.png")
    return folder


@pytest.mark.parametrize("row", ROWS)
def test_a_test_image_gets_the_class_that_evaluation_gave_it(run, pictures, row):
    found = predict_images(run, [pictures], row=row)
    assert found.row == row
    assert np.array_equal(found.probabilities.argmax(axis=1), read_predictions(finished(run), row)[0, :COUNT])
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1)
    assert found.names[2].endswith("/2.png"), "natural order"


def test_the_best_row_by_validation_is_taken(run, pictures):
    best = max(
        finished(run).path.glob("rows/*/choice.json"),
        key=lambda f: json.loads(f.read_text())["fits"][0]["validation_accuracy"],
    )
    assert predict_images(run, [pictures / "0.png"]).row == best.parent.name == "pixels-knn"


def test_the_data_of_the_run_need_not_be_there(tmp_path):
    arrays = colour_arrays(tmp_path / "set.npz", size=(8, 8))
    run = trained(tmp_path / "run", data={"source": f"npz:{arrays}"}, field__channels=3, probe__rows=("pixels-knn",))
    assert tdsm("classify", run.path) == 0
    arrays.unlink()
    Image.fromarray(np.full((8, 8, 3), (250, 10, 10), np.uint8)).save(tmp_path / "red.png")
    found = predict_images(run.path, [tmp_path / "red.png"])
    assert found.classes[found.probabilities.argmax()] == "0"


def test_images_are_decoded_as_those_of_the_run(run, tmp_path):
    random = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(random).save(tmp_path / "wide.png")
    assert predict_images(run, [tmp_path]).probabilities.shape == (1, 10)  # grey, 8 × 8


def test_images_of_another_size_are_refused_where_the_runs_are_not_square(tmp_path):
    arrays = colour_arrays(tmp_path / "set.npz", size=(12, 10))
    run = trained(tmp_path / "run", data={"source": f"npz:{arrays}"}, field__channels=3, probe__rows=("majority",))
    assert tdsm("classify", run.path) == 0
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a.png: 9×9 pixels .*, expected 12×10, the size of the run"):
        predict_images(run.path, [tmp_path / "a.png"])


def test_seeds_are_averaged(tmp_path, pictures):
    run = trained(tmp_path / "run", probe__rows=("pixels-linear",), probe__seeds=2).path
    assert tdsm("classify", run) == 0
    both = predict_images(run, [pictures]).probabilities
    assert both.shape == (COUNT, 10)
    np.testing.assert_allclose(both.sum(axis=1), 1)


def test_classes_are_written_as_csv_json_and_parquet(run, pictures, tmp_path, capsys):
    capsys.readouterr()
    assert tdsm("predict", run, pictures, "--row", "tokens-avg") == 0
    captured = capsys.readouterr()
    assert captured.err == f"predict {run}: taking it up\nrow tokens-avg, validation 8.3 %\n"
    shown = list(csv.DictReader(text_io.StringIO(captured.out)))
    assert list(shown[0])[:4] == ["image", "class", "probability", "p(0)"]
    for ending in ("csv", "json", "parquet"):
        file = tmp_path / f"out.{ending}"
        assert tdsm("predict", run, pictures, "--row", "tokens-avg", "--to", file) == 0
        assert capsys.readouterr().out == f"{file}\n"
    assert (tmp_path / "out.csv").read_text() == captured.out
    entries = json.loads((tmp_path / "out.json").read_text())
    assert entries == pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert [entry["class"] for entry in entries] == [entry["class"] for entry in shown]
    assert [float(entry["probability"]) for entry in shown] == [max(e[f"p({k})"] for k in range(10)) for e in entries]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"row": "pixel-knn"}, UsageError, "unknown row 'pixel-knn', perhaps you meant 'pixels-knn'"),
        ({"row": "tdsm-max"}, CheckpointError, "row tdsm-max is not fitted .*First: tdsm classify"),
        ({"images": "nowhere.png"}, DataError, "nowhere.png: no such file or folder"),
        ({"images": "empty"}, DataError, "empty: no images here"),
        ({"images": "broken.png"}, DataError, "broken.png: not an image"),
    ],
)
def test_what_cannot_be_done_is_said(run, pictures, tmp_path, arguments, error, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.png").write_text("no picture")
    images = tmp_path / arguments["images"] if "images" in arguments else pictures
    with pytest.raises(error, match=words):
        predict_images(run, [images], row=arguments.get("row"))


def test_an_ending_that_cannot_be_written_is_refused_at_once(run, pictures, capsys):
    assert tdsm("predict", run, pictures, "--to", "out.xlsx") == 2
    assert "expected a file that ends in .csv, .json, .parquet" in capsys.readouterr().err


def test_rows_of_another_field_do_not_count(run, pictures, tmp_path):
    other = trained(tmp_path / "other", train__steps=9).path
    shutil.copytree(run / "rows", other / "rows")
    with pytest.raises(CheckpointError, match="row tokens-avg is not fitted to the field that is there"):
        predict_images(other, [pictures], row="tokens-avg")
    assert predict_images(other, [pictures], row="majority").row == "majority"
