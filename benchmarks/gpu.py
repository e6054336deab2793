"""All there is to measure of the Triton kernels on one GPU, in one run: `python benchmarks/gpu.py RESULT.md`.

    check     values and gradients beside the eager form in float64
    tiles     forward and backward over tiles and warps; the best are what `gpu.TILE` should be
    erf       the same kernel with the library's erf instead of the polynomial's power
    rows      600 000 rows in one call, more than a grid axis of 65 535 holds
    whole     `tdsm bench`: loops, exact, maps, pixels to map and a fine-tuning step

Each part runs in a process of its own, so that one that fails, or takes more than its minutes, leaves the others
standing; that is written down. Kernels of all tiles are compiled beforehand, in as many processes as there are cores;
nothing else runs while something is timed. `--rehearse` takes the same steps with tiny sizes through Triton's
interpreter on a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date
from itertools import product
from pathlib import Path
from statistics import median

PARTS = ("check", "tiles", "erf", "rows", "whole")
TILES = [(8, 8, 16), (4, 16, 16), (16, 8, 16), (8, 16, 16), (8, 8, 32), (4, 4, 64)]
WARPS = (4, 8)
WHOLE = ["loop", "loop-compiled", "loop-bf16", "loop-bf16-compiled", "exact", "exact-mean", "encode", "pixels-to-tdsm"]
ROUNDS = 20
CHOICES = list(product(TILES, WARPS))
MOST_SECONDS = 120  # of a part


def device():
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def inputs(tokens, points, hidden, channels):
    """Draw what the kernel takes; 0 channels are one with its weight in u."""
    import torch

    torch.manual_seed(0)
    where = {"device": device()}
    a, b = torch.randn(points, 2 * hidden, **where), torch.randn(tokens, 2 * hidden, **where)
    r, bias = torch.rand(tokens, points, **where) + 0.3, torch.randn(2 * hidden, **where)
    return [a, b, r, bias, torch.randn(channels, hidden, **where) if channels else None]


def milliseconds(work, rounds):
    """Return the median of several runs, after one that compiles."""
    from tdsm.bench.measure import seconds_of

    work()
    return 1e3 * median(seconds_of(work, device()) for _ in range(rounds))


def sizes(rehearse):
    return (4, 6, 20) if rehearse else (256, 1024, 768)


def check(rehearse):
    """Return the largest differences from float64, of the largest value."""
    import torch

    from tdsm.decomposition.kernels import eager, gpu

    rows = []
    for channels in (0, 1, 3, 4):
        given = inputs(*((4, 6, 20) if rehearse else (64, 200, 768)), channels)
        wide = [x if x is None else x.double() for x in given]
        grad = torch.randn(*given[2].shape, max(1, channels), device=device())
        seen = [gpu.forward(*given), *gpu.backward(*given, grad)]
        want = [eager.forward(*wide), *eager.backward(*wide, grad.double())]
        errors = [float((x - y).abs().max() / y.abs().max()) for x, y in zip(seen, want, strict=True)]
        rows.append({"channels": channels} | dict(zip(("out", "a", "b", "r", "bias", "weight"), errors, strict=False)))
    return rows


def tiles(rehearse, choices=None):
    """Return milliseconds of every tile and number of warps, and of the floor."""
    import torch

    from tdsm.decomposition.kernels import gpu

    rows, rounds = [], 1 if rehearse else ROUNDS
    for (bt, bp, bm), warps in choices or CHOICES[: 2 if rehearse else None]:
        gpu.TILE.update(BT=bt, BP=bp, BM=bm, num_warps=warps)
        row = {"tile": f"{bt} × {bp} × {bm}", "warps": warps}
        for name, channels in (("mean", 0), ("rgb", 3)):
            given = inputs(*sizes(rehearse), channels)
            grad = torch.randn(*given[2].shape, max(1, channels), device=device())
            row |= {f"{name}, ms": milliseconds(lambda given=given: gpu.forward(*given), rounds)}
            row |= {
                f"{name} backward, ms": milliseconds(lambda given=given, grad=grad: gpu.backward(*given, grad), rounds)
            }
        count = sizes(rehearse)[0] * sizes(rehearse)[1] * sizes(rehearse)[2]
        row["floor, ms"] = milliseconds(lambda count=count: gpu.bare(count, device()), rounds)
        rows.append(row)
    return rows


def erf(rehearse):
    """Return milliseconds of the chosen tile with erf; patched before any kernel is compiled."""
    global tl  # where Triton looks for it
    import triton
    import triton.language as tl

    from tdsm.decomposition.kernels import gpu

    @triton.jit
    def twice_gelu(g):
        return g * (1.0 + tl.erf(g * 0.7071067811865476))

    gpu._twice_gelu = twice_gelu
    chosen = gpu.TILE
    return tiles(rehearse, [((chosen["BT"], chosen["BP"], chosen["BM"]), chosen["num_warps"])])


def rows(rehearse):
    """Return milliseconds and the largest error of a call of many rows."""
    from tdsm.decomposition.kernels import eager, gpu

    many = 200 if rehearse else 600_000
    given = inputs(many, 16, 16 if rehearse else 768, 0)
    out = gpu.forward(*given)
    a, b, r, bias, _ = given
    want = eager.forward(a.double(), b[-9:].double(), r[-9:].double(), bias.double(), None)
    spent = milliseconds(lambda: gpu.forward(*given), 1 if rehearse else 5)
    return [{"rows": many, "points": 16, "ms": spent, "error of the last": float((out[-9:] - want).abs().max())}]


def whole(rehearse):
    """Return the report of `tdsm bench`."""
    from tdsm.bench.config import BenchConfig
    from tdsm.bench.run import run_bench
    from tdsm.models.config import FieldConfig

    if rehearse:
        field = FieldConfig(widths=(16,), num_latents=4, mapping_dim=6, processor_depth=1)
        return run_bench(BenchConfig(field=field, side=(4,), cases=("exact", "encode"), repeats=1, growth=False))
    cases = (*WHOLE, "additive", "finetune", "gated-floor")
    return run_bench(BenchConfig(device="cuda", batch=(1, 64), cases=cases, growth=False, seconds=2.0))


def compile_all(rehearse):
    """Compile the kernels of every tile, each in a process of its own, and leave them in Triton's cache.

    One that is not done in time is compiled by the part that wants it.
    """

    def compile_one(number):
        command = [sys.executable, "-c", f"import gpu; gpu.ROUNDS = 1; gpu.tiles(False, [gpu.CHOICES[{number}]])"]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, timeout=MOST_SECONDS)

    if not rehearse:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(compile_one, range(len(CHOICES))))


def run_part(name, rehearse):
    """Run a part in a process of its own; return what it found, or the last line of why it failed."""
    command = [sys.executable, __file__, "--part", name, *(["--rehearse"] if rehearse else [])]
    environment = os.environ | ({"TRITON_INTERPRET": "1"} if rehearse else {})
    most = None if rehearse else MOST_SECONDS
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=most)
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {MOST_SECONDS} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def table(rows):
    """Format rows of equal keys as Markdown."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    cells = [[row.get(name, "–") for name in names] for row in rows]
    return lines + [f"| {' | '.join(f'{c:.4g}' if isinstance(c, float) else str(c) for c in row)} |" for row in cells]


