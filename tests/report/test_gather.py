import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from tdsm.base.randomness import generator
from tdsm.base.text import Table
from tdsm.classification.evidence import class_evidence
from tdsm.data import Data, ImageSet
from tdsm.data.sampling import stratified_sample
from tdsm.features.config import MapConfig
from tdsm.figures import charts, tiles
from tdsm.models.load import load_field
from tdsm.pipeline.findings import write_findings
from tdsm.pipeline.quality import reconstruction_of
from tdsm.pipeline.rows import is_right, read_classifiers, read_predictions, scored_rows
from tdsm.pipeline.run import Run
from tdsm.pipeline.table import best
from tdsm.report import compare, scored, shown
from tdsm.report.blocks import Beside, Chart, Code, Flow, Fold, Said, Scores
from tdsm.report.blocks import Data as Settings
from tdsm.report.card import write_card
from tdsm.report.gather import gather
from tests.tinyrun import demo, finished


class Closed(ImageSet):
    """Images nobody may look at."""

    def floats(self, indices=None):
        raise AssertionError("the training images were opened")

    def subset(self, indices):
        raise AssertionError("the training images were opened")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(demo(tmp_path_factory.mktemp("demo") / "run"))


@pytest.fixture(scope="module")
def table(run):
    return scored_rows(run)


@pytest.fixture(scope="module")
def seen(run):
    return shown.Seen(run, shown.methods_shown(run, is_analysed=False))


@pytest.fixture(scope="module")
def page(run):
    return gather(run, scored_rows(run), reconstruction_of(run))


def blocks_of(page, kind):
    def flat(blocks):
        for block in blocks:
            yield block
            yield from flat(block.blocks if isinstance(block, Beside | Fold) else ())

    return [
        block
        for block in flat([*page.top, *(block for section in page.sections for block in section.blocks)])
        if isinstance(block, kind)
    ]


def drawn_images(run, count):
    return stratified_sample(run.data.test.labels, count, generator(run.config.seed, "report"))


def pixels(run, rows):
    return run.data.test.images[rows].movedim(-3, -1).numpy()[..., [0, 0, 0]]


def test_the_page_shows_all_it_must(run, page, table):
    assert [section.name for section in page.sections if section.blocks] == [
        *("tokens", "classes", "evidence", "mistakes", "studies", "training", "reproduce"),
    ]
    assert isinstance(page.top[0], Flow)
    said = " ".join(sentence for block in blocks_of(page, Said) for sentence in block.sentences)
    quality = reconstruction_of(run)
    for words in (f"{quality['psnr']:.2f} dB", quality["sanity"], "Always naming the largest class", *run.notes()):
        assert words in said
    names = [chart.name for chart in blocks_of(page, Chart)]
    expected = ["token-statistics", "pca", "t-sne", "accuracy", "confusion-tdsm", "confusion-baseline", "curves"]
    assert sorted(names) == sorted(expected)
    few, everything = blocks_of(page, Scores)
    assert {row["name"] for row in everything.rows} == {row["name"] for row in table}
    assert len(few.rows) <= 2 * scored.SHORT
    validations = [row["validation_accuracy"] for row in everything.rows]
    assert validations == sorted(validations, reverse=True)
    assert blocks_of(page, Settings)[0].values == run.config.model_dump(mode="json")


def test_the_commands_that_made_it_are_all_there(run, page):
    noted = json.loads((run.path / "commands.json").read_text())
    assert blocks_of(page, Code)[-1].text.splitlines() == [entry["command"] for entry in noted]
    assert page.facts[1].endswith(" in all")


def test_no_picture_is_made_of_training_or_validation_images(run, monkeypatch):
    asked, whole = [], Run.samples

    def spy(run, row, split):
        asked.append(split)
        return whole(run, row, split)

    monkeypatch.setattr(Run, "samples", spy)
    closed = {
        name: Closed(part.images, part.labels, part.ids, part.classes)
        for name, part in (("train", run.data.train), ("validation", run.data.validation))
    }
    seen = replace(run, data=Data(**closed, test=run.data.test, name=run.data.name, notes=run.data.notes))
    gather(seen, scored_rows(seen), reconstruction_of(seen))
    assert set(asked) == {"test"}


