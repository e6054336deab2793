import re
import shlex

import pytest
import tyro

from tdsm.cli.flags import flags_of
from tdsm.cli.lessons import LESSONS, MOST_OPTIONS
from tdsm.cli.main import _parse
from tdsm.cli.verbs import ANSWERED, VERBS
from tests.tinyrun import tdsm

MODELS = VERBS | {f"study {name}": model for name, model in ANSWERED.items()}


def helped(capsys, *arguments):
    capsys.readouterr()
    assert tdsm(*arguments) == 0
    return capsys.readouterr().out


def shown_flags(text):
    return re.findall(r"^(?:│ | {1,2})--([a-z][a-z0-9.-]*)", text, re.MULTILINE)


def positional(model):
    return {name for name, entry in model.model_fields.items() if tyro.conf.Positional in entry.metadata}


def test_every_command_has_a_lesson():
    assert LESSONS.keys() == MODELS.keys()


@pytest.mark.parametrize("command", LESSONS)
def test_a_help_shows_two_examples_and_then_the_options_that_matter(capsys, command):
    text, lesson = helped(capsys, *command.split(), "--help"), LESSONS[command]
    first, second = (text.index(example) for example, _ in lesson.examples)
    assert first < second < text.index("options ")
    shown = {*shown_flags(text), *positional(MODELS[command])}
    assert len(shown) <= MOST_OPTIONS
    if lesson.flags:
        assert shown == set(lesson.flags)
        assert f"tdsm {command} --help-all" in text


@pytest.mark.parametrize("command", [command for command in LESSONS if command != "study"])
def test_help_all_shows_every_option(capsys, command):
    text = helped(capsys, *command.split(), "--help-all")
    shown = {re.sub(r"^(train.objectives).*", r"\1", flag) for flag in shown_flags(text)}  # a flag for each of them
    assert sorted(shown) == sorted({flag for flag, *_ in flags_of(MODELS[command])} - positional(MODELS[command]))


@pytest.mark.parametrize("example", [example for lesson in LESSONS.values() for example, _ in lesson.examples])
def test_the_examples_are_commands(example):
    command = re.sub(r'^eval "\$\((.*)\)"$', r"\1", example)
    words = shlex.split(re.split(">|&&", command)[0])
    assert words[0] == "tdsm"
    assert isinstance(_parse(words[1:]), VERBS[words[1]])


def test_a_question_with_a_run_shows_its_help(capsys):
    assert "--readings" in helped(capsys, "study", "worth", "nowhere", "-h")
    assert "(default: 7)" in helped(capsys, "study", "worth", "nowhere", "--seeds", 7, "--help")


def test_help_looks_at_no_images_of_ones_own(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tdsm("train", "--data.source", "folder:nowhere", "--help") == 0
    captured = capsys.readouterr()
    assert "(default: folder:nowhere)" in " ".join(captured.out.split())
    assert captured.err == ""
