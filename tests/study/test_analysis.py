import dataclasses
import json

import pytest
import torch

from tdsm.base.errors import UsageError
from tdsm.base.randomness import generator
from tdsm.classification.rows import ROWS
from tdsm.data.sampling import stratified_sample
from tdsm.decomposition import decompose
from tdsm.decomposition.measures import class_selectivity, match_tokens, redundancy
from tdsm.figures.tiles import Gallery
from tdsm.pipeline.findings import read_findings
from tdsm.pipeline.quality import reconstruction_of
from tdsm.pipeline.rows import scored_rows
from tdsm.report.gather import gather
from tdsm.report.page import render
from tdsm.study.analysis import analyse, analysis_table
from tests.tinyrun import demo, finished, tdsm, trained, unprinted

METHODS = ("solo", "additive", "leave_one_out", "attention")


@pytest.fixture
def run(tmp_path):
    return finished(demo(tmp_path / "run"))


def by_method(analysis):
    return {row["method"]: row for row in analysis["rows"]}


def drawn(run, count):
    return stratified_sample(run.data.test.labels, count, generator(run.config.seed, "analysis"))


def test_what_is_tabulated_is_what_the_measures_say(run):
    rows = by_method(analyse(run, 20, batch_size=7))
    assert tuple(rows) == METHODS
    images = run.data.test.floats(drawn(run, 20))
    with torch.no_grad():
        for method, row in rows.items():
            result = decompose(run.field, run.field.encode(images), size=(8, 8), method=method)
            assert row["redundancy"] == pytest.approx(redundancy(result.components).mean().item(), abs=1e-5)
            assert row["completeness_error"] == pytest.approx(result.completeness_error.mean().item(), rel=1e-3)
    assert rows["additive"]["completeness_error"] < 1e-2 < rows["solo"]["completeness_error"]


def test_each_batch_is_encoded_once_for_all_methods(run, monkeypatch):
    encode, encoded = type(run.field).encode, []

    def counted(field, images, *args):
        encoded.append(len(images))
        return encode(field, images, *args)

    monkeypatch.setattr(type(run.field), "encode", counted)
    analyse(run, 20, batch_size=10)
    assert encoded == 2 * [10, 10, 10]  # as it is, noised, shifted


def test_batches_change_nothing_but_the_noise(run):
    one, other = (by_method(analyse(run, 12, batch_size=size)) for size in (12, 5))
    for method in METHODS:
        for name in ("completeness_error", "effective_rank", "spread", "shift_stability", "class_selectivity"):
            assert one[method][name] == pytest.approx(other[method][name], rel=1e-4, abs=1e-5)


def test_a_set_sorted_by_class_is_measured_in_all_its_classes(run):
    by_class = run.data.test.subset(run.data.test.labels.argsort(stable=True))
    test = dataclasses.replace(run.data, test=by_class)
    rows = by_method(analyse(dataclasses.replace(run, data=test), 20))
    first = by_class.floats(torch.arange(20))  # of three digits alone
    with torch.no_grad():
        one_sided = decompose(run.field, run.field.encode(first[:6]), size=(8, 8)).components
    assert class_selectivity(one_sided, by_class.labels[:6]).max() < 1e-6  # one class
    assert rows["solo"]["class_selectivity"] > 0.1


def test_no_more_images_than_there_are(run):
    assert analyse(run, 10**6)["images"] == 60


def test_tokens_are_matched_with_those_of_another_seed(run, tmp_path):
    config = run.config.model_dump()
    other = trained(tmp_path / "other", seed=0, train__steps=4)
    rows = by_method(analyse(run, 10, other))
    images = run.data.test.floats(drawn(run, 10))
    with torch.no_grad():
        pair = [decompose(r.field, r.field.encode(images), size=(8, 8)).components for r in (run, other)]
    assert rows["solo"]["seed_stability"] == pytest.approx(match_tokens(*pair)[1].mean().item(), abs=1e-5)
    assert run.config.model_dump() == config


def test_a_run_of_other_images_is_refused(run, tmp_path):
    other = trained(tmp_path / "other", seed=1, data={"source": "digits", "max_test": 30}, train__steps=0)
    with pytest.raises(UsageError, match="has other test images than"):
        analyse(run, 10, other)


def test_the_command_prints_the_table_and_the_report_shows_it(tmp_path, capsys):
    path = demo(tmp_path / "run")
    assert read_findings(finished(path)) == {}
    capsys.readouterr()
    assert tdsm("analyse", path, "--images", 12) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{path}/analysis.md\n"
    text = (path / "analysis.md").read_text()
    assert unprinted(text, captured.err) == set()
    kept = json.loads((path / "findings" / "analysis" / "facts.json").read_text())
    assert kept["images"] == 12
    (table,) = read_findings(finished(path))["analysis"]["tables"]
    assert table.markdown() == analysis_table(kept).markdown()
    assert [line[0] for line in table.lines] == list(METHODS)
    assert all(len(line) == len(table.headings) for line in table.lines)
    run = finished(path)
    gathered = gather(run, scored_rows(run), reconstruction_of(run))
    galleries = [block for section in gathered.sections for block in section.blocks if isinstance(block, Gallery)]
    assert {method.replace("_", " ") for method in METHODS} <= {row for block in galleries for row in block.rows}
    page = render(gathered)
    assert all(f">{cell}</td>" in page for line in table.lines for cell in line)
    assert "Means over a stratified draw of 12 test images." in page


def test_a_field_with_masks_is_measured_as_the_mixture_it_is(tmp_path):
    run = trained(tmp_path / "run", field__has_masks=True)
    rows = by_method(analyse(run, 6))
    assert tuple(rows) == ("solo", "mixture")
    assert rows["mixture"]["completeness_error"] < 1e-5 < rows["solo"]["completeness_error"]


@pytest.mark.parametrize("method", [*METHODS, "mixture"])
def test_a_run_can_classify_from_any_decomposition(tmp_path, method):
    path = tmp_path / "run"
    changes = {"maps": {"method": method, "selection": "first:3"}, "field__has_masks": method == "mixture"}
    trained(path, **changes, probe__rows=("tdsm-avg",))
    assert [tdsm(verb, path) for verb in ("classify", "evaluate", "report")] == [0, 0, 0]
    assert (f"show '{method}'" in (path / "table.md").read_text()) == (method != "solo")
    run = finished(path)
    stored = run.samples(ROWS["tdsm-avg"], "test").features[torch.arange(5)]
    with torch.no_grad():
        tokens = run.field.encode(run.data.test.floats(torch.arange(5)))
        parts = decompose(run.field, tokens, size=(8, 8), method=method, selection="first:3")
    torch.testing.assert_close(stored, parts.components.mean(dim=-1).movedim(1, -1), rtol=2e-3, atol=2e-3)
