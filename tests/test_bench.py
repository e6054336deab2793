"""The benchmark measures what it says: the cases are right, rounds take turns, ratios are of the right things.

Nothing here asserts a time. torch.compile is left out, as it does not go with the shape checks of the test run.
"""

import json
import re
import runpy
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tdsm.base.errors import ResourceError, UsageError
from tdsm.bench import measure, run
from tdsm.bench.cases import BACKWARD, CASES, FLOOR, FORWARD, STEP, work_of
from tdsm.bench.config import BenchConfig
from tdsm.bench.run import run_bench
from tdsm.bench.text import format_report
from tdsm.decomposition import component_images, decompose, separated, spatial_map
from tdsm.decomposition.kernels import cpu
from tdsm.models.config import FieldConfig
from tests.tinyrun import tdsm

FIELD = {"mapping_dim": 4, "widths": (8, 12), "num_latents": 5, "cross_heads": 2, "cross_head_dim": 4}
FIELD |= {"self_heads": 2, "self_head_dim": 4, "processor_depth": 1}
FLAGS = [f"--field.{name.replace('_', '-')}={value}" for name, value in FIELD.items() if name != "widths"]
FLAGS += ["--field.widths", "8", "12", "--side", "6", "--repeats", "2", "--device", "cpu"]
CPU = torch.device("cpu")
needs_kernel = pytest.mark.skipif(not cpu.serves(1), reason=cpu.describe())


@pytest.fixture(autouse=True)
def _no_compiling(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function=None, **_: function or (lambda inner: inner))


def config(**changes):
    return BenchConfig(**{"field": FieldConfig(**FIELD), "side": (6,), "repeats": 2, "device": "cpu"} | changes)


def problem(**changes):
    return run.make_problem(config(**changes), tokens=5, batch=2, side=6, device=CPU)


# ---------------------------------------------------------------- what is measured


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("loop", "batched", "exact"))])
def test_what_decodes_alone_gives_what_the_loop_gives(name):
    asked = problem()
    seen = work_of(CASES[name], asked, FORWARD)(asked.tokens)
    want = component_images(asked.field, asked.tokens, asked.size, strategy="loop")
    want = want.mean(-1).movedim(1, -1) if name == "exact-mean" else want
    near = {"rtol": 0.0, "atol": 0.3} if "bf16" in name else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(seen.float().reshape(want.shape), want, **near)


def test_the_others_are_what_they_are_called():
    asked = problem()
    seen = {name: work_of(case, asked, case.modes[0])(asked.tokens) for name, case in CASES.items()}
    tokens = asked.field.encode(asked.images)
    torch.testing.assert_close(seen["encode"], tokens)
    torch.testing.assert_close(seen["pixels-to-tdsm"], spatial_map(asked.field, tokens, asked.size))
    pooled = spatial_map(asked.field, asked.tokens, asked.size).mean((1, 2), keepdim=True)
    torch.testing.assert_close(seen["pooled"], pooled)
    parts = decompose(asked.field, asked.tokens, asked.size, method="additive", points=3)
    torch.testing.assert_close(seen["additive"], parts.components)
    assert seen["finetune"].shape == ()


def test_finetuning_moves_its_own_weights_down_the_loss():
    asked = problem()
    before = [weight.clone() for weight in asked.field.parameters()]
    step = work_of(CASES["finetune"], asked, STEP)
    losses = [float(step(asked.tokens)) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert all(torch.equal(weight, was) for weight, was in zip(asked.field.parameters(), before, strict=True))


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if BACKWARD in case.modes])
def test_backward_asks_for_gradients_of_tokens_and_decoder(name, monkeypatch):
    asked, found = problem(), []
    original = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: found.append(original(*a, **k)) or found[-1])
    work_of(CASES[name], asked, BACKWARD)(asked.tokens)
    ((tokens, *weights),) = [gradients for gradients in found if len(gradients) > 2]
    assert tokens.shape == asked.tokens.shape
    assert tokens.abs().max() > 0
    sizes = {weight.shape for weight in weights if weight is not None}
    assert {weight.shape for weight in asked.field.decoder_feedforward.parameters()} <= sizes


