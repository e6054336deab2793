import json
import os
import subprocess
import sys
from itertools import chain

import pytest

from tdsm.base import io
from tdsm.training import processes
from tests.tinyrun import tdsm, write_yaml

BATCH = {"batch_size": 15, "steps": 8, "warmup_steps": 2, "validate_every": 1, "checkpoint_every": 2}
OBJECTIVES = {
    "plain": {},
    "all": {
        "train__objectives": {"full": 0.5, "sparse_context": 1, "token_dropout": 2, "nested": 0.5, "mixture": 1},
        "train__augment": {"crop": 1, "flip": True},
        "train__num_queries": 20,
        "train__accumulate": 2,
        "field__has_masks": True,
    },
}


def torchrun(*arguments, script=("-m", "tdsm"), processes=2):
    """Start a command once per process and wait for all."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command += [*script, "--", *map(str, arguments)]  # or torchrun takes --run for one of its own options
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module", params=OBJECTIVES)
def runs(request, tmp_path_factory):
    """The same training by one process and by two."""
    folder = tmp_path_factory.mktemp(request.param)
    config = write_yaml(folder / "tiny.yaml", train=dict(BATCH), **OBJECTIVES[request.param])
    assert tdsm("train", "--config", config, "--run", folder / "one") == 0
    done = torchrun("train", "--config", config, "--run", folder / "two")
    assert done.returncode == 0, done.stderr
    return folder, done


def read_history(run):
    return json.loads((run / "history.json").read_text())


def test_two_processes_have_the_losses_of_one(runs):
    folder, _ = runs
    one, two = [[entry["loss"] for entry in read_history(folder / name)] for name in ("one", "two")]
    assert len(one) == 8
    assert two == pytest.approx(one, rel=1e-6)
    assert len(set(one)) == 8


def test_two_processes_end_with_the_weights_of_one(runs):
    folder, _ = runs
    one, two = [io.read_tensors(folder / name / "field" / "model.safetensors") for name in ("one", "two")]
    assert one.keys() == two.keys()
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 1e-5


def test_the_first_process_alone_speaks_and_writes(runs):
    folder, done = runs
    assert done.stdout == f"{folder}/two\n"
    assert done.stderr.count("validation PSNR") == 1
    names = [{file.name for file in (folder / name).iterdir()} for name in ("one", "two")]
    assert names[0] == names[1]
    assert not list(folder.rglob("*.tmp"))


def test_two_processes_take_up_what_one_left(runs, tmp_path):
    folder, _ = runs
    config = folder / "tiny.yaml"
    assert tdsm("train", "--config", config, "--run", tmp_path / "run") == 0
    for file in (tmp_path / "run" / "field").iterdir():
        file.unlink()
    (tmp_path / "run" / "field").rmdir()
    for file in (tmp_path / "run" / "checkpoints" / "step-00000008").iterdir():
        file.unlink()
    (tmp_path / "run" / "checkpoints" / "step-00000008").rmdir()
    done = torchrun("train", "--config", config, "--run", tmp_path / "run", "--resume")
    assert done.returncode == 0, done.stderr
    one, two = [[entry["loss"] for entry in read_history(path)] for path in (folder / "one", tmp_path / "run")]
    assert two == pytest.approx(one, rel=1e-6)


def test_a_failing_process_stops_all(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(
        "import sys\n"
        "from tdsm.training import processes, reconstruction\n"
        "from tdsm.cli.main import run_command\n"
        "whole = reconstruction.train_step\n"
        "def step(*arguments):\n"
        "    if processes.rank() == 1 and arguments[-1] == 3:\n"
        "        raise OSError('no space left')\n"
        "    return whole(*arguments)\n"
        "reconstruction.train_step = step\n"
        "sys.exit(run_command(sys.argv[1:]))\n"
    )
    config = write_yaml(tmp_path / "tiny.yaml", train=dict(BATCH))
    done = torchrun("train", "--config", config, "--run", tmp_path / "run", script=[str(script)])
    assert done.returncode != 0
    assert "tdsm: no space left" in done.stderr
    assert not (tmp_path / "run" / "field").exists()
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]


def test_other_verbs_say_that_they_run_in_one_process(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert tdsm("classify", "runs/none") == 2
    assert "classify runs in one process" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "accumulate", "size"), [(1, 1, 5), (3, 2, 16), (4, 1, 4), (2, 5, 11)])
def test_shares_cover_a_batch_once(monkeypatch, count, accumulate, size):
    monkeypatch.setattr(processes, "count", lambda: count)
    rows = []
    for rank in range(count):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        mine = processes.shares(size, accumulate)
        assert len(mine) == accumulate
        rows.append([list(range(size))[share] for share in mine])
    assert list(chain(*chain(*rows))) == list(range(size))
    assert all(part for share in rows for part in share)
