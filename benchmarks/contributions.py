"""Contributions to regions and thresholded leave-one-out of a shape decoder with random weights: time and peak memory.

    python benchmarks/contributions.py                                   4096 tokens × 100 000 points × width 1024
    python benchmarks/contributions.py --points 4000 --readout-points 8
    python benchmarks/contributions.py --method leave_one_out --tokens 48 --points 1728 --threshold 0.01

The decoder has the form of the VecSet family: cross-attention with query residual, an ungated feed-forward four times
as wide, and a last norm. `--sharpness` multiplies the queries, which random weights leave without a preference. The
first line printed is the peak before the decomposition: weights, coordinates and the libraries.
"""

# ruff: noqa: D102
import argparse
import json
import platform
import resource
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from tdsm import contributions
from tdsm.base.io import write_json
from tdsm.models.adapters.cross_attention import CrossAttentionField


class Decoder(CrossAttentionField):
    """The family's decoder, its weights drawn as torch draws them."""

    num_axes, has_query_residual, has_nonlinear_readout = 3, True, True

    def __init__(self, width: int, heads: int, sharpness: float):
        super().__init__()
        self.heads, self.sharpness = heads, sharpness
        self.register_buffer("frequencies", torch.pi * 2.0 ** torch.arange(8))
        self.query, self.q = nn.Linear(51, width), nn.Linear(width, width)
        self.k, self.v, self.out = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.hidden, self.output = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.value = nn.Linear(width, 1)

    def queries(self, coords: torch.Tensor) -> torch.Tensor:
        phase = (coords[..., None] * self.frequencies).flatten(-2)
        return self.query(torch.cat([coords, phase.sin(), phase.cos()], -1))

    def project_queries(self, queries: torch.Tensor) -> torch.Tensor:
        return self.sharpness * self.q(self.norms[0](queries))

    def project_tokens(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.norms[1](tokens)
        return self.k(tokens), self.v(tokens)

    def output_projection(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.out.weight, self.out.bias

    def readout(self, queries: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = queries + attended
        x = x + self.output(F.gelu(self.hidden(self.norms[2](x))))
        return self.value(self.norms[3](x))


def peak() -> int:
    """Return the most memory this process has held, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--regions", type=int, default=16)
    parser.add_argument("--method", default="additive")
    parser.add_argument("--readout-points", type=int, default=3, help="quadrature points of `additive`")
    parser.add_argument("--threshold", type=float, default=0.0, help="of `leave_one_out`")
    parser.add_argument("--sharpness", type=float, default=1.0)
    parser.add_argument("--chunk", type=int, help="points at once; chosen by the library if not given")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="where to write the result")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    field = Decoder(options.width, options.heads, options.sharpness).eval().requires_grad_(False)
    tokens, coords = torch.randn(1, options.tokens, options.width), 2 * torch.rand(options.points, 3) - 1
    regions = torch.randint(options.regions, (options.points,))
    before = peak()
    print(f"peak before: {before / 2**20:.0f} MiB")
    told = {"points": options.readout_points} if options.method == "additive" else {}
    told |= {"threshold": options.threshold} if options.method == "leave_one_out" else {}
    start, cpu_start = time.perf_counter(), time.process_time()
    parts = contributions(field, tokens, coords, regions, method=options.method, chunk=options.chunk, **told)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    result = {
        "options": {name: value for name, value in vars(options).items() if name != "json"},
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "seconds_per_1000_points": round(1000 * seconds / options.points, 3),
        "peak_mib_before": round(before / 2**20),
        "peak_mib": round(peak() / 2**20),
        "completeness_error": float(parts.completeness_error.max()),
        "movement": float(parts.movement.max()),
    }
    print(json.dumps(result, indent=2))
    if options.json:
        write_json(options.json, result)


if __name__ == "__main__":
    main()
