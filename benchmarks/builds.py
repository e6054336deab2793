"""The compiled kernel by compiler and vector instructions: `python benchmarks/builds.py [--rounds N] [RESULT.md]`.

Every build that this machine can make and run, in alternating rounds in one process and one thread, for 64 tokens, 1024
points and 768 hidden units: milliseconds of processor time (least of the rounds), times its floor, and how far from
the float64 eager form its values are.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch

from tdsm.base.environment import describe_environment
from tdsm.base.io import write_text
from tdsm.decomposition.kernels import build, cpu, eager, library

TOKENS, POINTS, HIDDEN = 64, 1024, 768


def inputs(channels):
    """Draw what the kernel takes; 0 channels are one with its weight in u."""
    a, b = torch.randn(POINTS, 2 * HIDDEN), torch.randn(TOKENS, 2 * HIDDEN)
    r, bias = torch.rand(TOKENS, POINTS) / 2 + 0.5, torch.randn(2 * HIDDEN)
    if not channels:
        for x in (a, b, bias):
            x[..., :HIDDEN] /= HIDDEN**0.5
    return [a, b, r, bias, torch.randn(channels, HIDDEN) / HIDDEN**0.5 if channels else None]


def builds(folder):
    """Compile every build; return the libraries by name."""
    machines = {"baseline": ("DEFAULT", [])} | build.PREBUILT["x86_64"] | {"native": ("DEFAULT", library.NATIVE)}
    found = {}
    for compiler in ("g++", "clang++"):
        for name, (needs, flags) in machines.items():
            if shutil.which(compiler) and needs in library.instructions():
                path = str(folder / f"{compiler}-{name}.so")
                subprocess.run(build.command([compiler], flags, str(library.SOURCE), path), check=True)
                found[f"{compiler} {name}"] = library._opened(Path(path), name)
    return found


def measure(libraries, rounds):
    """Return the least seconds of every (build, work), and every build's largest error."""
    torch.manual_seed(0)
    mean, rgb = inputs(0), inputs(3)
    grads = [torch.randn(TOKENS, POINTS, channels) for channels in (1, 3)]
    works = {
        "mean": lambda: cpu.forward(*mean),
        "rgb": lambda: cpu.forward(*rgb),
        "mean backward": lambda: cpu.backward(*mean, grads[0]),
        "rgb backward": lambda: cpu.backward(*rgb, grads[1]),
        "floor": lambda: cpu.bare(TOKENS * POINTS * HIDDEN),
    }
    exact = [eager.forward(*(x if x is None else x.double() for x in given)) for given in (mean, rgb)]
    seconds, errors = {}, {}
    for done in range(rounds + 1):
        for name, built in libraries.items():
            library.load = lambda built=built: built
            for work, run in works.items():
                start = time.thread_time()
                run()
                if done:  # the first round warms up
                    spent = time.thread_time() - start
                    seconds[name, work] = min(spent, seconds.get((name, work), spent))
            if not done:
                seen = cpu.forward(*mean), cpu.forward(*rgb)
                errors[name] = max(float((x - y).abs().max()) for x, y in zip(seen, exact, strict=True))
    return seconds, errors, list(works)


def main():
    """Measure and print, and write the table if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, nargs="?", help="Markdown file to write")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        libraries = builds(Path(folder))
        seconds, errors, works = measure(libraries, arguments.rounds)
    where = describe_environment()
    head = ["build", "lanes", *(f"{work}, ms" for work in works), "mean of floor", "rgb of floor", "error"]
    lines = [f"{date.today()}, {where['processor']}, one thread, {arguments.rounds} rounds.", ""]
    lines += [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, built in libraries.items():
        each = [seconds[name, work] for work in works]
        cells = [name, str(built.handle.lanes()), *(f"{1e3 * spent:.2f}" for spent in each)]
        cells += [f"{each[0] / each[-1]:.2f}", f"{each[1] / each[-1]:.2f}", f"{errors[name]:.1e}"]
        lines.append(f"| {' | '.join(cells)} |")
    print("\n".join(lines))
    if arguments.result is not None:
        write_text(arguments.result, "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