def test_forward_keeps_no_graph():
    asked = problem()
    assert all(
        not work_of(case, asked, FORWARD)(asked.tokens).requires_grad
        for case in CASES.values()
        if FORWARD in case.modes
    )


def test_the_units_are_those_the_kernel_sums(monkeypatch):
    asked, counted = problem(), []
    original = separated.gated_sum

    def spy(a, b, r, bias, weight, **options):
        counted.append(r.numel() * weight.shape[1])
        return original(a, b, r, bias, weight, **options)

    monkeypatch.setattr(separated, "gated_sum", spy)
    work_of(CASES["exact"], asked, FORWARD)(asked.tokens)
    assert sum(counted) == asked.units


@needs_kernel
def test_the_floor_does_as_many(monkeypatch):
    asked, counted = problem(), []
    monkeypatch.setattr(measure.cpu, "bare", counted.append)
    work_of(CASES[FLOOR], asked, FORWARD)(asked.tokens)
    assert counted == [asked.units]


# ---------------------------------------------------------------- how it is measured


def fake_rows(durations, log, **changes):
    """Rows whose work is to note that it was run and to let a pretended clock go on."""
    rows = [run.Row(problem(**changes), name, FORWARD) for name in durations]
    for row in rows:

        def work(tokens, name=row.name):
            log.append((name, tokens.shape[1]))
            log.clock += durations[name]
            return tokens

        row.work = work
    return rows


class Log(list):
    clock = 0.0


@pytest.fixture
def log(monkeypatch):
    log = Log()
    monkeypatch.setattr(measure.time, "perf_counter", lambda: log.clock)
    return log


def test_rounds_take_turns_and_slow_rows_sit_out(log):
    rows = fake_rows({"loop": 4.0, "exact": 1.0}, log)
    run.measure(rows, config(repeats=3, seconds=6.0), CPU)
    warm, cold = [("loop", 1), ("exact", 1)], [("loop", 5), ("exact", 5)]
    assert log == [*warm, *warm, *cold, *cold, ("exact", 5), ("exact", 5)]
    assert [row.seconds for row in rows] == [[4.0, 4.0], [1.0] * 4]
    assert [row.timed for row in rows] == [[4.0], [1.0] * 3]


def test_one_run_counts_if_there_is_no_other(log):
    (row,) = fake_rows({"loop": 9.0}, log)
    run.measure([row], config(seconds=6.0), CPU)
    assert row.timed == [9.0]


def test_a_row_that_fails_says_why_and_the_others_go_on(log):
    rows = fake_rows({"loop": 1.0, "exact": 1.0}, log)

    def broken(tokens):
        raise torch.OutOfMemoryError("CUDA out of memory.\nand much more")

    rows[0].work = broken
    run.measure(rows, config(), CPU)
    assert rows[0].skipped == "OutOfMemoryError: CUDA out of memory."
    assert rows[1].skipped is None
    assert len(rows[1].timed) == 2


