import json
import re
from pathlib import Path

import pytest
import torch

import tdsm
from tdsm.base import io
from tdsm.data import load_data
from tdsm.features.store import read_shards
from tests import tinyrun
from tests.samples import all_floats
from tests.tinyrun import RESULTS, colour_arrays, content, demo, digits, tiny, write_yaml


def table(path: Path) -> dict[str, tuple]:
    rows = json.loads((path / "table.json").read_text())
    return {row["name"]: (row["correct"], row["n_test"], row["validation_accuracy"], row["settings"]) for row in rows}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished demo; only to be read."""
    return demo(tmp_path_factory.mktemp("demo") / "run")


def test_a_demo_leaves_all_it_promises(finished):
    names = content(finished)
    for file in (
        "config.json",
        "environment.json",
        "field/curves.json",
        "quality/quality.json",
        "table.md",
        "table.json",
    ):
        assert file in names
    assert {"report.html", "field/config.json", "field/model.safetensors", "field/manifest.json"} <= names.keys()
    for row in tinyrun.ROWS:
        assert {f"rows/{row}/choice.json", f"rows/{row}/manifest.json", f"scores/{row}/score.json"} <= names.keys()
    pictures = sorted(name for name in names if name.endswith(".png"))
    assert len(pictures) >= 11
    assert all((finished / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert not [name for name in names if name.endswith((".tmp", ".pt", ".pkl", ".npy"))]
    io.verify_folder(finished / "field")


def test_the_page_is_whole_and_loads_nothing(finished):
    page = (finished / "report.html").read_text()
    assert page.count("<svg xmlns") == page.count('class="chart"') >= 5
    assert 'http-equiv="Content-Security-Policy"' in page
    assert 'src="http' not in page
    assert all(row in page for row in tinyrun.ROWS)
    assert "fourier_scale" in page


def kept(path):
    """Hash a run's files; of its page, which tells how long its commands took, the figures and tables."""
    page = re.findall(r"<(figure|table)\b(.*?)</\1>", (path / "report.html").read_text(), re.DOTALL)
    return content(path) | {"report.html": page}


def test_resuming_a_finished_demo_prints_the_reports_path_and_changes_nothing(tmp_path, capsys):
    path = demo(tmp_path / "run")
    before, times = kept(path), {file: file.stat().st_mtime_ns for file in path.glob("features/**/*")}
    capsys.readouterr()
    assert tinyrun.tdsm("demo", "--run", path, "--resume") == 0
    assert capsys.readouterr().out == f"{path}/report.html\n"
    assert kept(path) == before
    assert {file: file.stat().st_mtime_ns for file in times} == times


def test_stage_by_stage_is_the_same_as_in_one_go(tmp_path, capsys, finished):
    path, config = tmp_path / "run", write_yaml(tmp_path / "tiny.yaml")
    outputs = []
    stages = (("classify", path), ("evaluate", path), ("report", path))
    for arguments in (("train", "--config", config, "--run", path), *stages):
        assert tinyrun.tdsm(*arguments) == 0
        outputs.append(capsys.readouterr().out.strip())
    assert outputs == [str(path), "", str(path / "table.md"), str(path / "report.html")]
    assert table(path) == table(finished)
    for patterns in (("scores/*/*.safetensors",), ("rows/*/*.safetensors",), ("field/*.s*",), ("features/**/*",)):
        assert content(path, *patterns) == content(finished, *patterns)
    assert content(path, *RESULTS).keys() == content(finished, *RESULTS).keys()


SAME = ("field/model.safetensors", "field/config.json", "config.json", "data/*")


def test_another_seed_gives_another_run(tmp_path, finished):
    config = write_yaml(tmp_path / "tiny.yaml", probe__rows=("tdsm-avg",))
    assert tinyrun.tdsm("train", "--config", config, "--run", tmp_path / "run", "--seed", 1) == 0
    assert content(tmp_path / "run", "field/model.safetensors") != content(finished, "field/model.safetensors")


def test_a_run_can_be_started_again_from_its_config(tmp_path, finished):
    arguments = ("--config", finished / "config.json", "--run", tmp_path / "run")
    assert tinyrun.tdsm("train", *arguments) == 0
    assert content(tmp_path / "run", *SAME) == content(finished, *SAME)


def test_a_finished_run_is_a_field_to_python(finished):
    field = tdsm.load_field(finished)
    images = digits().test.floats([0, 1])
    with torch.no_grad():
        maps = tdsm.spatial_map(field, field.encode(images), size=(8, 8))
    stored = read_shards(finished / "features/trained/test/tdsm", 60)[0][:2]
    torch.testing.assert_close(maps.half(), stored)


COLOUR_ROWS = ("tdsm-avg", "tdsm-linear", "pixels-linear", "pixels-knn", "tokens-transformer", "values-linear")


def test_colour_and_sides_that_differ_and_every_option(tmp_path, capsys):
    path, source = tmp_path / "run", colour_arrays(tmp_path / "colours.npz", size=(12, 10))
    config = write_yaml(
        tmp_path / "tiny.yaml",
        data={"source": str(source)},
        train__augment={"crop": 1, "flip": True},
        train__num_queries=30,
        train__objectives={"full": 0, "sparse_context": 1},
        train__context_fraction=0.5,
        maps={"reduction": "rgb", "selection": "stride:2", "size": (6, 7)},
        probe__views=1,
        probe__augment={"crop": 2, "flip": True},
        probe__rows=COLOUR_ROWS,
        probe__epochs=20,
    )
    assert tinyrun.tdsm("demo", "--config", config, "--run", path) == 0
    assert capsys.readouterr().out == f"{path}/report.html\n"
    counts_of = {"train": 43, "train-view1": 43, "validation": 5, "test": 12}
    features = {
        split: {name: read_shards(path / f"features/trained/{split}/{name}", count)[0] for name in ("tdsm", "pixels")}
        for split, count in counts_of.items()
    }
    counts = {split: len(tensors["tdsm"]) for split, tensors in features.items()}
    assert counts["train"] == counts["train-view1"] > counts["validation"] > 0
    assert counts["train"] + counts["validation"] + counts["test"] == 60
    for tensors in features.values():
        assert tensors["tdsm"].shape[1:] == (6, 7, 2 * 3)  # every second of 4 tokens, 3 colours each
        assert tensors["pixels"].shape[1:] == (12, 10, 3)
    data = load_data(tiny(data={"source": str(source)}).data, 0)
    for split in ("validation", "test"):
        assert torch.equal(features[split]["pixels"], all_floats(getattr(data, split)).movedim(1, -1))
    assert table(path).keys() == set(COLOUR_ROWS)
    correct, total, *_ = table(path)["pixels-linear"]
    assert correct / total > 0.9  # the classes differ in colour
