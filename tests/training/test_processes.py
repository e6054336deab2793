import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
import torch

from tdsm.base import io
from tdsm.training import processes
from tests.tinyrun import content, tdsm, write_yaml

ROOT = Path(__file__).resolve().parents[2]

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
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
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
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


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


FAILS = """
import sys
from tdsm.training import engine, processes
from tdsm.cli.main import run_command
whole = engine._Training.take_step
def step(self):
    if processes.rank() == 1 and self.step == 3:
        raise OSError('no space left')
    whole(self)
engine._Training.take_step = step
sys.exit(run_command(sys.argv[1:]))
"""


def test_a_failing_process_stops_all_and_the_run_then_ends_as_if_it_had_not_failed(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text(FAILS)
    config = write_yaml(tmp_path / "tiny.yaml", train=BATCH | {"ema": 0.8, "patience": 6})
    done = torchrun("train", "--config", config, "--run", tmp_path / "run", script=[str(script)])
    assert done.returncode != 0
    assert "tdsm: no space left" in done.stderr
    assert not (tmp_path / "run" / "field").exists()
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    for name, options in {"run": ["--resume"], "whole": []}.items():
        done = torchrun("train", "--config", config, "--run", tmp_path / name, *options)
        assert done.returncode == 0, done.stderr
    patterns = ["field/*.safetensors", "checkpoints/step-00000008/[mao]*[lre].safetensors"]
    whole, resumed = (content(tmp_path / name, *patterns) for name in ("whole", "run"))
    assert whole == resumed
    assert len(whole) == 4
    metrics = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "run")
    ]
    for entry in chain(*metrics):
        del entry["seconds"], entry["images_per_second"]
    assert metrics[0] == metrics[1]
    assert len(metrics[0]) == 8


INTERRUPTED = """
import signal
import sys
from tdsm.training import engine, processes
from tdsm.cli.main import run_command
whole = engine._Training.take_step
def step(self):
    whole(self)
    if processes.rank() == 1 and self.step == 5:
        signal.raise_signal(signal.SIGINT)
engine._Training.take_step = step
sys.exit(run_command(sys.argv[1:]))
"""


