"""A run that fails or is killed anywhere, and is started again, ends as if nothing had happened."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.base.test_io import Disk, no_space
from tests.tinyrun import content, tdsm, write_yaml

KEPT = ("field/*.safetensors", "field/config.json", "rows/*/*.safetensors", "scores/*/predictions.safetensors")
KEPT += ("features/**/*.safetensors", "regimes/*/*/*.safetensors", "data/*", "config.json", "quality/quality.json")
VERBS = (
    ("train", "--resume"),
    ("classify",),
    ("evaluate",),
    ("finetune", "--epochs", "2", "--batch-size", "32"),
    ("report",),
)
KILLS = 60


def commands(config, run):
    """The verbs of a whole run, each to be repeated until it succeeds."""
    start = ["train", "--config", str(config), "--run", str(run)]
    first = [*start, "--resume"] if (run / "config.json").exists() else start
    return [first, *([verb, str(run), *options] for verb, *options in VERBS[1:])]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An undisturbed run: its settings, what it leaves, how many operations its writes take."""
    folder = tmp_path_factory.mktemp("whole")
    config = write_yaml(folder / "tiny.yaml", train__steps=3, probe__rows=("tdsm-avg",), probe__epochs=1)
    disk = run_on_a_bad_disk(config, folder / "run", fail_at=10**9)
    return config, content(folder / "run", *KEPT), len(disk.calls)


def run_on_a_bad_disk(config, run, fail_at):
    """Train, classify and evaluate until something fails; the operation `fail_at` of all writes does."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, fail_at, no_space)
        for number in range(3):
            if code := tdsm(*commands(config, run)[number]):
                assert code == 5
                break
    return disk


def survives(whole, run, fail_at):
    """Whether a run that met a full disk once ends like one that did not."""
    config, expected, _ = whole
    run_on_a_bad_disk(config, run, fail_at)
    assert [tdsm(*commands(config, run)[number]) for number in range(3)] == [0, 0, 0]
    assert not [file for file in run.rglob("*") if file.name.endswith((".tmp", ".old"))]
    return content(run, *KEPT) == expected


def test_a_disk_that_fails_at_an_operation_is_no_loss(whole, tmp_path, capsys):
    *_, count = whole
    assert count > 100
    assert all(survives(whole, tmp_path / str(fail_at), fail_at) for fail_at in range(3, count, count // 12))
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_disk_that_fails_at_any_operation_in_turn_is_no_loss(whole, tmp_path):
    *_, count = whole
    assert [fail_at for fail_at in range(count) if not survives(whole, tmp_path / str(fail_at), fail_at)] == []


@pytest.mark.slow
def test_sixty_kills_lose_and_repeat_nothing(tmp_path):
    """Real SIGKILLs at random moments of every verb, each started again until it is done."""
    config, draw = write_yaml(tmp_path / "tiny.yaml", train__steps=40, train__checkpoint_every=5), random.Random(0)
    whole, seconds, kills, rounds = tmp_path / "undisturbed", [], 0, 0
    for number in range(len(VERBS)):
        code, taken = start(commands(config, whole)[number], None)
        assert code == 0
        seconds.append(taken)
    while kills < KILLS:
        run, rounds = tmp_path / f"killed-{rounds}", rounds + 1
        kills += sum(kill(config, run, number, seconds[number], draw) for number in range(len(VERBS)))
        assert content(run, *KEPT) == content(whole, *KEPT)
        scores = list((run / "scores").rglob("score.json"))
        assert scores
        assert all('"test_reads": 1' in file.read_text() for file in scores)
    print(f"{kills} kills in {rounds} runs")


def kill(config: Path, run: Path, number: int, seconds: float, draw: random.Random) -> int:
    """Start a verb and kill it until it is done, at most 8 times; return how often."""
    for kills in range(9):
        code, _ = start(commands(config, run)[number], draw.uniform(0.2, 1) * seconds if kills < 8 else None)
        if code == 0:
            return kills
        assert code == -signal.SIGKILL, (commands(config, run)[number], code)
    raise AssertionError("a verb that was not killed did not end")


def start(command: list[str], kill_after: float | None) -> tuple[int, float]:
    """Run a command in a process of its own; return its code and the seconds it took."""
    began = time.monotonic()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tdsm", *command], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        process.wait(kill_after)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait(), time.monotonic() - began


AUDITED = """
import sys
found = []
sys.addaudithook(lambda event, arguments: found.append(arguments) if event == "pickle.find_class" else None)
import torch
torch.set_num_threads(1)
from tdsm.cli.main import run_command
for command in COMMANDS:
    assert run_command(command) == 0
print(len(found), "pickle events")
"""


def test_no_stage_of_a_run_unpickles_anything(whole, tmp_path):
    config, *_ = whole
    code = AUDITED.replace("COMMANDS", repr(commands(config, tmp_path / "run")))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("0 pickle events\n")


def test_the_audit_notices_a_pickle(tmp_path):
    code = AUDITED.replace("COMMANDS", "[]").replace("print(", "import pickle; pickle.loads(pickle.dumps(len)); print(")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path.cwd(), timeout=300)
    assert done.stdout.endswith("1 pickle events\n")
