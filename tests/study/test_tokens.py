import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from tdsm.base.errors import UsageError
from tdsm.base.statistics import PAIRED_SEEDS, paired_difference
from tdsm.classification.config import HeadConfig
from tdsm.features.store import FeatureRows
from tdsm.study import answers
from tdsm.study import tokens as module
from tdsm.study.config import TokenStudyConfig
from tdsm.study.tokens import METHODS, draw, run_token_study, stride, usable_counts
from tdsm.study.tokens_table import overlap, summarize, token_study_tables, token_verdict
from tests.tinyrun import content, demo, finished, tdsm, trained, unprinted

AVERAGE = HeadConfig(kind="avg")
SMALL = TokenStudyConfig(counts=(1, 3), seeds=2, epochs=2, learning_rates=(1e-2,), head=AVERAGE)


@pytest.fixture(scope="module")
def study(run):
    stored = content(run.path / "features")
    found = run_token_study(run, SMALL)
    assert content(run.path / "features") == stored  # nothing is extracted twice
    return found


def test_every_choice_is_answered_for_every_count_and_seed(study):
    asked = [(row["method"], row["count"], row["seed"]) for row in study["rows"]]
    expected = {(method, count, seed) for method in METHODS for count in (1, 3) for seed in (0, 1)}
    assert set(asked) == expected | {("all", 4, 0), ("all", 4, 1)}
    assert len(set(asked)) == len(asked)
    for row in study["rows"]:
        assert len(set(row["tokens"])) == row["count"]
        assert row["parameters"] == (row["count"] + 1) * 10  # equal at equal count
        assert row["accuracy"] == pytest.approx(np.mean(row["is_right"]))
        assert len(row["is_right"]) == study["test_images"] == 60
    assert all(method in module.MEANINGS for method, _, _ in asked)


def test_what_was_answered_is_not_asked_again(run, study, monkeypatch):
    before = content(run.path / module.FOLDER)
    monkeypatch.setattr(answers, "fit_head", None)
    monkeypatch.setattr(module, "learn_tokens", None)
    assert run_token_study(run, SMALL) == study
    assert content(run.path / module.FOLDER) == before


