"""Measure every decomposition of a run's field on its test images, and tabulate."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.base import io
from tdsm.base.errors import UsageError
from tdsm.base.progress import track
from tdsm.base.randomness import generator
from tdsm.decomposition import Decomposition, decompose, methods_for
from tdsm.decomposition.measures import (
    class_selectivity,
    deletion_curve,
    effective_rank,
    insertion_curve,
    match_tokens,
    positional_constants,
    rank_by_energy,
    redundancy,
    spatial_spread,
    stability,
)
from tdsm.pipeline.run import Run
from tdsm.tokenfield import TokenField

ANALYSIS, TABLE = "analysis.json", "analysis.md"
NOISE = 0.1  # standard deviation of the noise of `stability`, images in [-1, 1]
SHIFT = 1  # pixels of the shift of `stability`

COLUMNS = {
    "completeness_error": "‖base + Σ I_k − reconstruction‖ / ‖reconstruction − base‖; 0 adds up",
    "redundancy": "mean absolute correlation of two tokens' components of one image",
    "effective_rank": "directions the components of one image span, of {tokens}",
    "spread": "entropy of a component's energy over space; 1 is everywhere alike",
    "noise_stability": "correlation with the same token's component after noise of {noise} on the image",
    "shift_stability": "the same after the image moved by {shift} pixel, the component moved back",
    "seed_stability": "correlation with the best matching token's component of a field trained from another seed",
    "class_selectivity": "share of a pooled component's variance that lies between classes, mean over tokens",
    "deletion_db": "PSNR of the reconstruction without the half of the tokens of most energy; a ranking that finds "
    "what matters makes it low",
    "insertion_db": "PSNR of the reconstruction from that half alone; the same ranking makes it high",
    "positional_constants": "tokens whose component hardly depends on the image",
}


@torch.no_grad()
def analyse(run: Run, images: int, other: Run | None = None, batch_size: int = 16) -> dict[str, Any]:
    """Measure each decomposition on the first `images` test images; write analysis.json and analysis.md.

    Args:
        run: The run whose field is measured.
        images: Test images to use, or all there are.
        other: A run of the same data from another seed, for the stability across seeds.
        batch_size: Images decomposed at once.

    Raises:
        UsageError: If the other run's test images are not the same.
    """
    if other is not None and other.data.test.fingerprint() != run.data.test.fingerprint():
        raise UsageError(
            f"analyse: {other.path} has other test images than {run.path}; expected a run of the same data and "
            "data settings, whose field was trained from another seed."
        )
    count, tokens = min(images, len(run.data.test)), run.field.config.num_tokens
    rows = [_measure(run, other, method, count, batch_size) for method in compared(run.field)]
    meanings = {
        name: words.format(tokens=tokens, noise=NOISE, shift=SHIFT)
        for name, words in COLUMNS.items()
        if name in rows[0]
    }
    analysis = {"images": count, "tokens": tokens, "meanings": meanings, "rows": rows}
    io.write_json(run.path / ANALYSIS, analysis)
    io.write_text(run.path / TABLE, analysis_markdown(analysis))
    return analysis


def compared(field: TokenField) -> tuple[str, ...]:
    """Name the decompositions measured: all that suit the field but `shapley`, the slow reference for the others."""
    return tuple(name for name in methods_for(field) if name != "shapley")


def read_analysis(path: Path) -> dict[str, Any] | None:
    """Return what `analyse` left in a run folder; None if it did not run."""
    return io.read_json(path / ANALYSIS) if (path / ANALYSIS).exists() else None


def analysis_markdown(analysis: dict[str, Any]) -> str:
    """Write the table with what each column measures."""
    header, *body = analysis_cells(analysis)
    lines = [header, ["---"] * len(header), *body]
    meanings = [f"- {words}" for words in explanations(analysis)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{table}\n\nMeans over {analysis['images']} test images.\n\n" + "\n".join(meanings) + "\n"


def explanations(analysis: dict[str, Any]) -> list[str]:
    """Say what each column measures, one sentence each."""
    return [f"{_title(name)}: {words}." for name, words in analysis["meanings"].items()]


def analysis_cells(analysis: dict[str, Any]) -> list[list[str]]:
    """Format the table: the headings, then one line a method."""
    names = list(analysis["meanings"])
    lines = [["method", *map(_title, names)]]
    for row in analysis["rows"]:
        values = [f"{len(v)} of {analysis['tokens']}" if isinstance(v := row[n], list) else f"{v:.3g}" for n in names]
        lines.append([row["method"], *values])
    return lines


def _title(name: str) -> str:
    return name.replace("_db", "_dB").replace("_", " ")


def _measure(run: Run, other: Run | None, method: str, count: int, batch_size: int) -> dict:
    parts: dict[str, list[Tensor]] = {}
    components, others, size = [], [], tuple(run.data.test.images.shape[2:])
    batches = torch.arange(count).split(batch_size)
    for number, rows in enumerate(track(batches, f"analysing {method}", unit="batch")):
        images = run.data.test.floats(rows).to(run.device)
        tokens = run.field.encode(images)
        result = decompose(run.field, tokens, size=size, method=method)
        components.append(result.components.cpu())
        if other is not None:
            others.append(decompose(other.field, other.field.encode(images), size=size, method=method).components.cpu())
        noise = NOISE * torch.randn(images.shape, generator=generator(run.config.seed, "noise", number))
        for name, values in _per_image(run, images, tokens, result, noise.to(images.device)).items():
            parts.setdefault(name, []).append(values.cpu())
    means = {name: torch.cat(values).mean().item() for name, values in parts.items()}
    together = torch.cat(components)
    row = {
        "method": method,
        **means,
        "class_selectivity": class_selectivity(together, run.data.test.labels[:count]).mean().item(),
        "positional_constants": positional_constants(together),
    }
    if others:
        row["seed_stability"] = match_tokens(together, torch.cat(others))[1].mean().item()
    return row


def _per_image(
    run: Run,
    images: Float[Tensor, "batch channels height width"],
    tokens: Tensor,
    result: Decomposition,
    noise: Float[Tensor, "batch channels height width"],
) -> dict[str, Tensor]:
    size, half = tuple(images.shape[2:]), tokens.shape[1] // 2
    noisy = decompose(run.field, run.field.encode(images + noise), size=size, method=result.method).components
    shifted = images.roll(SHIFT, dims=-1)
    moved = decompose(run.field, run.field.encode(shifted), size=size, method=result.method).components
    rank, target = rank_by_energy(result.components), images.movedim(1, -1)
    return {
        "completeness_error": result.completeness_error,
        "redundancy": redundancy(result.components),
        "effective_rank": effective_rank(result.components),
        "spread": spatial_spread(result.components).mean(dim=1),
        "noise_stability": stability(result.components, noisy).mean(dim=1),
        "shift_stability": stability(result.components, moved, shift=(0, SHIFT)).mean(dim=1),
        "deletion_db": deletion_curve(run.field, tokens, rank, target, [half], size=size)[:, 0],
        "insertion_db": insertion_curve(run.field, tokens, rank, target, [half], size=size)[:, 0],
    }