def test_pictures_are_of_the_test_images_and_the_selected_tokens(run):
    config = run.config.model_copy(update={"maps": MapConfig(selection="stride:2")})
    seen = shown.Seen(replace(run, config=config), ("solo", "additive"))
    with torch.no_grad():
        galleries = [shown.tokens_of(seen, image) for image in range(3)]
    rows = drawn_images(run, 8)
    labels = run.data.test.labels[rows]
    firsts = [rows[(labels == label).nonzero()[0, 0]] for label in dict.fromkeys(labels.tolist())][:3]
    for gallery, row in zip(galleries, firsts, strict=True):
        np.testing.assert_array_equal(gallery.references[0][1], pixels(run, row))
        assert sorted(gallery.labels) == ["token 0", "token 2"]
        assert gallery.rows == ["solo", "solo map", "additive"]
    tokens = run.field.encode(run.data.test.floats(firsts[1][None]))[:, 2:3]
    alone = run.field.decode(tokens, size=(8, 8))[0].detach().numpy()
    cell = galleries[1].cells[galleries[1].labels.index("token 2")]
    np.testing.assert_array_equal(cell[0], tiles.in_colour((alone + 1) / 2))


def test_reconstructions_show_images_error_and_psnr(run, seen):
    with torch.no_grad():
        gallery = shown.reconstructions(seen)
    rows = drawn_images(run, 8)
    for cell, row in zip(gallery.cells, rows, strict=True):
        np.testing.assert_array_equal(cell[0], pixels(run, row))
    expected = run.data.test.images[rows].movedim(1, -1).numpy() / 255
    errors = ((shown.unit(seen.reconstruction) - expected) ** 2).mean(axis=(1, 2, 3))
    assert gallery.labels == [f"{10 * np.log10(1 / error):.1f} dB" for error in errors]


def test_tokens_stand_in_the_order_of_what_they_contribute(seen):
    with torch.no_grad():
        energy = (seen.components["additive"][0] ** 2).sum(axis=(1, 2, 3))
    assert seen.order(0) == sorted(range(len(energy)), key=lambda k: -energy[k])


def test_a_reader_is_told_what_a_component_image_and_a_map_are(seen):
    first, *others = shown.reading(seen).sentences
    assert "component image (solo)" in first
    assert "are the TDSM" in first
    assert [words.partition(":")[0] for words in others] == ["Additive"]
    assert "add up to the decoded image, exactly" in others[0]


def test_every_decomposition_is_shown_once_it_was_measured(run):
    assert shown.methods_shown(run, is_analysed=False) == ("solo", "additive")
    assert shown.methods_shown(run, is_analysed=True) == ("solo", "additive", "leave_one_out", "attention")


