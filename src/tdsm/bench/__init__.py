"""Speed and memory of token decoding, beside the loop that defines it and beside what no machine undercuts."""

from tdsm.bench.run import run_bench
from tdsm.bench.text import format_report

__all__ = ["format_report", "run_bench"]
