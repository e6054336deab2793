"""Measure every decomposition of a run's field on its test images, and tabulate."""

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm import io
from tdsm.decomposition import DECOMPOSITIONS, Decomposition, decompose
from tdsm.evaluate import Run
from tdsm.measures import (
    class_selectivity,
    deletion_curve,
    effective_rank,
    insertion_curve,
    positional_constants,
    rank_by_energy,
    redundancy,
    spatial_spread,
    stability,
)
from tdsm.progress import track
from tdsm.randomness import generator

ANALYSIS, TABLE = "analysis.json", "analysis.md"
METHODS = tuple(name for name in DECOMPOSITIONS if name != "shapley")  # its components are a slow reference for others
NOISE = 0.1  # standard deviation of the noise of `stability`, images in [-1, 1]
SHIFT = 1  # pixels of the shift of `stability`

COLUMNS = {
    "completeness_error": "‖base + Σ I_k − reconstruction‖ / ‖reconstruction − base‖; 0 adds up",
    "redundancy": "mean absolute correlation of two tokens' components of one image",
    "effective_rank": "directions the components of one image span, of {tokens}",
    "spread": "entropy of a component's energy over space, 1 is everywhere alike",
    "noise_stability": "correlation with the same token's component after noise of {noise} on the image",
    "shift_stability": "the same after a shift of the image by {shift} pixel, compared in place of the content",
    "class_selectivity": "share of a pooled component's variance that lies between classes, mean over tokens",
    "deletion_db": "PSNR left when the half of the tokens with most energy is removed; lower is better ranked",
    "insertion_db": "PSNR with that half alone; higher is better ranked",
    "positional_constants": "tokens whose component hardly depends on the image",
}


@torch.no_grad()
def analyse(run: Run, images: int, batch_size: int = 16) -> list[dict]:
    """Measure each decomposition on the first `images` test images; write analysis.json and analysis.md."""
    count = min(images, len(run.data.test))
    rows = [_measure(run, method, count, batch_size) for method in METHODS]
    io.write_json(run.path / ANALYSIS, {"images": count, "rows": rows})
    io.write_text(run.path / TABLE, analysis_markdown(rows, count, run.field.config.num_tokens))
    return rows


def analysis_markdown(rows: list[dict], count: int, tokens: int) -> str:
    """Write the table with what each column measures."""
    names = list(COLUMNS)
    headings = " | ".join(name.replace("_", " ") for name in names)
    lines = [f"| method | {headings} |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        cells = [f"{len(row[n])} of {tokens}" if isinstance(row[n], list) else f"{row[n]:.3g}" for n in names]
        lines.append(f"| {row['method']} | " + " | ".join(cells) + " |")
    meanings = [
        f"- {name.replace('_', ' ')}: {words.format(tokens=tokens, noise=NOISE, shift=SHIFT)}."
        for name, words in COLUMNS.items()
    ]
    return "\n".join([*lines, "", f"Means over {count} test images.", "", *meanings]) + "\n"


def _measure(run: Run, method: str, count: int, batch_size: int) -> dict:
    parts: dict[str, list[Tensor]] = {}
    components, size = [], tuple(run.data.test.images.shape[2:])
    for rows in track(torch.arange(count).split(batch_size), f"analysing {method}", unit="batch"):
        images = run.data.test.floats(rows).to(run.device)
        tokens = run.field.encode(images)
        result = decompose(run.field, tokens, size=size, method=method)
        components.append(result.components.cpu())
        for name, values in _per_image(run, images, tokens, result).items():
            parts.setdefault(name, []).append(values.cpu())
    means = {name: torch.cat(values).mean().item() for name, values in parts.items()}
    together = torch.cat(components)
    selectivity = class_selectivity(together, run.data.test.labels[:count]).mean().item()
    return {
        "method": method,
        **means,
        "class_selectivity": selectivity,
        "positional_constants": positional_constants(together),
    }


def _per_image(
    run: Run, images: Float[Tensor, "batch channels height width"], tokens: Tensor, result: Decomposition
) -> dict[str, Tensor]:
    size, half = tuple(images.shape[2:]), tokens.shape[1] // 2
    noise = NOISE * torch.randn(images.shape, generator=generator(run.config.seed, "noise")).to(images.device)
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
