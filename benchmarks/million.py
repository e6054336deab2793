"""Peak memory of every stage against the number of images: `python benchmarks/million.py 10000 1000000 --folder DIR`.

Draws synthetic images of 32 × 32, one byte a pixel, into idx files, and takes a run of a tiny field through its stages,
each in a process of its own: decoding into files, 20 steps of training, small maps extracted, a linear head, nearest
neighbours of 500 images, evaluation, the page. Images are read from files, however many they are.

Two peaks are shown: `anonymous` is what a process holds and cannot give back (RssAnon, read every 10 ms); `resident`
has the pages of mapped files in it too (ru_maxrss), which the system keeps while it has room and drops when it has not.
Slopes are of the anonymous peak between the smallest and the largest number. Needs 3 KiB of disk an image in DIR.
"""

import argparse
import os
import platform
import shlex
import shutil
import struct
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np

from tdsm.base.environment import describe_environment
from tdsm.base.io import write_text
from tdsm.base.text import markdown_table

SIDE, CLASSES, QUERIES = 32, 10, 500
WRITTEN = 10_000  # images drawn at once
ROWS = {"linear head": ["tdsm-avg"], "k-NN": ["tdsm-avg", "tdsm-knn", "majority"]}
FIELD = shlex.split(
    "--field.mapping-dim 4 --field.fourier-scale 1 --field.widths 8 --field.num-latents 4 --field.cross-heads 1 "
    "--field.cross-head-dim 4 --field.self-heads 1 --field.self-head-dim 4 --field.processor-depth 1 "
    "--field.feedforward-multiple 1 --train.steps 20 --train.batch-size 64 --train.validation-images 256 "
    "--maps.size 4 4 --maps.batch-size 256 --probe.epochs 1 --probe.seeds 1 --probe.learning-rates 0.01 "
    "--probe.weight-decays 0 --probe.batch-size 2048 --probe.neighbours 20"
)
DECODE = """
import sys
from tdsm.data import DataConfig, load_data
share = float(sys.argv[3])
data = load_data(DataConfig(source=sys.argv[1], cache=sys.argv[2], memory_limit=0, validation_fraction=share), 0)
print(len(data.train), len(data.validation), len(data.test), type(data.train.images).__name__)
"""
EXTRACT = """
import sys
from pathlib import Path
from tdsm.pipeline.stages import take_up
run = take_up(Path(sys.argv[1]), print)
for split in ("train", "validation", "test"):
    run.features(split).extract(["tdsm"])
"""


def write_images(folder: Path, split: str, count: int) -> None:
    """Write idx files of noise on a bright bar, whose place says the class."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(count)
    with (
        open(folder / f"{split}-images-idx3-ubyte", "wb") as images,
        open(folder / f"{split}-labels-idx1-ubyte", "wb") as labels,
    ):
        images.write(struct.pack(">4B3I", 0, 0, 8, 3, count, SIDE, SIDE))
        labels.write(struct.pack(">4BI", 0, 0, 8, 1, count))
        for start in range(0, count, WRITTEN):
            size = min(WRITTEN, count - start)
            drawn = random.integers(CLASSES, size=size, dtype=np.uint8)
            pixels = random.integers(0, 128, (size, SIDE, SIDE), dtype=np.uint8)
            pixels[np.arange(size), :, 3 * drawn] += 100
            images.write(pixels.tobytes())
            labels.write(drawn.tobytes())


def stages(folder: Path, count: int) -> dict[str, list[str]]:
    """Return the commands of the stages, in order."""
    run, data, cache, share = folder / "run", folder / "data", folder / "cache", QUERIES / count
    tdsm = [sys.executable, "-m", "tdsm"]
    source = ["--data.source", f"idx:{data}", "--data.cache", str(cache), "--data.memory-limit", "0"]
    source += ["--data.validation-fraction", str(share)]
    return {
        "decode": [sys.executable, "-c", DECODE, f"idx:{data}", str(cache), str(share)],
        "train": [*tdsm, "train", "--run", str(run), *source, *FIELD],
        "extract": [sys.executable, "-c", EXTRACT, str(run)],
        **{name: [*tdsm, "classify", str(run), "--probe.rows", *rows] for name, rows in ROWS.items()},
        "evaluate": [*tdsm, "evaluate", str(run)],
        "page": [*tdsm, "report", str(run)],
    }


def measured(command: list[str]) -> tuple[int, int, float]:
    """Run a command; return its peaks of anonymous and of resident memory in bytes, and its processor seconds."""
    peak = 0
    process = subprocess.Popen(command)
    while True:
        done, status, usage = os.wait4(process.pid, os.WNOHANG)
        if done:
            break
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.01)
    if status:
        sys.exit(f"{' '.join(command)}: ended with {os.waitstatus_to_exitcode(status)}")
    return peak, 1024 * usage.ru_maxrss, usage.ru_utime + usage.ru_stime


def anonymous(process: int) -> int:
    """Return the bytes a process holds that are of no file."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def report(found: dict[int, dict[str, tuple[int, int, float]]]) -> str:
    """Tabulate the peaks of every stage and their slopes."""
    few, many = min(found), max(found)
    headings = ["stage", *(f"{name}, MiB, {n:,}" for name in ("anonymous", "resident") for n in found)]
    headings += [f"processor seconds, {many:,}", "bytes an image"]
    lines = []
    for stage in found[few]:
        cells = [f"{found[n][stage][part] / 2**20:.0f}" for part in (0, 1) for n in found]
        slope = (found[many][stage][0] - found[few][stage][0]) / max(1, many - few)
        lines.append([stage, *cells, f"{found[many][stage][2]:.0f}", f"{slope:.0f}"])
    environment = describe_environment()
    machine = f"{date.today()}, {environment['processor']}, Python {environment['python']}, {platform.system()}"
    versions = ", ".join(f"{name} {environment['versions'][name]}" for name in ("torch", "numpy", "safetensors"))
    title = f"# Peak memory by stage, {few:,} to {many:,} images of {SIDE} × {SIDE}"
    command = f"    python benchmarks/million.py {' '.join(map(str, found))} --folder DIR"
    return "\n\n".join([title, command, f"{machine}; {versions}.", markdown_table(headings, lines, ["stage"])]) + "\n"


def main() -> None:
    """Measure every number of images, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=int, nargs="+")
    parser.add_argument("--folder", type=Path, required=True, help="emptied of what was made in it at the end")
    parser.add_argument("--to", type=Path, help="write the table here too")
    options = parser.parse_args()
    found: dict[int, dict[str, tuple[int, int, float]]] = {}
    for count in options.samples:
        folder = options.folder / str(count)
        write_images(folder / "data", "train", count)
        write_images(folder / "data", "t10k", QUERIES)
        found[count] = {}
        for stage, command in stages(folder, count).items():
            found[count][stage] = peaks = measured(command)
            print(
                f"{count} {stage}: {peaks[0] / 2**20:.0f} MiB, {peaks[1] / 2**20:.0f} MiB, {peaks[2]:.0f} processor s",
                flush=True,
            )
        shutil.rmtree(folder)
    print(report(found))
    if options.to is not None:
        write_text(options.to, report(found))


if __name__ == "__main__":
    main()