def markdown(found, environment):
    """Format everything that was found."""
    from tdsm.bench.text import format_report

    where = f"{', '.join(environment['gpus']) or 'No GPU'}, torch {environment['versions']['torch']}, {date.today()}."
    lines = ["# The Triton kernels on a GPU", "", where]
    for name, result in found.items():
        lines += ["", f"## {name}", ""]
        if isinstance(result, dict) and "failed" in result:
            lines.append(f"Failed: {result['failed']}")
        else:
            lines += [format_report(result)] if name == "whole" else table(result)
    return "\n".join(lines) + "\n"


def main():
    """Run all parts, or the one that a process of its own was started for; return an exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, nargs="?", help="Markdown file to write")
    parser.add_argument("--part", choices=PARTS, help="run this part alone and print JSON")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, Triton's interpreter, on a CPU")
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(globals()[arguments.part](arguments.rehearse)))
        return 0
    if arguments.result is None:
        parser.error("name the file to write, such as benchmarks/results/gpu_h100.md")
    if not arguments.rehearse and device().type != "cuda":
        print("gpu.py: there is no GPU here; --rehearse takes the same steps without one.", file=sys.stderr)
        return 5
    from tdsm.base.environment import describe_environment
    from tdsm.base.io import write_text

    found = {}
    compile_all(arguments.rehearse)
    for name in PARTS:
        print(name, file=sys.stderr, flush=True)
        found[name] = run_part(name, arguments.rehearse)
        write_text(arguments.result, markdown(found, describe_environment()))
    return int(any(isinstance(result, dict) and "failed" in result for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