def test_a_killed_study_goes_on_to_the_same_numbers(study, tmp_path):
    other = finished(demo(tmp_path / "run"))

    def stop(words):
        if words.startswith("3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_token_study(replace(other, say=stop), SMALL)
    assert run_token_study(other, SMALL) == study


def test_more_seeds_may_come_later(run, study):
    more = run_token_study(run, SMALL.model_copy(update={"seeds": 3}))
    assert [row for row in more["rows"] if row["seed"] < 2] == study["rows"]


def test_answers_of_other_settings_are_found_anew_and_it_is_said(run, study):
    said = []
    other = SMALL.model_copy(update={"counts": (1,), "seeds": 1, "epochs": 3})
    run_token_study(replace(run, say=said.append), other)
    assert "learned_1_seed0: made anew, it was made from something else: probe.epochs: 2 -> 3." in said


def test_all_channels_of_a_token_of_the_runs_selection_are_kept(tmp_path):
    run = trained(tmp_path / "run", maps={"reduction": "rgb", "selection": "3,0,2"}, data__channels="rgb")
    study = run_token_study(run, SMALL.model_copy(update={"counts": (2,), "seeds": 1}))
    found = {row["method"]: row for row in study["rows"]}
    assert found["first"]["tokens"] == [3, 0]  # the tokens' own numbers, in the order of the selection
    assert found["first"]["parameters"] == (2 * 3 + 1) * 10
    assert found["all"]["tokens"] == [3, 0, 2]
    part = module.Samples(FeatureRows([torch.arange(12.0)[None, None, None]]), torch.zeros(1, dtype=torch.long))
    assert module._keep(part, [0, 2], 4).features[torch.arange(1)].flatten().tolist() == [0, 1, 2, 6, 7, 8]


@pytest.mark.parametrize("counts", [(0,), (4,), (2, 2), (-1,), (1, 9)])
def test_counts_that_cannot_be_used_are_named_with_the_way_out(counts):
    with pytest.raises(UsageError, match=r"4 tokens\. Give different numbers from 1 to 3, or leave --counts out"):
        usable_counts(counts, 4)


def test_counts_follow_the_number_of_tokens():
    assert usable_counts((), 256) == [32, 64, 128]
    assert usable_counts((), 4) == [1, 2]
    with pytest.raises(UsageError, match="at least 2 to choose from"):
        usable_counts((), 1)


def test_strides_are_even_and_draws_differ_by_seed():
    for count in range(1, 12):
        gaps = np.diff([*stride(12, count), 12])
        assert len(gaps) == count
        assert gaps.max() - gaps.min() <= 1
    assert draw(12, 3, 0) == draw(12, 3, 0)
    assert len({tuple(draw(12, 3, seed)) for seed in range(5)}) > 1


def rows(method, right, chosen, count=2):
    base = {"method": method, "count": count, "parameters": 9, "validation_accuracy": 0.5}
    return [
        base | {"accuracy": float(np.mean(right)), "is_right": right, "tokens": tokens, "seed": seed}
        for seed, tokens in enumerate(chosen)
    ]


GOOD, BAD, TOKENS = [1, 1, 1, 0] * 50, [1, 0, 0, 0] * 50, [[0, 1], [1, 2]]


def found(learned, other, even):
    by_method = {"learned": learned, "random": other, "stride": even}
    few = [row for method, right in by_method.items() for row in rows(method, right, TOKENS)]
    return summarize([*few, *rows("all", GOOD, [[0, 1, 2]], 3)])


def test_the_verdict_says_plainly_what_learned_gates_do_not_beat():
    words = token_verdict(found(GOOD, BAD, GOOD))
    assert "Learned gates beat random choice at 2 tokens." in words
    assert "Learned gates do not beat even spacing at any number of tokens; no difference shown at 2 tokens." in words
    words = token_verdict(found(BAD, GOOD, BAD))
    assert "do not beat random choice at any number of tokens; are worse at 2 tokens." in words


def test_differences_are_paired_with_random_choice_of_as_many_tokens():
    learned, random, _, everything = found(GOOD, BAD, BAD)
    assert learned["difference"] == paired_difference(learned["is_right"], random["is_right"])
    assert learned["difference"].value == pytest.approx(0.5)
    assert learned["difference"].method == PAIRED_SEEDS
    assert "difference" not in random
    assert "difference" not in everything


def test_the_table_names_the_tokens_of_every_seed_and_their_overlap():
    settings = {"seeds": 2, "epochs": 2, "head": {"kind": "avg"}}
    study = {"settings": settings, "num_tokens": 3, "test_images": 200}
    main, survivors = token_study_tables(study, found(GOOD, BAD, BAD))
    assert ["2", "learned", "1", "0.33"] in list(map(list, survivors.lines))
    assert main.findings == [token_verdict(found(GOOD, BAD, BAD))]
    assert "paired over images and seeds" in " ".join(main.notes)
    assert overlap([[0, 1], [0, 1], [2, 3]]) == pytest.approx(1 / 3)


def test_the_command_writes_table_numbers_and_picture(tmp_path, capsys):
    path = demo(tmp_path / "run")
    options = ["--seeds", 1, "--epochs", 1, "--learning-rates", 0.01, "--head.kind", "max"]
    capsys.readouterr()
    assert tdsm("study", "tokens", path, *options, "--counts", 2, 1) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{path}/study-tokens.md\n"
    assert unprinted((path / "study-tokens.md").read_text(), captured.err) == set()
    kept = json.loads((path / "findings" / "study-tokens" / "facts.json").read_text())
    assert kept["settings"]["head"]["kind"] == "max"
    assert {row["count"] for row in kept["rows"]} == {1, 2, 4}
    assert all("is_right" not in row for row in kept["rows"])
    assert Image.open(path / "study-tokens.png").width > 800
    assert tdsm("study", "tokens", path, *options, "--counts", 4) == 2
    assert "tdsm: study tokens: --counts 4, but" in capsys.readouterr().err


def test_help_teaches_both_questions(capsys):
    assert tdsm("study", "--help") == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "Does decoding the tokens pay" in words
    assert "Which tokens are worth keeping?" in words
    assert tdsm("study", "tokens", "--help") == 0
    assert "--counts" in capsys.readouterr().out
    assert tdsm("study") == 2
