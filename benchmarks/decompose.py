"""Ways to decode every token, beside the loop and the floors: `python benchmarks/decompose.py [OPTIONS]`.

Options are those of `tdsm bench`, such as `--json FILE`, `--batch 1 8`, `--tokens 64 256`, `--device cuda`.
"""

import sys

from tdsm.bench.cases import CASES, END_TO_END
from tdsm.cli.main import run_command

if __name__ == "__main__":
    cases = [name for name in CASES if name not in END_TO_END]
    sys.exit(run_command(["bench", "--cases", *cases, *sys.argv[1:]]))