def test_a_ctrl_c_of_one_process_ends_all_after_the_same_step(tmp_path):
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED)
    rare = BATCH | {"steps": 40, "validate_every": 40, "checkpoint_every": 40}
    config = write_yaml(tmp_path / "tiny.yaml", train=rare)
    done = torchrun("train", "--config", config, "--run", tmp_path / "run", script=[str(script)])
    assert done.returncode != 0
    assert "interrupted; continue with --resume" in done.stderr
    assert [folder.name for folder in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000016"]


ALL = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tdsm.base import io
from tdsm.classification import gates, probe, regimes
from tdsm.classification.config import HeadConfig, ProbeConfig, RegimeConfig
from tdsm.features.config import MapConfig
from tdsm.features.store import FeatureRows
from tdsm.models.field import NeuralField
from tdsm.training import processes
from tdsm.training.engine import train
from tdsm.training.reconstruction import measure_psnr, train_field
from tests.samples import all_floats
from tests.tinyrun import digits, tiny
histories = []
def kept(*arguments, **options):
    histories.append(train(*arguments, **options))
    return histories[-1]
probe.train_task = gates.train_task = regimes.train = kept
probe.ROUND = 1  # validation after every epoch, as short as they are
data, folder = digits(), Path(sys.argv[-1])
samples = {
    name: probe.Samples(FeatureRows([all_floats(images).movedim(1, -1).repeat(1, 1, 1, 4)]), images.labels)
    for name, images in (("train", data.train), ("validation", data.validation), ("test", data.test))
}
with processes.joined():
    few = {"batch_size": 2}  # a process of three has no row
    config = ProbeConfig(epochs=3, **few, learning_rates=(1e-3,), ema=0.5, gradient_clip=1.0)
    choice = probe.fit_head(HeadConfig(kind="cnn"), samples["train"], samples["validation"], 10, config, 0, "cpu")
    tokens = gates.learn_tokens(HeadConfig(), 4, 2, samples["train"], samples["validation"], 10, config, 0, "cpu")
    torch.manual_seed(0)
    field = NeuralField(tiny(field__channels=1).field)
    config = tiny(train__batch_size=16, train__accumulate=2, train__num_queries=20).train
    histories.append(train_field(field, data, config, 0, folder / "field"))
    counts = [int((probe.predict(choice.classifier, samples["test"].features, "cpu") == data.test.labels).sum())]
    for regime in regimes.REGIMES:
        settings = {"epochs": 2, "batch_size": 35, "mixup": 0.4, "token_drop": 0.2, "accumulate": 2, "regime": regime}
        config = RegimeConfig(**settings, learning_rates={"decoder": 1e-2})
        model, _ = regimes.fit_regime(field, data, MapConfig(), config, 0, folder / regime, "cpu", {})
        counts.append(int((probe.predict(model, data.test, "cpu") == data.test.labels).sum()))
    psnr = measure_psnr(model.field, data.test)
    if processes.is_first():
        losses = [entry["loss"] for history in histories for entry in history]
        io.write_json(folder / "all.json", {"losses": losses, "counts": counts, "tokens": tokens, "psnr": psnr})
"""


NORMALISED = """
import sys
from pathlib import Path
import torch
from tdsm.base import io
from tdsm.classification.residual import BatchNorm
from tdsm.training import processes
torch.manual_seed(0)
norm, maps, weight = BatchNorm(3).double(), 2 + torch.randn(7, 3, 4, 5).double(), torch.randn(7, 3, 4, 5).double()
torch.nn.init.normal_(norm.weight)
with processes.joined():
    rows = processes.shares(len(maps))[0]
    mine = maps[rows].requires_grad_()
    shown = norm(mine)
    (shown * weight[rows]).sum().backward()
    whole = {}
    for name, part in (("shown", shown.detach()), ("gradient", mine.grad)):
        placed = torch.zeros_like(maps)
        placed[rows] = part
        whole[name] = processes.total(placed)
    whole |= {"by_weight": processes.total(norm.weight.grad), "by_bias": processes.total(norm.bias.grad)}
    if processes.is_first():
        io.write_tensors(Path(sys.argv[-1]) / "all.safetensors", whole | dict(norm.named_buffers()))
"""


def test_a_batch_is_normalised_over_all_processes(tmp_path):
    script, seen = tmp_path / "normalised.py", []
    script.write_text(NORMALISED)
    for count in (1, 3):
        (tmp_path / str(count)).mkdir()
        done = torchrun(tmp_path / str(count), script=[str(script)], processes=count)
        assert done.returncode == 0, done.stderr
        seen.append(io.read_tensors(tmp_path / str(count) / "all.safetensors"))
    assert seen[0]["gradient"].abs().max() > 0.1
    for name in ("shown", "gradient", "by_weight", "by_bias", "running_mean", "running_var"):
        torch.testing.assert_close(seen[1][name], seen[0][name], rtol=1e-9, atol=1e-9)


def test_fields_heads_gates_and_regimes_do_not_depend_on_the_number_of_processes(tmp_path):
    script, seen = tmp_path / "all.py", []
    script.write_text(ALL)
    for count in (1, 2, 3):
        done = torchrun(tmp_path / str(count), script=[str(script)], processes=count)
        assert done.returncode == 0, done.stderr
        seen.append(json.loads((tmp_path / str(count) / "all.json").read_text()))
    one, *others = seen
    assert len(one["losses"]) == 3 + 1 + 3 + 2 + 2 + 4
    for other in others:
        assert other["losses"] == pytest.approx(one["losses"], rel=1e-5)  # float32, summed in another order
        assert other["psnr"] == pytest.approx(one["psnr"], rel=1e-6)
        assert (other["counts"], other["tokens"]) == (one["counts"], one["tokens"])


@pytest.mark.parametrize(("count", "samples"), [(1, 7), (2, 7), (3, 7), (3, 2), (3, 1), (2, 0)])
def test_every_sample_is_computed_by_one_process(monkeypatch, count, samples):
    seen, whole = [], []
    monkeypatch.setattr(processes, "count", lambda: count)
    monkeypatch.setattr(processes, "total", lambda values: whole.append(values) or values * 0 + 1)
    for rank in range(count):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        with processes.sharing():
            processes.each_sample(samples, lambda indices: seen.extend(indices.tolist()) or indices * 0.1, 2, "cpu")
    assert sorted(seen) == list(range(samples))
    values, counts = torch.stack(whole).sum(0)
    assert torch.equal(counts, torch.ones(samples, dtype=torch.float64))
    assert torch.equal(values, (torch.arange(samples) * 0.1).double())


def test_a_process_computes_alone_unless_all_share(monkeypatch):
    monkeypatch.setattr(processes, "count", lambda: 3)
    monkeypatch.setattr(processes, "total", lambda values: pytest.fail("waits for the others"))
    assert processes.each_sample(4, lambda indices: indices, 2, "cpu").tolist() == [0, 1, 2, 3]


def test_a_sample_counted_twice_is_noticed(monkeypatch):
    monkeypatch.setattr(processes, "total", lambda values: values * 2)
    with pytest.raises(AssertionError, match="never or twice"), processes.sharing():
        processes.each_sample(5, lambda indices: indices, 2, "cpu")


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
