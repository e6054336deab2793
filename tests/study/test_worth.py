import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from tdsm.base.errors import UsageError
from tdsm.classification.heads import TDSMClassifier
from tdsm.features.store import FeatureRows
from tdsm.models.weights import count_parameters
from tdsm.pipeline import field as fields
from tdsm.study import answers
from tdsm.study import worth as module
from tdsm.study.config import StudyConfig
from tdsm.study.features import ASKED
from tdsm.study.table import WITHOUT, reference_of, study_verdict, summarize
from tdsm.study.worth import HEADS, head_of_size, run_study
from tests.tinyrun import content, demo, finished, tdsm

TINY = {
    "seeds": 2,
    "parameters": 900,
    "size": (4, 4),
    "epochs": 1,
    "structured_epochs": 1,
    "learning_rates": (1e-2,),
    "max_train": 40,
}
SMALL = StudyConfig.model_validate(TINY | {"max_test": 30, "token_counts": (2, 4), "steps": (3,)})


@pytest.fixture(scope="module")
def study(run):
    return run_study(run, SMALL)


def test_every_question_is_answered_for_every_seed(study):
    asked = {(row["field"], row["feature"], row["head"], row["tokens"]) for row in study["rows"]}
    main = {("trained", feature, head, 4) for feature in ASKED for head in HEADS}
    few = {("trained", feature, "structured", 2) for feature in ("solo", "tokens")}
    short = {("steps-3", feature, "structured", 4) for feature in ("solo", "tokens")}
    assert asked == main | few | short
    assert len(study["rows"]) == 2 * len(asked)
    assert study["psnr"].keys() == {"trained", "steps-3"}
    assert all(row["parameters"] <= 900 and len(row["is_right"]) == 30 for row in study["rows"])
    assert all(row["accuracy"] == pytest.approx(np.mean(row["is_right"])) for row in study["rows"])


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
        run_study(replace(other, say=stop), SMALL)
    again = run_study(other, SMALL)
    assert again == study


def test_more_seeds_may_come_later(run, study):
    more = run_study(run, SMALL.model_copy(update={"seeds": 3}))
    assert [row for row in more["rows"] if row["seed"] < 2] == study["rows"]


def test_the_untrained_field_is_asked_for_what_is_said_to_be_its_own(run, study):
    stored = {name: run.path / module.FOLDER / "features" / name for name in ("trained", "untrained", "steps-3")}
    names = {
        name: {asked.feature for asked in ASKED.values() if asked.is_trained == (name == "trained")} for name in stored
    }
    for name, folder in stored.items():
        assert {part.name for part in (folder / "test").iterdir()} == names[name]


@pytest.mark.parametrize(("pool", "size"), [("flatten", (4, 4)), ("cnn", (8, 8)), ("transformer", (16, 1))])
def test_heads_are_as_wide_as_the_budget_allows(pool, size):
    def parameters(head):
        return count_parameters(TDSMClassifier(12, 10, pool, size, **head.model_dump(exclude={"kind"})))

    head = head_of_size(pool, 12, size, 10, 20_000)
    option = module.WIDTHS[pool]
    wider = head.model_copy(update={option: getattr(head, option) + (4 if pool == "transformer" else 1)})
    assert parameters(head) <= 20_000 < parameters(wider)


def test_a_budget_too_small_is_named():
    with pytest.raises(UsageError, match="more than the 50 of --parameters"):
        head_of_size("flatten", 12, (4, 4), 10, 50)


def test_the_mlp_reads_features_standardised_by_the_training_samples():
    train, test = torch.randn(50, 2, 1, 3) * torch.tensor([1.0, 5.0, 0.0]) + 4, torch.randn(20, 2, 1, 3)
    labels = torch.zeros(50, dtype=torch.long)
    samples = {
        "train": module.Samples(FeatureRows([train]), labels),
        "test": module.Samples(FeatureRows([test]), labels[:20]),
    }
    done = module._standardized(samples)
    seen = done["train"].features[torch.arange(50)]
    torch.testing.assert_close(seen.mean(0), torch.zeros(2, 1, 3), atol=2e-3, rtol=0)
    torch.testing.assert_close(seen[..., :2].std(0, correction=0), torch.ones(2, 1, 2), atol=2e-3, rtol=0)
    expected = (test - train.mean(0)) / train.std(0, correction=0).clamp(min=1e-6)
    torch.testing.assert_close(
        done["test"].features[torch.arange(20)][..., :2], expected[..., :2], atol=2e-3, rtol=2e-3
    )


