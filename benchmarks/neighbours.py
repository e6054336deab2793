"""Seconds and memory of k-NN by the number of references: `python benchmarks/neighbours.py [--queries N] [RESULT.md]`.

Queries and references are random maps of 16 × 16 × 32 in float16 in files that are mapped, as a store's are. Memory is
the largest anonymous resident size while neighbours are sought, less what it was before: pages of the files, which the
system takes back when it wants, are not in it.
"""

import argparse
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import torch

from tdsm.base.environment import describe_environment
from tdsm.base.io import write_text
from tdsm.base.text import markdown_table
from tdsm.classification.probe import Samples, neighbours_of
from tdsm.features.store import FeatureRows

SHAPE, REFERENCES, NEIGHBOURS = (16, 16, 32), (2_500, 5_000, 10_000, 20_000), 20


def mapped(path, samples):
    """Draw maps, a thousand at a time, and map the file they are in."""
    size = samples * torch.Size(SHAPE).numel()
    maps = torch.from_file(str(path), shared=True, size=size, dtype=torch.float16).view(samples, *SHAPE)
    for part in maps.split(1_000):
        part.copy_(torch.randn(part.shape))
    return FeatureRows([maps])


def anonymous():
    """Return this process's anonymous resident memory in MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def measure(queries, train):
    """Return seconds and MiB of seeking every query's neighbours."""
    before, largest, done = anonymous(), [0.0], threading.Event()

    def watch():
        while not done.wait(0.02):
            largest[0] = max(largest[0], anonymous())

    watcher, began = threading.Thread(target=watch), time.perf_counter()
    watcher.start()
    found = sum(len(cosines) for _, cosines, _ in neighbours_of(queries, train, NEIGHBOURS))
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    assert found == len(queries), "every query has neighbours"
    return seconds, largest[0] - before


def main():
    """Measure by the number of references, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("result", nargs="?", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        queries = mapped(Path(folder) / "queries", options.queries)
        for count in REFERENCES:
            train = Samples(mapped(Path(folder) / "references", count), torch.randint(10, (count,)))
            seconds, mebibytes = measure(queries, train)
            rows.append([f"{count:,}", f"{seconds:.1f}", f"{mebibytes:.0f}"])
            print(f"{count} references: {seconds:.1f} s, {mebibytes:.0f} MiB", file=sys.stderr)
            (Path(folder) / "references").unlink()
    table = markdown_table(["references", "seconds", "peak MiB"], rows)
    where, threads = describe_environment()["processor"], torch.get_num_threads()
    head = f"{date.today()}, {where}, {threads} threads, {options.queries:,} queries of {SHAPE}."
    text = f"{head}\n\n{table}\n"
    if options.result:
        write_text(options.result, text)
    print(text)


if __name__ == "__main__":
    main()
