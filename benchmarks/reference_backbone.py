"""The reference backbone on CIFAR-10, heads on it frozen, and one fine-tuned run, on one GPU. Not yet run to its end.

    python benchmarks/reference_backbone.py RUN [--source SOURCE] [--rehearse]

Trains 256 tokens × 512 with bfloat16, compiled blocks and the images on the device; then the table of heads and
baselines, the regimes `frozen` and `finetune`, and the page. Each step takes up what an earlier call left: after a
kill, the same command goes on. RUN holds curves (field/curves.json, the page), the weights (field/) and their recipe
(config.json, environment.json), and the results (table.md, regimes.md). With several GPUs, run the first step, which
is printed, under torchrun, then this script.

Its first 60 steps, not compiled, took 27 ms each on an H200: 45 minutes for the training. `--rehearse` takes the same
steps with a tiny field on 200 digits, in about a minute on a CPU. Numbers to compare with are those of frozen fields
without augmented features, such as 56.2 % (NeoMLP, arXiv 2412.08731) and 44.1 % (Neural Graphs, arXiv 2312.10531); most
published ones use 50 augmented views.
"""

import argparse
import sys
from pathlib import Path

from tdsm.cli.main import run_command
from tdsm.models.load import FIELD_FOLDER

FULL = ["--preset", "cifar10-reference", "--train.precision", "bfloat16", "--train.compile", "--device", "cuda"]
TINY = ["--data.max-train", "200", "--data.max-test", "100", "--train.steps", "20", "--train.precision", "bfloat16"]
TINY += ["--train.warmup-steps", "2", "--train.batch-size", "16", "--probe.epochs", "2", "--field.num-latents", "4"]
TINY += ["--field.widths", "16", "--field.mapping-dim", "8", "--field.processor-depth", "1"]
REGIMES = ["--head.kind", "cnn", "--head.width", "128", "--head.depth", "4", "--augment.flip"]


def steps(run: Path, source: str, rehearse: bool) -> list[list[str]]:
    """List the commands, in order."""
    train = [*(TINY if rehearse else [*FULL, "--data.source", source]), "--run", str(run)]
    resume = ["--resume"] if (run / "config.json").exists() else []
    epochs = ["--epochs", "1" if rehearse else "10"]
    regimes = [["finetune", str(run), "--regime", name, *epochs, *REGIMES] for name in ("frozen", "finetune")]
    first = [] if (run / FIELD_FOLDER).exists() else [["train", *train, *resume]]
    return [*first, ["classify", str(run)], ["evaluate", str(run)], *regimes, ["report", str(run)]]


def main() -> int:
    """Run the steps that are left; return the code of the one that failed, or 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--source", default="uoft-cs/cifar10", help="where CIFAR-10 comes from, as --data.source")
    parser.add_argument("--rehearse", action="store_true", help="a tiny field on digits, on a CPU")
    arguments = parser.parse_args()
    for step in steps(arguments.run, arguments.source, arguments.rehearse):
        print("tdsm", *step, file=sys.stderr, flush=True)
        if code := run_command(step):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
