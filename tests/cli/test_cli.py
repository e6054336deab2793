import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import tdsm as package
from tdsm.base import io
from tdsm.cli.main import DESCRIPTION
from tdsm.cli.verbs import VERBS
from tdsm.pipeline import stages
from tdsm.pipeline.field import initial_field
from tdsm.pipeline.folder import create_run, read_config
from tests.tinyrun import ROWS, colour_arrays, content, demo, digits, tdsm, tiny, write_yaml

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

UNDER_WAY = re.compile(r"run folder: |.* …$|\w+ .*: (getting ready|taking it up)$|.*: taking up$|next: ")

NO_TORCH = """
import sys
HEAVY = {
    *("torch", "numpy", "einops", "jaxtyping", "safetensors", "huggingface_hub", "filelock", "sklearn", "scipy"),
    *("PIL", "pyarrow", "datasets", "matplotlib", "jinja2", "starlette", "uvicorn", "ray", "accelerate", "tensorboard"),
    "transformers",
}
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name in HEAVY:
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Slow())
from tdsm.cli.main import run_command
from tdsm.cli.verbs import VERBS
every = [[verb, "--help"] for verb in VERBS if verb != "completion"]
others = [["train", "--help-all"], ["completion", "fish"], ["demo", "--print-config"]]
for arguments in ([], ["--help"], ["--version"], *every, *others):
    try:
        code = run_command(arguments)
    except SystemExit as stop:
        code = stop.code
    assert code == 0, arguments
    print(f"<done {arguments}>")
"""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Stand in an empty folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def config(tmp_path):
    return write_yaml(tmp_path / "tiny.yaml")


def fails(capsys, code, *arguments):
    """Run a command that must fail, and return what it says: one line, or one box, and no traceback."""
    capsys.readouterr()
    assert tdsm(*arguments) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    text = "\n".join(line for line in captured.err.splitlines() if not UNDER_WAY.match(line))
    is_box = text.count("For full helptext") == 1 and "tdsm: " not in text  # drawn by tyro
    assert is_box or (text.startswith("tdsm: ") and "\n" not in text), text
    return " ".join(text.replace("│", " ").split())


# ---------------------------------------------------------------- help


