import json

import pytest
import torch

from tdsm.base.randomness import generator
from tdsm.base.statistics import psnr
from tdsm.data.sampling import stratified_sample
from tdsm.decomposition import decompose
from tdsm.models.load import load_field
from tdsm.study import objectives as module
from tdsm.study.config import ObjectiveStudyConfig
from tdsm.study.objectives import COLUMNS, objectives_table, run_objectives
from tests.tinyrun import content, demo, digits, tdsm, unprinted

TINY = {"steps": 5, "images": 6, "size": (4, 4), "epochs": 1, "learning_rates": (1e-2,), "max_train": 40}
SMALL = ObjectiveStudyConfig.model_validate(TINY | {"seeds": 2, "objectives": ("full", "mixture", "nested")})


@pytest.fixture(scope="module")
def rows(run):
    return run_objectives(run, SMALL)


def test_every_objective_is_measured_for_every_seed(rows):
    asked = [(name, seed) for name in ("full", "mixture", "nested") for seed in (0, 1)]
    assert [(row["objective"], row["seed"]) for row in rows] == asked
    assert len({row["psnr"] for row in rows}) == len(rows), "each its own field"
    assert all(row["images"] == 6 and row["psnr_images"] == 60 and row["train_images"] == 40 for row in rows)


def test_fields_differ_in_the_objective_alone(run, rows):
    for name in ("full", "mixture", "nested"):
        field = load_field(run.path / module.FOLDER / name / "seed-0")
        assert field.config == run.field.config.model_copy(update={"has_masks": name == "mixture"})
        training = module._training(run, name, 5)
        assert {key for key, weight in training.objectives.items() if weight} == {name}
        assert training.model_copy(update={"objectives": run.config.train.objectives, "steps": 8}) == run.config.train


def test_the_numbers_are_those_of_the_field(run, rows):
    row = next(row for row in rows if row["objective"] == "full")
    field, test = load_field(run.path / module.FOLDER / "full" / "seed-0"), digits().test
    images = test.floats(stratified_sample(test.labels, 6, generator(run.config.seed, "components")))
    target = images.movedim(1, -1)
    with torch.no_grad():
        tokens = field.encode(images)
        solo = decompose(field, tokens, size=(8, 8))
        alone = torch.stack([psnr(target, solo.components[:, k]) for k in range(4)])
        everything = digits().test.floats(torch.arange(60))
        quarter = psnr(everything.movedim(1, -1), field.decode(field.encode(everything)[:, [0]], size=(8, 8)))
    assert row["psnr_one"] == pytest.approx(alone.mean().item(), rel=1e-5)
    assert row["psnr_quarter"] == pytest.approx(quarter.mean().item(), rel=1e-5)
    assert row["completeness_error"] == pytest.approx(solo.completeness_error.mean().item(), rel=1e-4)


def test_a_mixture_adds_up_by_construction(rows):
    assert all(row["own_error"] < 1e-5 for row in rows if row["objective"] == "mixture")


def test_what_was_measured_is_not_measured_again(run, rows, monkeypatch):
    before = content(run.path / module.FOLDER)
    monkeypatch.setattr(module, "_reconstruction", None)
    assert run_objectives(run, SMALL) == rows
    assert content(run.path / module.FOLDER) == before


def test_more_seeds_and_objectives_may_come_later(run, rows):
    one = SMALL.model_copy(update={"seeds": 1, "objectives": ("nested",)})
    assert run_objectives(run, one) == [row for row in rows if (row["objective"], row["seed"]) == ("nested", 0)]


def test_the_table_has_means_and_deviations(rows):
    text = objectives_table(rows, SMALL).markdown()
    nested = [row["psnr"] for row in rows if row["objective"] == "nested"]
    line = next(line for line in text.splitlines() if line.startswith("| nested"))
    assert f"| {sum(nested) / 2:.2f} ± {abs(nested[0] - nested[1]) / 2**0.5:.2f} |" in line
    assert all(f"| {title} |" in text for title in COLUMNS.values())
    one = [row for row in rows if row["seed"] == 0]
    assert "±" not in objectives_table(one, SMALL.model_copy(update={"seeds": 1})).lines[0][1]


def test_the_command_writes_the_table(tmp_path, capsys):
    path = demo(tmp_path / "run")
    options = ["--steps", 2, "--images", 4, "--size", 4, 4, "--epochs", 1, "--max-train", 40, "--objectives", "full"]
    capsys.readouterr()
    assert tdsm("study", "objectives", path, *options) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{path}/study-objectives.md\n"
    assert unprinted((path / "study-objectives.md").read_text(), captured.err) == set()
    kept = json.loads((path / "findings" / "study-objectives" / "facts.json").read_text())
    assert kept["settings"]["steps"] == 2
    assert [row["objective"] for row in kept["rows"]] == ["full"]
