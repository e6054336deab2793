import json
from dataclasses import replace

import numpy as np
import pytest

from tdsm.pipeline import field as fields
from tdsm.study import answers
from tdsm.study import worth as module
from tdsm.study.config import READINGS, StudyConfig
from tdsm.study.features import ASKED
from tdsm.study.table import WITHOUT, reference_of, study_verdict, summarize
from tdsm.study.worth import run_study
from tests.tinyrun import content, demo, finished, tdsm, unprinted

TINY = {
    "seeds": 2,
    "hidden_dim": 5,
    "components": 40,
    "parameters": 7000,
    "size": (4, 4),
    "epochs": 1,
    "learning_rates": (1e-2,),
    "max_train": 40,
}
FEWER = {"max_test": 30, "train_counts": (20, 1000), "token_counts": (2, 4), "steps": (3,)}
SMALL = StudyConfig.model_validate(TINY | FEWER)
FEW = SMALL.model_copy(update={"readings": ("ridge",), "seeds": 1})
UNREAD = {("random_expansion", "structured")}  # has neither places nor tokens


@pytest.fixture(scope="module")
def study(run):
    return run_study(run, SMALL)


def test_every_question_is_answered_for_every_seed(study):
    names = ("field", "feature", "head", "tokens", "train")
    asked = [tuple(row[name] for name in names) for row in study["rows"]]
    main = {("trained", f, head, 4, 40) for f in ASKED for head in READINGS if (f, head) not in UNREAD}
    images = {("trained", feature, "ridge", 4, 20) for feature in ASKED}
    few = {("trained", feature, "ridge", 2, 40) for feature in ("solo", "tokens")}
    short = {("steps-3", feature, "ridge", 4, 40) for feature in ("solo", "tokens")}
    assert set(asked) == main | images | few | short
    assert all(asked.count(one) == (1 if one[2] == "ridge" else 2) for one in asked)
    assert study["psnr"].keys() == {"trained", "steps-3"}
    assert all(len(row["is_right"]) == 30 for row in study["rows"])
    assert all(row["accuracy"] == pytest.approx(np.mean(row["is_right"])) for row in study["rows"])


def test_parameters_are_equal_where_they_are_said_to_be(study):
    counts = {head: {row["parameters"] for row in study["rows"] if row["head"] == head} for head in READINGS}
    assert counts["mlp-pca"] == {5 * (40 + 1) + 10 * (5 + 1)}
    assert len(counts["mlp"]) > 1
    assert max(counts["structured"]) <= 7000


def test_readings_may_be_left_out(run):
    found = run_study(run, FEW)
    assert {row["head"] for row in found["rows"]} == {"ridge"}
    assert "Under ridge" in " ".join(study_verdict(summarize(found)))


def test_what_was_answered_is_not_asked_again(run, study, monkeypatch):
    before = content(run.path / module.FOLDER)
    monkeypatch.setattr(answers, "fit_head", None)
    monkeypatch.setattr(fields, "train_field", None)
    assert run_study(run, SMALL) == study
    assert content(run.path / module.FOLDER) == before


def test_a_killed_study_goes_on(run, study, tmp_path):
    other = finished(demo(tmp_path / "run"))
    answered = []

    def stop(words):
        if "/" in words:
            answered.append(words)
        if len(answered) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(replace(other, say=stop), FEW)
    assert run_study(other, FEW) == run_study(run, FEW)


def test_more_seeds_may_come_later(run, study):
    few = {"readings": ("mlp",), "train_counts": ()}
    two, three = (run_study(run, SMALL.model_copy(update=few | {"seeds": seeds}))["rows"] for seeds in (2, 3))
    assert [row for row in three if row["seed"] < 2] == two
    assert len(three) > len(two)


def test_the_untrained_field_is_asked_for_what_is_said_to_be_its_own(run, study):
    stored = {name: run.path / module.FOLDER / "features" / name for name in ("trained", "untrained", "steps-3")}
    names = {
        name: {asked.feature for asked in ASKED.values() if asked.is_trained == (name == "trained")} for name in stored
    }
    for name, folder in stored.items():
        assert {part.name for part in (folder / "test").iterdir()} == names[name]


def rows(feature, right, validation, tokens=4, field="trained", train=40, head="mlp"):
    base = {"field": field, "feature": feature, "head": head, "tokens": tokens, "train": train, "parameters": 9}
    right = np.asarray(right)
    return [
        base | {"validation_accuracy": validation, "accuracy": float(r.mean()), "is_right": r.tolist()} for r in right
    ]


GOOD, BAD = np.tile([1, 1, 1, 0], (2, 50)), np.tile([1, 0, 0, 0], (2, 50))


