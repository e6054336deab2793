"""Measure every decomposition of a run's field on its test images, and tabulate."""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.base.progress import track
from tdsm.base.randomness import generator
from tdsm.base.text import Table, count_of
from tdsm.data.sampling import stratified_sample
from tdsm.decomposition import DECOMPOSITIONS, Decomposition, decompose, methods_for
from tdsm.decomposition.measures import (
    ImageShare,
    class_selectivity,
    deletion_curve,
    effective_rank,
    insertion_curve,
    match_similar,
    rank_by_energy,
    redundancy,
    spatial_spread,
    stability,
    token_similarity,
)
from tdsm.models.field import NeuralField
from tdsm.pipeline.findings import write_findings
from tdsm.pipeline.run import Run
from tdsm.tokenfield import TokenField

NAME = "analysis"
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
    """Measure each decomposition on a stratified draw of test images.

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
    drawn = stratified_sample(run.data.test.labels, images, generator(run.config.seed, "analysis"))
    seen = {method: _Seen() for method in compared(run.field)}
    for number, rows in enumerate(track(drawn.split(batch_size), "analysing", unit="batch")):
        batch = _encoded(run, other, rows, number)
        for method, so_far in seen.items():
            _measure(batch, method, so_far)
    labels = run.data.test.labels[drawn] if run.data.has_labels else None
    table = [{"method": method} | so_far.row(labels) for method, so_far in seen.items()]
    return {"images": len(drawn), "tokens": run.field.config.num_tokens, "rows": table}


def write_analysis(run: Run, analysis: dict[str, Any]) -> tuple[Path, str]:
    """Write analysis.md and what is behind it; return its path and its text."""
    return write_findings(run, NAME, [analysis_table(analysis)], analysis)


def compared(field: TokenField) -> tuple[str, ...]:
    """Name the decompositions measured: all that suit the field but sampled ones, slow references for the others."""
    return tuple(name for name in methods_for(field) if not DECOMPOSITIONS[name].is_sampled)


def analysis_table(analysis: dict[str, Any]) -> Table:
    """Tabulate the measures, one decomposition a line, with what each column measures."""
    rows, tokens = analysis["rows"], analysis["tokens"]
    names = [name for name in COLUMNS if name in rows[0]]
    meanings = [f"{_title(name)}: {COLUMNS[name].format(tokens=tokens, noise=NOISE, shift=SHIFT)}." for name in names]
    return Table(
        "Every decomposition",
        ["method", *map(_title, names)],
        [[row["method"], *(_cell(row[name], tokens) for name in names)] for row in rows],
        ["method"],
        notes=[f"Means over a stratified draw of {count_of(analysis['images'], 'test image')}.", *meanings],
    )


def _cell(value: float | list[int], tokens: int) -> str:
    return f"{len(value)} of {tokens}" if isinstance(value, list) else f"{value:.3g}"


def _title(name: str) -> str:
    return name.replace("_db", "_dB").replace("_", " ")


@dataclass(frozen=True)
class _Batch:
    """Images and, each encoded once for every decomposition, the tokens of all that is compared."""

    field: NeuralField
    images: Float[Tensor, "batch channels height width"]
    tokens: Tensor
    noisy: Tensor
    shifted: Tensor
    other: tuple[NeuralField, Tensor] | None

    def components(self, field: NeuralField, tokens: Tensor, method: str) -> Decomposition:
        return decompose(field, tokens, size=tuple(self.images.shape[2:]), method=method)


@dataclass
class _Seen:
    """What is kept of the images so far: no component image, whatever their number."""

    measures: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    pooled: list[Tensor] = field(default_factory=list)
    share: ImageShare = field(default_factory=ImageShare)
    similarity: list[Tensor] = field(default_factory=list)

    def row(self, labels: Int[Tensor, " images"] | None) -> dict[str, Any]:
        """Return the means over all images."""
        row: dict[str, Any] = {name: torch.cat(values).mean().item() for name, values in self.measures.items()}
        row["positional_constants"] = self.share.constants()
        if labels is not None:
            row["class_selectivity"] = class_selectivity(torch.cat(self.pooled), labels).mean().item()
        if self.similarity:
            mean = torch.stack(self.similarity).sum(0) / sum(map(len, self.pooled))
            row["seed_stability"] = match_similar(mean)[1].mean().item()
        return row


def _encoded(run: Run, other: Run | None, rows: Int[Tensor, " batch"], number: int) -> _Batch:
    images = run.data.test.floats(rows).to(run.device)
    noise = NOISE * torch.randn(images.shape, generator=generator(run.config.seed, "noise", number)).to(run.device)
    tokens, noisy, shifted = (run.field.encode(x) for x in (images, images + noise, images.roll(SHIFT, dims=-1)))
    others = None if other is None else (other.field, other.field.encode(images))
    return _Batch(run.field, images, tokens, noisy, shifted, others)


def _measure(batch: _Batch, method: str, seen: _Seen) -> None:
    result = batch.components(batch.field, batch.tokens, method)
    for name, values in _per_image(batch, result).items():
        seen.measures[name].append(values.cpu())
    seen.pooled.append(result.components.flatten(2, -2).mean(2, keepdim=True).cpu())
    seen.share.add(result.components.cpu())
    if batch.other is not None:
        others = batch.components(*batch.other, method).components
        seen.similarity.append(token_similarity(result.components, others).sum(0).cpu())


def _per_image(batch: _Batch, result: Decomposition) -> dict[str, Tensor]:
    tokens, size, half = batch.tokens, tuple(batch.images.shape[2:]), batch.tokens.shape[1] // 2
    noisy, moved = (batch.components(batch.field, x, result.method).components for x in (batch.noisy, batch.shifted))
    rank, target = rank_by_energy(result.components), batch.images.movedim(1, -1)
    return {
        "completeness_error": result.completeness_error,
        "redundancy": redundancy(result.components),
        "effective_rank": effective_rank(result.components),
        "spread": spatial_spread(result.components).mean(dim=1),
        "noise_stability": stability(result.components, noisy).mean(dim=1),
        "shift_stability": stability(result.components, moved, shift=(0, SHIFT)).mean(dim=1),
        "deletion_db": deletion_curve(batch.field, tokens, rank, target, [half], size=size)[:, 0],
        "insertion_db": insertion_curve(batch.field, tokens, rank, target, [half], size=size)[:, 0],
    }