def test_help_imports_nothing_that_is_slow():
    done = subprocess.run([sys.executable, "-c", NO_TORCH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("<done") == len(VERBS) + 5
    for option in ("--train.steps INT", "--maps.reduction {mean,rgb,l2}", "--probe.learning-rates", "--resume"):
        assert option in done.stdout


def test_the_module_is_the_command():
    done = subprocess.run([sys.executable, "-m", "tdsm", "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: tdsm ")
    done = subprocess.run([sys.executable, "-m", "tdsm", "evalute"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "evalute" in done.stderr
    assert "evaluate" in done.stderr


def test_the_help_names_every_verb(capsys):
    assert tdsm() == 0
    shown = capsys.readouterr().out
    assert DESCRIPTION.splitlines()[0] in shown
    assert all(f"• {verb} " in shown for verb in VERBS)
    assert tdsm("--version") == 0
    assert capsys.readouterr().out.strip() == package.__version__


# ---------------------------------------------------------------- settings


def printed(capsys, *arguments):
    capsys.readouterr()
    assert tdsm(*arguments, "--print-config") == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [(), ("--seed", 3, "--maps.size", 4, 5, "--probe.rows", "tdsm-avg", "pixels-knn")]
)
@pytest.mark.parametrize("verb", ["demo", "train"])
def test_a_printed_config_starts_the_same_run(capsys, tmp_path, verb, arguments, elsewhere):
    text = printed(capsys, verb, *arguments)
    (tmp_path / "again.yaml").write_text(text)
    for other in ("demo", "train"):
        assert printed(capsys, other, "--config", tmp_path / "again.yaml") == text
    assert list(elsewhere.iterdir()) == []


def test_later_ones_win_defaults_preset_file_flags(capsys, tmp_path):
    file = tmp_path / "some.yaml"
    file.write_text("train: {batch_size: 7, warmup_steps: 3}\n")

    def train(*arguments):
        return yaml.safe_load(printed(capsys, *arguments))["train"]

    assert train("train")["steps"] == 800
    assert train("demo")["steps"] == 800
    assert train("demo", "--preset", "cifar10-small")["steps"] == 30_000
    chosen = train("demo", "--train.warmup-steps", "5", "--preset", "cifar10-small", "--config", file)
    assert (chosen["steps"], chosen["batch_size"], chosen["warmup_steps"]) == (30_000, 7, 5)


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(capsys, config, elsewhere):
    for arguments in (("--run", "new"), ()):
        assert tdsm("demo", "--config", config, "--dry-run", *arguments) == 0
        assert "108 training, 12 validation, 60 test" in capsys.readouterr().err
    assert list(elsewhere.iterdir()) == []


def test_a_dry_run_of_classify_writes_nothing(capsys, tmp_path):
    path = demo(tmp_path / "run")
    before = content(path)
    assert tdsm("classify", path, "--dry-run", "--probe.rows", "tdsm-max") == 0
    assert "rows: tdsm-max" in capsys.readouterr().err
    assert content(path) == before


def test_runs_without_a_name_get_one_of_their_own(capsys, config, elsewhere):
    for name in ("digits", "digits-2"):
        assert tdsm("train", "--config", config, "--train.steps", 0) == 0
        assert capsys.readouterr().out == f"runs/{name}\n"
    assert sorted(path.name for path in (elsewhere / "runs").iterdir()) == ["digits", "digits-2"]


# ---------------------------------------------------------------- wrong input


@pytest.mark.parametrize(
    ("code", "arguments", "words"),
    [
        (2, ["frobnicate"], "Available subcommands: demo, train, classify"),
        (2, ["clasify", "x"], "classify"),
        (2, ["study", "wroth", "x"], "worth"),
        (2, ["train", "--trian.steps", "3"], "--train.steps INT"),
        (2, ["train", "--train.step", "3"], "--train.steps INT"),
        (2, ["train", "--maps.reducton", "rgb"], "--maps.reduction"),
        (2, ["train", "extra"], "extra"),
        (2, ["train", "--seed", "x"], "--seed"),
        (2, ["train", "--seed", "-1"], "seed is -1: expected at least 0"),
        (2, ["train", "--train.steps", "1.5"], "--train.steps"),
        (2, ["train", "--train.learning-rate", "0"], "learning_rate is 0.0: expected a number above 0"),
        (2, ["train", "--maps.reduction", "max"], "expected one of mean, rgb, l2"),
        (2, ["train", "--maps.size", "0", "4"], "size.0 is 0: expected at least 1"),
        (2, ["train", "--data.validation-fraction", "0"], "expected a number above 0"),
        (2, ["train", "--config"], "Expected 1 values"),
        (2, ["train", "--config", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (2, ["train", "--preset", "nope"], "--preset nope: unknown, expected one of digits"),
        (2, ["train", "--resume"], "--resume needs --run"),
        (2, ["train", "--data.source", "digts"], "Perhaps you meant 'digits'"),
        (2, ["train", "--data.source", "notes.txt"], "source 'notes.txt' is none of"),
        (2, ["train", "--data.image-column", "image"], "for sources of parquet, hub"),
        (3, ["train", "--data.source", "empty"], "no images here"),
        (3, ["train", "--data.source", "text.npz"], "cannot be read as .npz"),
        (3, ["train", "--data.source", "npz:nowhere.npz"], "nowhere.npz: no such file"),
        (3, ["train", "--data.source", "/no/where"], "no file or folder here"),
        (3, ["train", "--data.max-train", "3"], "3 training images for 10 classes"),
        (3, ["demo", "--data.max-train", "20", "--train.batch-size", "32"], "fewer than a batch"),
        (2, ["demo", "--probe.rows", "tdsm-av"], "rows: unknown tdsm-av"),
        (2, ["demo", "--maps.selection", "stride:0"], "selection 'stride:0'"),
        (2, ["demo", "--maps.selection", "0,99"], "[99]"),
        (2, ["demo", "--probe.views", "1", "--probe.augment.crop", "8"], "crop is 8"),
        (2, ["demo", "--device", "gpu"], "--device gpu: unknown"),
        (2, ["demo", "--device", "meta"], "--device meta: unknown"),
        (4, ["demo", "--init", "nowhere"], "nowhere: no field found"),
        (4, ["demo", "--init", "notes.txt"], "cannot be read as a checkpoint"),
        (2, ["demo", "--run", "notes.txt"], "notes.txt: this is a file"),
        (5, ["demo", "--run", "notes.txt/run"], "Not a directory"),
        (2, ["demo", "--run", "full"], "not empty and holds no run"),
        (4, ["classify", "nowhere"], "nowhere: no run here (config.json is missing)"),
        (4, ["evaluate", "nowhere"], "nowhere: no run here"),
        (4, ["report", "notes.txt"], "notes.txt: no run here"),
        (4, ["info", "nowhere"], "nowhere: no field found"),
        (2, ["classify"], "PATH"),
        (2, ["evaluate", "a", "b"], "Unrecognized options: b"),
        (2, ["finetune", "nowhere", "--epochs", "0"], "epochs is 0: expected at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_gets_a_line_a_code_and_leaves_nothing(capsys, elsewhere, code, arguments, words):
    (elsewhere / "notes.txt").write_text("text")
    (elsewhere / "text.npz").write_text("text")
    (elsewhere / "empty").mkdir()
    (elsewhere / "full").mkdir()
    (elsewhere / "full" / "thesis.txt").write_text("text")
    before = content(elsewhere)
    assert words in fails(capsys, code, *arguments)
    assert content(elsewhere) == before


def test_a_graphics_card_that_is_not_there_is_named(capsys, monkeypatch, elsewhere):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "--device cuda: torch sees 0 CUDA devices" in fails(capsys, 5, "demo", "--device", "cuda")
    assert list(elsewhere.iterdir()) == []


def test_the_home_folder_is_found_wherever_a_path_is_taken(capsys, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    colour_arrays(home / "colours.npz")
    write_yaml(home / "tiny.yaml")
    assert tdsm("train", "--config=~/tiny.yaml", "--train.steps", 0, "--run=~/first") == 0
    arguments = ("--data.source=npz:~/colours.npz", "--init=~/first", "--data.channels", "grey", "--train.steps", 0)
    assert tdsm("train", *arguments, "--run", "~/second") == 0
    assert capsys.readouterr().out.split() == [str(home / "first"), str(home / "second")]
    assert read_config(home / "second").data.source == f"npz:{home / 'colours.npz'}"
    assert tdsm("info", "~/second") == 0
    assert package.load_field("~/second").config.channels == 1
    assert tdsm("classify", "~/second", "--dry-run", f"--data.source={home}/colours.npz") == 0


def test_every_wrong_entry_of_a_file_is_listed(capsys, tmp_path):
    (tmp_path / "wrong.yaml").write_text("sead: 1\ntrain: {steps: x}\n")
    text = fails(capsys, 2, "train", "--config", tmp_path / "wrong.yaml")
    assert "sead: unknown, perhaps you meant 'seed'" in text
    assert "train.steps is 'x'" in text


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_disk_that_takes_nothing_ends_with_a_line(capsys, monkeypatch, config, error):
    def broken(path, data):
        raise error

    monkeypatch.setattr(io, "write_bytes", broken)
    assert error.strerror in fails(capsys, 5, "train", "--config", config, "--run", "new")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 TB"),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB\nmore lines"),
    ],
    ids=["python", "cpu", "cuda"],
)
def test_too_little_memory_ends_with_a_line_and_debug_shows_where(capsys, monkeypatch, config, error):
    def greedy(*_, **__):
        raise error

    monkeypatch.setattr(stages, "train", greedy)
    assert "out of memory" in fails(capsys, 5, "train", "--config", config, "--run", "new")
    assert tdsm("--debug", "train", "--config", config, "--run", "new") == 5
    assert "in greedy" in capsys.readouterr().err


# ---------------------------------------------------------------- runs that are there


def started():
    """A run whose training has not begun."""
    path = Path("run")
    path.mkdir()
    create_run(path, stages.settled(tiny(), digits())[0], resume=False)
    return path


def test_a_run_is_not_overwritten_nor_changed(capsys, config):
    path = started()
    before = content(path)
    assert "this run exists. Continue it with --resume" in fails(capsys, 2, "demo", "--config", config, "--run", path)
    text = fails(capsys, 2, "demo", "--config", config, "--run", path, "--resume", "--seed", 5)
    assert "other settings: seed: 0 -> 5" in text
    assert content(path, "[a-z]*") == before


def test_a_run_goes_on_without_its_settings_being_given_again(capsys, config):
    started()
    assert tdsm("train", "--run", "run", "--resume") == 0
    assert capsys.readouterr().out == "run\n"
    assert read_config(Path("run")).train == tiny().train
    assert not Path("run/changes.json").exists()


def test_what_the_messages_say_to_do_next_works(capsys):
    started()
    for verb, advice in (
        ("report", "tdsm train --run run --resume"),
        ("evaluate", "tdsm classify run"),
        ("report", "tdsm evaluate run"),
    ):
        assert advice in fails(capsys, 4, verb, "run")
        assert tdsm("info", "run") == 0
        assert f"next       {advice}\n" in f"{capsys.readouterr().out}\n"
        assert tdsm(*advice.split()[1:]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "next: tdsm report run"
    assert tdsm("report", "run") == 0
    assert Path("run/report.html").is_file()
    assert tdsm("info", "run") == 0
    assert "report     run/report.html" in capsys.readouterr().out
    noted = json.loads(Path("run/commands.json").read_text())
    assert all(entry.keys() == {"command", "when", "seconds"} for entry in noted)


def test_a_stage_says_first_of_which_run_and_last_what_comes_next(capsys, tmp_path):
    path = demo(tmp_path / "a run")
    capsys.readouterr()
    assert tdsm("classify", path) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == f"classify {path}: taking it up"
    assert lines[-1] == f"next: tdsm evaluate '{path}'"


def test_a_table_is_in_columns_where_no_terminal_is(capsys, tmp_path):
    path = demo(tmp_path / "run")
    capsys.readouterr()
    assert tdsm("evaluate", path) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{path}/table.md\n"
    rows = [line for line in captured.err.splitlines() if line.strip().startswith(ROWS)]
    assert len(rows) == len(ROWS)
    assert len({line.rstrip().rfind(".") for line in rows}) == 1  # validation accuracies stand below one another
    assert not any("|" in line for line in rows)


def test_two_runs_make_a_page_that_compares_them(capsys, tmp_path):
    one, other = demo(tmp_path / "one"), demo(tmp_path / "other")
    capsys.readouterr()
    assert tdsm("report", one, other) == 0
    assert capsys.readouterr().out == f"{one}/one-other.html\n"
    assert (one / "one-other.html").is_file()


def test_who_reads_no_further_is_no_error(tmp_path):
    path, command = demo(tmp_path / "run"), f"{sys.executable} -m tdsm info"
    shell = f"{command} '{path}' | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == f"run        {path}"


def test_a_terminal_of_few_letters_gets_letters_it_has(tmp_path):
    path = demo(tmp_path / "run")
    done = subprocess.run(
        [sys.executable, "-m", "tdsm", "info", str(path)],
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"4 tokens x 8" in done.stdout


@pytest.mark.parametrize("verb", ["classify", "evaluate", "report"])
def test_a_run_still_in_training_is_left_alone(capsys, verb):
    path = started()
    more = ["--probe.epochs", 7] if verb == "classify" else []
    before = content(path)
    assert "its field is not trained to the end" in fails(capsys, 4, verb, path, *more)
    assert content(path, "[a-z]*") == before


def test_rows_can_be_added_and_fitted_another_way_and_the_run_notes_it(capsys, tmp_path):
    path = demo(tmp_path / "run")
    before = content(path, "[a-z]*")
    assert "rows: unknown tdsm-av" in fails(capsys, 2, "classify", path, "--probe.rows", "tdsm-av")
    assert content(path, "[a-z]*") == before
    assert tdsm("classify", path, "--probe.rows", "tdsm-avg", "tdsm-max") == 0
    said = [line for line in capsys.readouterr().err.splitlines() if not UNDER_WAY.match(line)]
    assert [words.split(":")[0] for words in said] == ["tdsm-max"]
    assert tdsm("evaluate", path) == 0
    assert {row["name"] for row in json.loads((path / "table.json").read_text())} == {*ROWS, "tdsm-max"}
    capsys.readouterr()
    assert tdsm("classify", path, "--probe.rows", "tdsm-avg", "--probe.epochs", 3, "--probe.seeds", 2) == 0
    assert "probe.epochs: 2 -> 3" in capsys.readouterr().err
    assert read_config(path).probe == tiny(probe__epochs=3, probe__seeds=2, probe__rows=("tdsm-avg",)).probe
    assert [entry["changed"][0] for entry in json.loads((path / "changes.json").read_text())] == [
        f"probe.rows: {list(ROWS)} -> ['tdsm-avg', 'tdsm-max']",
        "probe.epochs: 2 -> 3",
    ]


def test_classify_shows_the_runs_own_settings_as_defaults(capsys, tmp_path):
    path = demo(tmp_path / "run")
    assert tdsm("classify", path, "--help") == 0
    assert "passes over the training features. (default: 2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "hint"), [("demo", "with --resume and the same --run"), ("classify", "by the same command")]
)
def test_an_interruption_ends_with_130_and_says_how_to_go_on(capsys, monkeypatch, tmp_path, verb, hint):
    path = demo(tmp_path / "run")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "classify", interrupted)
    arguments = ("demo", "--run", path, "--resume") if verb == "demo" else ("classify", path)
    assert f"interrupted; continue {hint}" in fails(capsys, 130, *arguments)


@pytest.mark.parametrize("name", ["config.json", "environment.json", "field", "data"])
def test_a_run_with_a_part_missing_says_which(capsys, tmp_path, name):
    path = demo(tmp_path / "run")
    part = path / name
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    text = fails(capsys, 4, "report", path)
    assert name in text


# ---------------------------------------------------------------- fields from elsewhere


def test_a_published_checkpoint_becomes_a_run_without_training(capsys, tmp_path):
    source = colour_arrays(tmp_path / "colours.npz")
    arguments = ["--init", FIXTURES / "checkpoint_small.pt", "--data.source", source, "--train.steps", 0]
    assert tdsm("train", *arguments, "--run", "run") == 0
    assert "validation PSNR" in capsys.readouterr().err
    field, published = package.load_field("run"), package.load_field(FIXTURES / "checkpoint_small.pt")
    assert field.config == published.config
    assert all((value == published.state_dict()[name]).all() for name, value in field.state_dict().items())
    assert json.loads(Path("run/field/curves.json").read_text()) == []
    rows = ("--probe.rows", "tdsm-avg", "--probe.epochs", 1, "--maps.selection", "first:2")
    assert [tdsm("classify", "run", *rows), tdsm("evaluate", "run")] == [0, 0]


def test_a_published_checkpoint_of_other_channels_is_refused(capsys, elsewhere):
    text = fails(capsys, 2, "train", "--init", FIXTURES / "checkpoint_small.pt", "--train.steps", 0, "--run", "run")
    assert "has 3 channels, the data 1. Set --data.channels grey or rgb" in text
    assert list(elsewhere.iterdir()) == []


def test_a_saved_field_starts_a_run(config):
    initial_field(tiny(seed=8), 1).save_pretrained("saved")
    assert tdsm("train", "--config", config, "--init", "saved", "--train.steps", 0, "--run", "run") == 0
    assert content(Path("run/field"), "model.safetensors") == content(Path("saved"), "model.safetensors")


def test_the_command_of_a_run_is_kept(monkeypatch, config):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/tdsm", "train", "--run", "run"])
    assert tdsm("train", "--config", config, "--train.steps", 0, "--run", "run") == 0
    assert json.loads(Path("run/environment.json").read_text())["command"] == "tdsm train --run run"
    assert os.path.exists("run/field/model.safetensors")