@pytest.mark.parametrize(
    ("error", "is_told"),
    [
        (ResourceError("decoding a single token does not fit in memory"), True),
        (torch._dynamo.exc.TorchDynamoException("nothing here compiles"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
    ids=str,
)
def test_only_what_a_machine_lacks_is_told_in_a_row(error, is_told, log):
    (row,) = fake_rows({"loop": 1.0}, log)

    def broken(tokens):
        raise error

    row.work = broken
    if is_told:
        run.measure([row], config(), CPU)
        assert row.skipped.startswith(type(error).__name__)
    else:
        with pytest.raises(RuntimeError, match="mat1"):
            run.measure([row], config(), CPU)


def test_a_system_without_a_load_average_is_measured_too(monkeypatch):
    monkeypatch.delattr(measure.os, "getloadavg")
    report = run_bench(config(cases=("exact",), gradients=False, growth=False))
    assert report["load_average"] == {"before": None, "after": None}
    assert "load average unknown before, unknown after" in format_report(report)
    assert f"Kernel: {cpu.describe()}." in format_report(report)


def test_what_keeps_more_than_there_is_is_not_started(monkeypatch):
    asked = problem()
    monkeypatch.setattr(run, "free_bytes", lambda device: 8 * 4 * asked.units)
    found = {}
    for row in run.rows_of(asked, list(CASES), config()):
        run.warm_up(row, config(), CPU)
        found[row.name, row.mode] = row.skipped
    kept = {key for key, reason in found.items() if reason is not None}
    loops = {name for name, case in CASES.items() if case.is_loop} | {"batched"}
    assert kept == {(name, BACKWARD) for name in loops}
    assert "for its backward pass" in found["loop", BACKWARD]


def test_the_estimate_is_what_the_loop_keeps():
    """Within a third, for the decoder of the reference scale; it only has to keep a machine from swapping."""
    asked = run.make_problem(config(field=FieldConfig(widths=(512,), processor_depth=0)), 4, 1, 16, CPU)
    held = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        component_images(asked.field, asked.tokens, asked.size, strategy="loop")
    for weight in asked.field.parameters():
        held.pop(weight.data_ptr(), None)
    estimate = run.kept_bytes(run.Row(asked, "loop", BACKWARD))
    assert estimate / 1.5 < sum(held.values()) < 1.5 * estimate


def test_memory_is_seen_and_told_from_what_was_there():
    megabytes = 2**20

    def work():
        block = torch.ones(80 * megabytes, dtype=torch.uint8)
        time.sleep(0.05)
        return block[-1]

    there = torch.ones(200 * megabytes, dtype=torch.uint8)
    for _ in range(2):  # the second time it must be seen again, though the process may have kept it
        _, peak = measure.peak_memory(work, CPU)
        assert 70 * megabytes < peak < 180 * megabytes
    assert there.all()


def test_where_memory_cannot_be_read_there_is_none(monkeypatch):
    monkeypatch.setattr(measure, "resident_bytes", lambda: None)
    seconds, peak = measure.peak_memory(lambda: time.sleep(0.01), CPU)
    assert seconds >= 0.01
    assert peak is None


def test_a_card_is_waited_for_and_counts_its_memory_itself(monkeypatch):
    calls, card = [], torch.device("cuda")
    fake = {
        "synchronize": lambda: calls.append("wait"),
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device: calls.append("reset"),
        "memory_allocated": lambda device: 100,
        "max_memory_allocated": lambda device: 350,
        "memory_reserved": lambda device: 140,
        "mem_get_info": lambda device: (7, 9),
    }
    for name, function in fake.items():
        monkeypatch.setattr(torch.cuda, name, function)
    _, peak = measure.peak_memory(lambda: calls.append("work"), card)
    assert peak == 250
    assert calls == ["reset", "wait", "work", "wait"]
    assert measure.free_bytes(card) == 7 + 40


def test_bandwidth_is_bytes_over_seconds(monkeypatch):
    monkeypatch.setattr(measure, "seconds_of", lambda work, device: 0.5)
    assert measure.bandwidth(CPU) == 2 * measure.BUFFER_BYTES


# ---------------------------------------------------------------- what is made of it


def made(asked, seconds, mode=FORWARD, skipped=None):
    return [run.Row(asked, name, mode, None, [99.0, *times], 2000, 600) for name, times in seconds.items()]


def test_ratios_are_against_the_loops_and_floors_of_the_same_problem():
    asked, elsewhere = problem(), problem()
    rows = made(asked, {"loop": [8.0, 9.0, 10.0], "loop-bf16": [6.0], "exact": [0.5], FLOOR: [0.25], "encode": [1.0]})
    rows += made(elsewhere, {"loop": [1e9], FLOOR: [1e9]})
    exact = run.entry(rows[2], rows, speed=1000.0)
    assert exact["faster_than_loop"] == 18
    assert (exact["best_loop"], exact["faster_than_best_loop"]) == ("loop-bf16", 12)
    assert exact["times_gated_floor"] == 2
    assert exact["times_write_floor"] == 0.5 / 0.6
    assert exact["images_per_second"] == 4
    assert exact["peak_bytes"] == 2000
    assert run.entry(rows[0], rows, 1.0)["seconds"] == {"median": 9, "least": 8, "most": 10, "all": [8, 9, 10]}
    assert not {"faster_than_loop", "times_gated_floor"} & run.entry(rows[4], rows, 1.0).keys()


def test_both_passes_evaluate_the_units_so_their_floor_is_twice():
    asked = problem()
    rows = made(asked, {"exact": [3.0], "loop": [30.0]}, BACKWARD) + made(asked, {FLOOR: [0.5], "loop": [9.0]})
    both = run.entry(rows[0], rows, 1.0)
    assert both["times_gated_floor"] == 3
    assert both["gated_units"] == 2 * asked.units
    assert both["faster_than_loop"] == 10


def test_growth_varies_tokens_then_side():
    rows = list(run.all_rows(config(gradients=False), ["exact", FLOOR], CPU))
    shapes = [(row.problem.tokens.shape[1], row.problem.side) for row in rows if row.name == "exact"]
    assert shapes == [(5, 6), (1, 6), (2, 6), (5, 3), (5, 12)]


def test_problems_are_the_product_of_what_is_asked():
    asked = config(tokens=(2, 3), batch=(1, 4), side=(5, 6), dtype=("float32", "bfloat16"), growth=False)
    rows = run.all_rows(asked, ["encode"], CPU)
    seen = [(*row.problem.tokens.shape[:2], row.problem.side, row.problem.tokens.dtype) for row in rows]
    assert len(seen) == len(set(seen)) == 16
    assert (4, 3, 6, torch.bfloat16) in seen


@pytest.mark.parametrize("names", [("exakt",), ("loop", "nonsense")])
def test_unknown_cases_are_named(names):
    with pytest.raises(UsageError, match=rf"unknown case '{names[-1]}', (perhaps you meant exact|expected some of)"):
        run_bench(config(cases=names))


def test_a_field_that_does_not_separate_is_refused():
    with pytest.raises(UsageError, match="a query residual and a feed-forward"):
        run_bench(config(field=FieldConfig(**FIELD, has_decoder_feedforward=False)))


# ---------------------------------------------------------------- the command


@needs_kernel
def test_everything_is_measured_and_printed_as_json(capsys):
    assert tdsm("bench", *FLAGS, "--json", "-", "--batch", 1, 2) == 0
    report = json.loads(capsys.readouterr().out)
    assert report.keys() >= {"date", "command", "processor", "threads", "versions", "load_average", "config", "rows"}
    main = [row for row in report["rows"] if (row["tokens"], row["side"]) == (5, 6)]
    expected = {(batch, name, mode) for batch in (1, 2) for name, case in CASES.items() for mode in case.modes}
    assert {(row["batch"], row["case"], row["mode"]) for row in main} == expected
    assert all(row["seconds"]["least"] <= row["seconds"]["median"] <= row["seconds"]["most"] for row in report["rows"])
    assert all(len(row["seconds"]["all"]) == 2 for row in report["rows"])
    exact = next(row for row in main if row["case"] == "exact")
    assert exact["written_bytes"] == 5 * 36 * 3 * 4
    assert exact["best_loop"].startswith("loop")


def test_the_tables_say_what_the_file_says(capsys, tmp_path):
    path = tmp_path / "new" / "bench.json"
    assert tdsm("bench", *FLAGS, "--json", path, "--cases", "loop", "exact", "--no-gradients") == 0
    printed = capsys.readouterr().out
    report = json.loads(path.read_text())
    assert printed == format_report(report) + "\n"
    assert "### 1 image, 5 tokens, 6 × 6 points, float32" in printed
    assert "### Growth of exact decoding" in printed
    assert BACKWARD not in printed
    (loop,) = [line for line in printed.splitlines() if line.startswith("| loop |")]
    assert f"| {report['rows'][0]['seconds']['median']:.4g} |" in loop


def test_what_could_not_be_measured_is_said_and_ends_with_an_error(capsys, monkeypatch):
    monkeypatch.setattr(run, "free_bytes", lambda device: 0.0)
    assert tdsm("bench", *FLAGS, "--cases", "loop", "exact", "--no-growth") == 5
    captured = capsys.readouterr()
    assert "| loop | forward+backward | not measured: keeps about" in captured.out
    assert "tdsm: bench: not measured: loop forward+backward (keeps about" in captured.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--cases", "exakt"], 2, "perhaps you meant exact"),
        (["--device", "cuda:7"], 5, "torch sees"),
        (["--side", "0"], 2, "side.0 is 0: expected at least 1"),
        (["--dtype", "int8"], 2, "int8"),
        (["--seconds", "0"], 2, "seconds is 0.0: expected a number above 0"),
    ],
    ids=str,
)
def test_wrong_options_are_named(capsys, arguments, code, words):
    assert tdsm("bench", *arguments) == code
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="would measure the GPU")
def test_the_script_for_a_gpu_says_that_there_is_none(monkeypatch, capsys, tmp_path):
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"
    monkeypatch.setattr(sys, "argv", [str(path), str(tmp_path / "result.md")])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert (end.value.code, list(tmp_path.iterdir())) == (5, [])
    assert "there is no GPU here" in capsys.readouterr().err


