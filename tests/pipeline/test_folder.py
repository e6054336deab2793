import json
import subprocess
import sys

import pytest

from tdsm.base import io
from tdsm.base.environment import describe_environment
from tdsm.base.errors import CheckpointError, UsageError
from tdsm.base.settings import differences
from tdsm.pipeline.folder import create_run, noted, owned, read_commands, read_config
from tests.tinyrun import tiny


def created(path, config=None, resume=False):
    path.mkdir(parents=True, exist_ok=True)
    create_run(path, config or tiny(), resume=resume)
    return path


def test_a_run_keeps_its_whole_config_defaults_included(tmp_path):
    path = created(tmp_path / "a" / "run", tiny(seed=3))
    assert read_config(path) == tiny(seed=3)
    stored = json.loads((path / "config.json").read_text())
    assert stored["train"]["weight_decay"] == 0.0
    assert json.loads((path / "environment.json").read_text())["versions"]["torch"]


def test_a_run_is_taken_up_only_when_asked_and_with_settings_that_may_differ(tmp_path):
    path = created(tmp_path / "run")
    with pytest.raises(UsageError, match=r"this run exists\. Continue it with --resume"):
        created(path)
    created(path, tiny(), resume=True)
    assert not (path / "changes.json").exists()
    with pytest.raises(UsageError, match=r"other settings: seed: 0 -> 1; train.batch_size: 16 -> 8\."):
        created(path, tiny(seed=1, train__batch_size=8, train__steps=9), resume=True)
    with pytest.raises(UsageError, match=r"other settings: train.steps: 8 -> 7\."):
        created(path, tiny(train__steps=7), resume=True)
    assert read_config(path) == tiny()


def test_what_extends_or_corrects_a_training_may_change_and_is_noted(tmp_path):
    path, changed = created(tmp_path / "run"), tiny(train__steps=12, train__learning_rate=1e-4, probe__epochs=5)
    created(path, changed, resume=True)
    assert read_config(path) == changed
    (entry,) = json.loads((path / "changes.json").read_text())
    assert entry["changed"] == ["probe.epochs: 2 -> 5", "train.learning_rate: 0.001 -> 0.0001", "train.steps: 8 -> 12"]
    created(path, tiny(train__steps=13, train__learning_rate=1e-4, probe__epochs=5), resume=True)
    assert len(json.loads((path / "changes.json").read_text())) == 2


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("text")
    with pytest.raises(UsageError, match="not empty and holds no run"), owned(tmp_path):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_start_that_was_killed_is_no_obstacle(tmp_path):
    io.write_json(tmp_path / "environment.json", {})
    (tmp_path / ".config.json.77.tmp").write_text("{")
    with owned(tmp_path):
        assert read_config(created(tmp_path)) == tiny()
    assert sorted(file.name for file in tmp_path.iterdir()) == [".lock", "config.json", "environment.json"]


def test_a_run_is_owned_by_one_process_at_a_time(tmp_path):
    code = "import sys, pathlib; from tdsm.pipeline.folder import owned\nwith owned(pathlib.Path(sys.argv[1])): pass"
    other = [sys.executable, "-c", code, tmp_path / "run"]
    with owned(tmp_path / "run"):
        done = subprocess.run(other, capture_output=True, text=True, timeout=60)
    assert "another process is working in this run" in done.stderr
    assert subprocess.run(other, timeout=60).returncode == 0
    assert not (tmp_path / "run").exists()  # of a run that came to nothing nothing is left


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no run here"),
        ("{", "cannot be read as JSON"),
        ('{"sede": 1}', "sede is 1: unknown"),
        ('{"train": {"steps": -1}}', "train.steps is -1: expected at least 0"),
        ("[]", "saw list"),
        ("5", "saw int"),
    ],
)
def test_a_missing_or_damaged_config_is_named(tmp_path, text, words):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        read_config(tmp_path)


def test_differences_name_what_was_added_removed_and_changed():
    before, after = {"a": {"b": 1, "c": (1, 2)}, "d": None}, {"a": {"b": 2, "c": (1, 2)}, "e": 1}
    assert differences(before, after) == ["a.b: 1 -> 2", "e: None -> 1"]
    assert differences(before, before) == []


def test_the_environment_says_with_what_and_where():
    facts = describe_environment()
    assert facts["versions"].keys() >= {"tdsm", "torch", "numpy", "safetensors"}
    assert facts["command"].startswith("tdsm")
    assert facts["threads"] >= 1
    json.dumps(facts)


def test_commands_are_noted_with_when_and_how_long(tmp_path, monkeypatch):
    (tmp_path / "config.json").touch()
    monkeypatch.setattr("sys.argv", ["/bin/tdsm", "classify", "a run"])
    with noted(tmp_path):
        (entry,) = read_commands(tmp_path)
        assert entry["command"] == "tdsm classify 'a run'"
        assert entry["since"] == entry["when"]
    (entry,) = read_commands(tmp_path)
    assert entry.keys() == {"command", "when", "seconds"}
    with noted(tmp_path):
        pass
    (again,) = read_commands(tmp_path)
    assert (again["when"], again["seconds"] >= entry["seconds"]) == (entry["when"], True)
    monkeypatch.setattr("sys.argv", ["tdsm", "evaluate", "a run"])
    with pytest.raises(KeyboardInterrupt), noted(tmp_path, at_once=False):
        raise KeyboardInterrupt
    assert [entry["command"].split()[1] for entry in read_commands(tmp_path)] == ["classify", "evaluate"]


def test_a_command_that_was_refused_or_made_no_run_leaves_no_note(tmp_path):
    with pytest.raises(MemoryError), noted(tmp_path, at_once=False):
        raise MemoryError
    (tmp_path / "config.json").touch()
    with pytest.raises(CheckpointError), noted(tmp_path, at_once=False):
        raise CheckpointError("no")
    assert [file.name for file in tmp_path.iterdir()] == ["config.json"]
