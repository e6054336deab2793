"""Pixels to tokens, to maps, and through them to a training step: `python benchmarks/end_to_end.py [OPTIONS]`.

Options are those of `tdsm bench`. On one GPU: `--device cuda --batch 1 64 --json FILE`.
"""

import sys

from tdsm.bench.cases import END_TO_END
from tdsm.cli.main import run_command

if __name__ == "__main__":
    sys.exit(run_command(["bench", "--no-growth", "--cases", *END_TO_END, *sys.argv[1:]]))