def test_both_sides_are_chosen_on_validation_and_the_verdict_says_who_wins():
    found = summarize({"rows": [*rows("solo", BAD, 0.9), *rows("additive", GOOD, 0.1), *rows("tokens", GOOD, 0.5)]})
    assert reference_of(found)["feature"] == "tokens"
    words = study_verdict(found)[0]
    assert "solo (mlp), test 25.0 %" in words
    assert "−50.0 points" in words
    assert "paired over images and seeds" in words
    assert words.endswith("decoding does not pay.")
    found = summarize({"rows": [*rows("solo", GOOD, 0.9), *rows("values", BAD, 0.5), *rows("tokens", GOOD, 0.4)]})
    assert reference_of(found)["feature"] == "values"
    assert study_verdict(found)[0].endswith("decoding pays.")
    found = summarize({"rows": [*rows("solo", GOOD, 0.9), *rows("tokens", BAD, 0.4), *rows("pixels", GOOD, 0.5)]})
    assert reference_of(found)["feature"] == "pixels"
    assert study_verdict(found)[0].endswith("no difference shown.")


def test_the_verdict_is_of_the_best_head_of_each_side_and_then_head_by_head():
    """Decoding wins under ridge and loses to what another head makes of the tokens."""
    ridge = [*rows("solo", GOOD[:1], 0.7, head="ridge"), *rows("tokens", BAD[:1], 0.6, head="ridge")]
    mlp = [*rows("solo", BAD, 0.5), *rows("tokens", GOOD, 0.8)]
    first, *others = study_verdict(summarize({"rows": ridge + mlp}))
    assert "solo (ridge)" in first
    assert "tokens (mlp)" in first
    assert first.endswith("no difference shown.")
    assert [words.split(":")[0] for words in others] == ["Under ridge", "Under mlp"]
    assert others[0].endswith("decoding pays.")
    assert others[1].endswith("decoding does not pay.")


def test_every_row_is_compared_with_the_best_without_decoding_of_its_own_kind():
    alike = [*rows("solo", GOOD, 0.5, train=20), *rows("tokens", GOOD, 0.5, train=20)]
    found = summarize({"rows": [*rows("solo", BAD, 0.5), *rows("tokens", GOOD, 0.5), *alike]})
    differences = {(s["feature"], s["train"]): s["difference"].value for s in found if "difference" in s}
    assert differences == pytest.approx({("solo", 40): -0.5, ("solo", 20): 0.0})


def test_what_was_decoded_is_never_called_without_decoding():
    """The reconstruction and an untrained field's maps were decoded, though not by what is asked about."""
    good, bad = np.tile([1, 1], (1, 5)), np.tile([1, 0], (1, 5))
    others = [*rows("reconstruction", good, 0.9), *rows("untrained-solo", good, 0.9)]
    found = summarize({"rows": [*others, *rows("tokens", bad, 0.1), *rows("solo", bad, 0.1)]})
    assert reference_of(found)["feature"] == "tokens"
    assert study_verdict(found)[0].startswith("Best decoded maps by validation: solo")
    assert {name for name, asked in ASKED.items() if asked.meaning.startswith("decoded:")} == set(ASKED) - WITHOUT


def test_a_row_of_fewer_tokens_images_or_steps_is_never_in_the_verdict():
    good, bad = np.tile([1, 1], (1, 5)), np.tile([1, 0], (1, 5))
    others = [*rows("tokens", good, 0.9, tokens=2), *rows("tokens", good, 0.9, field="steps-3")]
    others += rows("tokens", good, 0.9, train=9)
    words = study_verdict(summarize({"rows": [*others, *rows("tokens", bad, 0.1), *rows("solo", bad, 0.1)]}))
    assert "tokens (mlp), test 50.0 %" in words[0]


def test_the_command_prints_the_table(tmp_path, capsys):
    path = demo(tmp_path / "run")
    options = ["--seeds", 1, "--parameters", 7000, "--size", 4, 4, "--epochs", 1, "--max-train", 40, "--hidden-dim", 5]
    few = ["--steps", 2, "--token-counts", 2, "--train-counts", 20]
    capsys.readouterr()
    assert tdsm("study", "worth", path, *options, *few) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{path}/study-worth.md\n"
    text = (path / "study-worth.md").read_text()
    assert unprinted(text, captured.err) == set()
    asked = {(feature, head) for feature in ASKED for head in READINGS} - UNREAD
    assert all(f"| {feature} | {head} |" in text for feature, head in asked)
    assert all(f"- {name}: " in text or f"{name}: " in text for name in READINGS)
    kept = json.loads((path / "findings" / "study-worth" / "facts.json").read_text())
    assert kept["settings"]["parameters"] == 7000
    assert all("is_right" not in row for row in kept["rows"])
    assert tdsm("study", "worht", path) == 2