def rows(feature, right, validation, tokens=4, field="trained"):
    base = {"field": field, "feature": feature, "head": "mlp", "tokens": tokens, "parameters": 9}
    right = np.asarray(right)
    return [
        base | {"validation_accuracy": validation, "accuracy": float(r.mean()), "is_right": r.tolist()} for r in right
    ]


def test_both_sides_are_chosen_on_validation_and_the_verdict_says_who_wins():
    good, bad = np.tile([1, 1, 1, 0], (2, 50)), np.tile([1, 0, 0, 0], (2, 50))
    found = summarize({"rows": [*rows("solo", bad, 0.9), *rows("additive", good, 0.1), *rows("tokens", good, 0.5)]})
    assert reference_of(found)["feature"] == "tokens"
    words = study_verdict(found)
    assert "solo (mlp), test 25.0 %" in words
    assert "−50.0 points" in words
    assert "paired over images and seeds" in words
    assert words.endswith("decoding does not pay.")
    found = summarize({"rows": [*rows("solo", good, 0.9), *rows("values", bad, 0.5), *rows("tokens", good, 0.4)]})
    assert reference_of(found)["feature"] == "values"
    assert study_verdict(found).endswith("decoding pays.")
    found = summarize({"rows": [*rows("solo", good, 0.9), *rows("tokens", bad, 0.4), *rows("pixels", good, 0.5)]})
    assert reference_of(found)["feature"] == "pixels"
    assert study_verdict(found).endswith("no difference shown.")


def test_what_was_decoded_is_never_called_without_decoding():
    """The reconstruction and an untrained field's maps were decoded, though not by what is asked about."""
    good, bad = np.tile([1, 1], (1, 5)), np.tile([1, 0], (1, 5))
    others = [*rows("reconstruction", good, 0.9), *rows("untrained-solo", good, 0.9)]
    found = summarize({"rows": [*others, *rows("tokens", bad, 0.1), *rows("solo", bad, 0.1)]})
    assert reference_of(found)["feature"] == "tokens"
    assert study_verdict(found).startswith("Best decoded maps by validation: solo")
    assert {name for name, asked in ASKED.items() if asked.meaning.startswith("decoded:")} == set(ASKED) - WITHOUT


def test_a_row_of_fewer_tokens_or_steps_is_never_the_reference():
    good, bad = np.tile([1, 1], (1, 5)), np.tile([1, 0], (1, 5))
    others = [*rows("tokens", good, 0.9, tokens=2), *rows("tokens", good, 0.9, field="steps-3")]
    found = summarize({"rows": [*others, *rows("tokens", bad, 0.1), *rows("solo", bad, 0.1)]})
    assert (reference_of(found)["tokens"], reference_of(found)["field"]) == (4, "trained")


def test_the_command_prints_the_table(tmp_path, capsys):
    path = demo(tmp_path / "run")
    options = [
        "--seeds",
        1,
        "--parameters",
        900,
        "--size",
        4,
        4,
        "--epochs",
        1,
        "--structured-epochs",
        1,
        "--max-train",
        40,
    ]
    assert tdsm("study", "worth", path, *options, "--steps", 2, "--token-counts", 2) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{path}/study-worth.md\n"
    text = (path / "study-worth.md").read_text()
    assert text in captured.err
    assert all(f"| {feature} | {head} |" in text for feature in ASKED for head in HEADS)
    kept = json.loads((path / "findings" / "study-worth" / "facts.json").read_text())
    assert kept["settings"]["parameters"] == 900
    assert all("is_right" not in row for row in kept["rows"])
    assert tdsm("study", "worht", path) == 2
