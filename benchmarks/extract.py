"""How fast extraction is in one process, in two by torchrun, and by two actors of Ray, on the same images.

    python benchmarks/extract.py [--images 20000] [--ways one torchrun ray] [--json FILE]

Each way makes the same store of tokens and pooled maps of random 32 × 32 images by a field of 32 tokens × 64, one
thread a process. Start-up is told apart: the rate is of the shards that were finished after every process had finished
its first. Stores are compared byte by byte.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORKERS = {"one": 1, "torchrun": 2, "ray": 2}
SHARD = 250
RAY = """
import sys, ray
from tdsm.cli.main import run_command
quiet = {"include_dashboard": False, "log_to_driver": False}
ray.init(num_cpus=3, object_store_memory=80 * 2**20, _temp_dir=sys.argv[1], **quiet)
try:
    code = run_command(sys.argv[2:])
finally:
    ray.shutdown()
sys.exit(code)
"""


def command(way: str, scratch: Path) -> list[str]:
    words = ["extract", f"{scratch}/field", "--data.source", f"npz:{scratch}/images.npz", "--to", f"{scratch}/{way}"]
    words += ["--features", "tokens", "pooled", "--shard-samples", str(SHARD)]
    if way == "ray":
        return [sys.executable, "-c", RAY, f"{scratch}/r", *words, "--engine", "ray", "--actors", "2"]
    launcher = ["torch.distributed.run", "--nproc-per-node=2", "-m"] if way == "torchrun" else []
    return [sys.executable, "-m", *launcher, "tdsm", *words]


def measure(way: str, scratch: Path) -> dict:
    began = time.time()
    subprocess.run(command(way, scratch), check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    ended, workers = time.time(), WORKERS[way]
    done = sorted(file.stat().st_mtime for file in (scratch / way).glob("*/pooled/*.json"))
    first, rest = done[workers - 1], len(done) - workers
    return {
        "way": way,
        "workers": workers,
        "seconds": ended - began,
        "seconds to the first shards": first - began,
        "images/s after them": rest * SHARD / (done[-1] - first),
    }


def make(scratch: Path, count: int) -> None:
    import tdsm

    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    np.savez(scratch / "images.npz", images=images, labels=np.arange(count) % 10)
    config = tdsm.FieldConfig(
        widths=(48, 64),
        num_latents=32,
        mapping_dim=32,
        cross_heads=4,
        cross_head_dim=16,
        self_heads=4,
        self_head_dim=16,
        processor_depth=2,
    )
    tdsm.NeuralField(config).save_pretrained(scratch / "field")


def same(one: Path, other: Path) -> bool:
    files = sorted(file.relative_to(one) for file in one.rglob("*") if file.is_file())
    there = sorted(file.relative_to(other) for file in other.rglob("*") if file.is_file())
    return files == there and all((one / file).read_bytes() == (other / file).read_bytes() for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--ways", nargs="+", choices=WORKERS, default=list(WORKERS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from tdsm.base.environment import describe_environment

    with tempfile.TemporaryDirectory(prefix="x-") as folder:
        scratch = Path(folder)
        make(scratch, options.images)
        load = os.getloadavg()[0]
        rows = [measure(way, scratch) for way in options.ways]
        equal = all(same(scratch / options.ways[0], scratch / way) for way in options.ways[1:])
    facts = describe_environment() | {"images": options.images, "load_average_before": load}
    text = json.dumps(facts | {"rows": rows, "stores are equal": equal}, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