def test_large_images_are_shown_no_larger_than_a_tile():
    tile = tiles.in_colour(np.zeros((300, 150, 3)))
    assert tile.shape == (tiles.SHARPEST, tiles.SHARPEST // 2, 3)
    assert shown.of_different_classes(torch.tensor([1, 1, 1]), 3) == [0]


def test_thumbnails_stand_in_the_order_in_which_points_are_drawn(run):
    charts_made = shown.embeddings(run)
    drawn = drawn_images(run, shown.EMBEDDED_IMAGES)
    words = sorted(run.data.test.labels[drawn].tolist())
    for chart in charts_made:
        assert chart.thumbnails.words == [run.data.test.classes[label] for label in words]
        assert sum(len(group.get_offsets()) for group in chart.figure.axes[0].collections) == len(drawn)


def test_evidence_is_of_the_best_head_on_the_maps_and_adds_up(run, table):
    row = scored.explained(table)
    assert row["name"] == "tdsm-avg"
    said, *galleries = scored.evidence(run, table)
    assert "exactly" in said.sentences[0]
    drawn = drawn_images(run, 8)
    labels = run.data.test.labels[drawn]
    drawn = drawn[shown.of_different_classes(labels, 3)]
    maps = run.samples(scored.ROWS["tdsm-avg"], "test").features[drawn].float()
    found = class_evidence(next(read_classifiers(run, "tdsm-avg", tuple(maps.shape[1:]))), maps)
    for number, gallery in enumerate(galleries):
        assert gallery.caption.startswith(f"“{run.data.test.classes[found.classes[number]]}” is predicted")
        totals = {f"token {k}: {value:+.2f}".replace("-", "−") for k, value in enumerate(found.by_map[number])}
        assert set(gallery.labels) == totals


def test_a_run_without_a_head_on_its_maps_has_no_evidence(run, table):
    assert scored.evidence(run, [row for row in table if row["role"] == "baseline"]) == []


def test_mistakes_are_the_images_that_the_best_row_gets_wrong(run, table):
    gallery, by_class, *_ = scored.mistaken(run, table)
    row = best(table, "tdsm")
    wrong = (~is_right(run, row["name"])[0]).nonzero()[:, 0]
    classes, predicted = run.data.test.classes, read_predictions(run, row["name"])[0]
    names = {f"{classes[run.data.test.labels[k]]} → {classes[predicted[k]]}" for k in wrong}
    assert f"is wrong on {len(wrong)} of 60 test images" in gallery.caption
    assert set(gallery.labels) <= names
    assert len(gallery.cells) == min(len(wrong), scored.SHOWN_MISTAKES)
    assert isinstance(by_class, Table)
    shares = [float(line[2]) for line in by_class.lines if line[2] != "–"]
    assert shares == sorted(shares)


def test_what_was_found_out_is_shown(run):
    listed = [Table("One", ["tokens"], [["4"]], findings=["Few do."]), Table("Two", ["a"], [["b"]], ["a"])]
    rows = [{"method": name, "count": 2, "accuracy": 0.5, "ends": [0.4, 0.6]} for name in ("random", "all")]
    _, text = write_findings(run, "study-tokens", listed, {"rows": rows})
    assert "### One\n\nFew do.\n\n| tokens |" in text
    page = gather(run, scored_rows(run), reconstruction_of(run))
    shutil.rmtree(run.path / "findings")
    (studies,) = (section.blocks for section in page.sections if section.name == "studies")
    assert [block.title for block in studies if isinstance(block, Table)] == ["One", "Two"]
    assert "token-counts" in [chart.name for chart in blocks_of(page, Chart)]
    assert "tdsm study worth" in studies[-1].blocks[0].text
    assert "tdsm study tokens" not in studies[-1].blocks[0].text


def spy_on(monkeypatch, module, name):
    calls, whole = [], getattr(module, name)
    spy = replace(whole, draw=lambda *arguments: calls.append(arguments) or whole.draw(*arguments))
    monkeypatch.setattr(module, name, spy)
    return calls


def test_confusions_are_of_the_rows_that_validation_chose(run, table, monkeypatch):
    calls = spy_on(monkeypatch, charts, "confusion")
    drawn = scored.mistaken(run, table)[-2].blocks
    for role, chart, (matrix, classes) in zip(("tdsm", "baseline"), drawn, calls, strict=True):
        row = best(table, role)
        (predicted,) = read_predictions(run, row["name"])
        expected = np.zeros((10, 10), dtype=int)
        np.add.at(expected, (run.data.test.labels.numpy(), predicted.numpy()), 1)
        np.testing.assert_array_equal(matrix, expected)
        assert np.trace(matrix) == row["correct"]
        assert classes == run.data.test.classes
        assert row["name"] in chart.caption


def test_confusions_count_every_image_once_a_seed(run, table, monkeypatch):
    calls = spy_on(monkeypatch, charts, "confusion")
    seeds = torch.stack([run.data.test.labels, (run.data.test.labels + 1) % 10, run.data.test.labels])
    monkeypatch.setattr(scored, "read_predictions", lambda run, name: seeds)
    chart = scored._confusion(run, best(table, "tdsm"))
    counts = np.bincount(run.data.test.labels, minlength=10)
    np.testing.assert_array_equal(calls[0][0], 2 * np.diag(counts) + np.roll(np.diag(counts), 1, axis=1))
    assert chart.caption.endswith("Every image counts once for each of 3 seeds.")


def test_rows_of_one_role_alone_make_one_confusion(run, table):
    rows = [row for row in table if row["role"] == "baseline"]
    assert [chart.name for chart in scored.mistaken(run, rows)[-2].blocks] == ["confusion-baseline"]


def test_too_few_images_are_not_embedded():
    assert shown.tsne(np.random.default_rng(0).normal(size=(9, 4))) is None
    assert shown.tsne(np.random.default_rng(0).normal(size=(10, 4))).shape == (10, 2)
    assert shown.pca(np.zeros((5, 1))) is None


# ---------------------------------------------------------------- the card


def test_a_saved_field_of_a_run_carries_its_scores_until_its_weights_change(run, table, tmp_path):
    write_card(run, table, reconstruction_of(run))
    field = load_field(run.path)
    field.save_pretrained(tmp_path / "saved")
    text = (tmp_path / "saved" / "README.md").read_text()
    assert text.startswith("---\n")
    assert "license: mit" in text
    assert f"{reconstruction_of(run)['psnr']:.2f} dB on 60 test images" in text
    assert all(f"| {row['name']} |" in text for row in table)
    with torch.no_grad():
        next(field.parameters()).add_(1)
    field.save_pretrained(tmp_path / "changed")
    assert "as recorded by whoever trained it" in (tmp_path / "changed" / "README.md").read_text()


def test_a_card_of_other_weights_is_not_taken(run, table, tmp_path):
    write_card(run, table, reconstruction_of(run))
    shutil.copytree(run.path, tmp_path / "run")
    manifest = tmp_path / "run" / "card" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"model.safetensors"', '"other.safetensors"'))
    load_field(tmp_path / "run").save_pretrained(tmp_path / "saved")
    assert "as recorded by whoever trained it" in (tmp_path / "saved" / "README.md").read_text()


# ---------------------------------------------------------------- runs beside one another


def test_runs_are_compared_row_by_row_in_pairs_and_setting_by_setting(run, tmp_path):
    other = finished(demo(tmp_path / "other"))
    config = other.config.model_copy(update={"device": "cpu"})
    page = compare.comparison([run, replace(other, config=config)])
    accuracies, fields, settings = (section.blocks[0] for section in page.sections)
    names = [line[0] for line in accuracies.lines]
    assert sorted(names) == sorted(row["name"] for row in scored_rows(run))
    assert all(line[1] == line[2] and line[3] == "+0.0" and " to " in line[4] for line in accuracies.lines)
    assert [line[0] for line in fields.lines] == ["run", "other"]
    assert settings.lines == [["device", "auto", "cpu"]]
    assert "compared in pairs" in page.top[0].sentences[0]
    path = compare.write_comparison([run, other])
    assert path.name == "run-other.html"
    assert "other has the same settings" in path.read_text()


def test_runs_of_other_test_images_get_no_difference(run, tmp_path, monkeypatch):
    other = finished(demo(tmp_path / "other"))
    test = replace(other.data.test, ids=other.data.test.ids + 1000)
    assert compare._shares_images(run, other)
    assert not compare._shares_images(run, replace(other, data=replace(other.data, test=test)))
    monkeypatch.setattr(compare, "_shares_images", lambda one, other: one is other)
    page = compare.comparison([run, other])
    assert "no difference is stated" in page.top[0].sentences[0]
    assert all(line[3:] == ["–", "–"] for line in page.sections[0].blocks[0].lines)