def test_the_script_for_a_gpu_writes_down_what_failed_and_goes_on():
    script = runpy.run_path(str(Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"))
    found = {"tiles": [{"tile": "8 × 8 × 16", "mean, ms": 0.25}, {"tile": "4 × 4 × 64"}], "erf": {"failed": "no such"}}
    text = script["markdown"](found, {"gpus": ["H100"], "versions": {"torch": "2.13"}})
    assert text.startswith("# The Triton kernels on a GPU\n\nH100, torch 2.13, ")
    assert "| tile | mean, ms |\n|---|---|\n| 8 × 8 × 16 | 0.25 |\n| 4 × 4 × 64 | – |\n" in text
    assert "## erf\n\nFailed: no such\n" in text


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_script_for_a_gpu_is_rehearsed_in_the_interpreter(tmp_path):
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"
    subprocess.run([sys.executable, path, tmp_path / "result.md", "--rehearse"], check=True, timeout=600)
    text = (tmp_path / "result.md").read_text()
    assert re.findall("^## (.*)", text, re.MULTILINE) == ["check", "tiles", "erf", "rows", "whole"]
    assert "Failed" not in text


@pytest.mark.parametrize("script", ["decompose", "end_to_end"])
def test_the_scripts_run_their_cases(script, monkeypatch, capsys):
    path = Path(__file__).resolve().parents[1] / "benchmarks" / f"{script}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *FLAGS, "--no-growth", "--no-gradients", "--json", "-"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    report = json.loads(capsys.readouterr().out)
    assert report["command"].startswith(f"{script}.py --field")
    names = {row["case"] for row in report["rows"]} - {FLOOR}
    assert ("encode" in names, "loop" in names) == (script == "end_to_end", script == "decompose")


@pytest.mark.slow
def test_torch_compile_compiles_what_it_is_given():
    """In a process of its own: three ways to compile, half a minute."""
    names = ["loop", "loop-compiled", "loop-bf16-compiled", "exact-inductor"]
    arguments = ["bench", *FLAGS, "--no-growth", "--cases", *names, "--json", "-"]
    done = subprocess.run([sys.executable, "-m", "tdsm", *arguments], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert {row["case"] for row in json.loads(done.stdout)["rows"]} >= set(names)
