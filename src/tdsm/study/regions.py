"""Which tokens does one take hold of, to change one region and leave the rest? `tdsm study regions`.

n tokens are chosen for a region: by what they contributed to it, by how much it looked at them, by what it would miss
without them, by what they say alone, by where they stand, or at random. They are dropped, or replaced by those chosen
in the same way for the same region of another signal. Then

    selectivity = change inside the region − change outside it

Images are asked about the fields of a grid, the change being the root mean square difference of values. Whoever has
shapes with parts calls `compare_ways` with `occupancy_change`, as examples/shape_parts does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.base.progress import track
from tdsm.base.randomness import generator
from tdsm.decomposition import contributions, methods_for
from tdsm.pipeline.run import Run
from tdsm.study.config import RegionStudyConfig
from tdsm.tokenfield import TokenField
from tdsm.tokenfield.coords import grid

Before = Float[Tensor, "1 points channels"]
After = Float[Tensor, "batch points channels"]
Change = Callable[[Before, After, Bool[Tensor, " points"]], Float[Tensor, " batch"]]


@dataclass(frozen=True, eq=False)
class Subject:
    """A signal whose regions are asked about."""

    tokens: Float[Tensor, "tokens width"]
    coords: Float[Tensor, "points axes"]
    own: Bool[Tensor, "points regions"]  # the points that tokens are chosen by
    cells: Bool[Tensor, "points regions"]  # the points where a change counts as inside
    positions: Float[Tensor, "tokens axes"] | None = None  # where tokens stand, if anywhere


@dataclass(frozen=True, eq=False)
class Effects:
    """What every way of choosing did: the mean over a subject's regions of the change inside and outside."""

    ways: tuple[str, ...]
    counts: tuple[int, ...]
    changes: dict[str, Float[Tensor, "subjects ways counts 2"]]  # under the name of each edit

    def selectivity(self, edit: str) -> Float[Tensor, "subjects ways counts"]:
        """Return the change inside less that outside."""
        inside, outside = self.changes[edit].unbind(-1)
        return inside - outside


def answer(run: Run, config: RegionStudyConfig) -> tuple[Path, str]:
    """Ask about the fields of a grid on test images, and write the tables; return their path and text."""
    from tdsm.study.regions_table import write_region_study

    subjects = image_subjects(run, config)
    counts = config.counts or tuple(2**i for i in range(run.field.config.num_tokens.bit_length() - 1))
    donors = [(number + 1) % len(subjects) for number in range(len(subjects))]
    effects = compare_ways(run.field, subjects, donors, counts, value_change, draws=config.draws, seed=run.config.seed)
    return write_region_study(run, effects, config)


def image_subjects(run: Run, config: RegionStudyConfig) -> list[Subject]:
    """Return test images, drawn by the run's seed, with the fields of a grid as regions."""
    images, (rows, columns) = run.data.test, config.grid
    order = torch.randperm(len(images), generator=generator(run.config.seed, "study regions"))[: config.images]
    coords = grid(images.size, device=run.device)
    places = [((coords[:, axis] + 1) / 2 * n).long().clamp(max=n - 1) for axis, n in enumerate((rows, columns))]
    cells = F.one_hot(places[0] * columns + places[1], rows * columns).bool()
    with torch.no_grad():
        tokens = run.field.encode(images.floats(order).to(run.device))
    return [Subject(own, coords, cells, cells) for own in tokens]


def value_change(before: Before, after: After, where: Bool[Tensor, " points"]) -> Float[Tensor, " batch"]:
    """Return the root mean square difference of values."""
    return (after - before)[:, where].square().mean((1, 2)).sqrt()


def occupancy_change(before: Before, after: After, where: Bool[Tensor, " points"]) -> Float[Tensor, " batch"]:
    """Return 1 − intersection over union of what is above 0; 0 where nothing is before or after.

    >>> before, after = torch.tensor([[[1.0], [1.0], [-1.0]]]), torch.tensor([[[1.0], [-1.0], [-1.0]]])
    >>> occupancy_change(before, after, torch.tensor([True, True, True]))
    tensor([0.5000])
    """
    one, other = (values[:, where, 0] > 0 for values in (before, after))
    both, either = (one & other).sum(1), (one | other).sum(1)
    return torch.where(either > 0, 1 - both / either.clamp(min=1), 0.0)


# ---------------------------------------------------------------- how tokens are chosen

Scores = Float[Tensor, "regions tokens"]
Score = Callable[[TokenField, Subject, torch.Generator], Scores]


@dataclass(frozen=True)
class Way:
    """A way of choosing tokens for a region: those of the highest scores."""

    meaning: str
    score: Score
    method: str | None = None  # the decomposition it reads
    needs_positions: bool = False
    is_drawn: bool = False  # by chance
    is_relative: bool = False  # less the mean of what it scores in the other regions


def by_method(method: str, **options: int) -> Score:
    """Score tokens by their mean component in a region, along the change that all of them together made there."""

    def score(field: TokenField, subject: Subject, draw: torch.Generator) -> Scores:
        parts = contributions(
            field, subject.tokens[None], subject.coords, subject.own.float(), method=method, **options
        )
        made = F.normalize(parts.reconstruction - parts.base, dim=-1)
        return _mean(torch.einsum("brkc,brc->brk", parts.components, made)[0], parts.weight)

    return score


def by_attention(field: TokenField, subject: Subject, draw: torch.Generator) -> Scores:
    """Score tokens by the attention of a region's points, mean over heads and points."""
    parts = contributions(field, subject.tokens[None], subject.coords, subject.own.float(), method="attention")
    return _mean(parts.components[0, ..., 0], parts.weight)


def less_the_rest(scores: Scores) -> Scores:
    """Return how much higher tokens score in a region than in the mean of the others."""
    return scores - (scores.sum(0) - scores) / max(1, len(scores) - 1)


def by_position(field: TokenField, subject: Subject, draw: torch.Generator) -> Scores:
    """Score tokens by how many of a region's points they are nearest to, then by how near they are to any."""
    assert subject.positions is not None
    apart = torch.cdist(subject.coords, subject.positions)
    nearest = F.one_hot(apart.argmin(1), len(subject.positions)).to(apart)
    reach = torch.stack([apart.masked_fill(~own[:, None], 1e6).amin(0) for own in subject.own.T])
    return _mean(subject.own.to(apart).T @ nearest, subject.own.sum(0)) - 1e-9 * reach


def at_random(field: TokenField, subject: Subject, draw: torch.Generator) -> Scores:
    """Score tokens by chance."""
    return torch.rand(subject.own.shape[1], len(subject.tokens), generator=draw)


def _mean(sums: Scores, weight: Tensor) -> Scores:
    return sums / weight.clamp(min=1)[:, None]


ADDITIVE = by_method("additive", points=8)
WAYS = {
    "additive": Way("what they contributed to the region (8 points)", ADDITIVE, "additive"),
    "attention": Way("how much the region looked at them, mean of heads and points", by_attention, "attention"),
    "leave_one_out": Way("what the region would miss without them", by_method("leave_one_out"), "leave_one_out"),
    "solo": Way("what they alone decode to in the region", by_method("solo"), "solo"),
    "additive less rest": Way("additive, less its mean in the other regions", ADDITIVE, "additive", is_relative=True),
    "attention less rest": Way(
        "attention, less its mean in the other regions", by_attention, "attention", is_relative=True
    ),
    "position": Way("how many of the region's points they are nearest to", by_position, needs_positions=True),
    "random": Way("by chance, mean of several draws", at_random, is_drawn=True),
}


def ways_for(field: TokenField, subjects: Sequence[Subject]) -> tuple[str, ...]:
    """Name the ways of choosing that suit the field; by position where tokens have some."""
    has_positions = all(subject.positions is not None for subject in subjects)
    suited = (None, *methods_for(field))
    return tuple(
        name for name, way in WAYS.items() if way.method in suited and (has_positions or not way.needs_positions)
    )


# ---------------------------------------------------------------- what is done with them


@dataclass(frozen=True, eq=False)
class Chosen:
    """A subject and the order of its tokens for each region, best first, in every way of choosing."""

    subject: Subject
    order: Int[Tensor, "choices regions tokens"]


Edit = Callable[[Chosen, Chosen, int, int], Float[Tensor, "choices kept width"]]


def drop(own: Chosen, other: Chosen, region: int, count: int) -> Tensor:
    """Leave out the first `count` tokens of each order."""
    return own.subject.tokens[own.order[:, region, count:]]


def replace(own: Chosen, other: Chosen, region: int, count: int) -> Tensor:
    """Put the first `count` tokens of the other's orders in the place of the first of the own."""
    return torch.cat([drop(own, other, region, count), other.subject.tokens[other.order[:, region, :count]]], 1)


EDITS: dict[str, Edit] = {"drop": drop, "replace": replace}


@torch.no_grad()
def compare_ways(
    field: TokenField,
    subjects: Sequence[Subject],
    donors: Sequence[int],
    counts: Sequence[int],
    change: Change,
    *,
    draws: int = 3,
    seed: int = 0,
) -> Effects:
    """Choose, edit and measure, for every subject, region, way, edit and number of tokens.

    Args:
        field: Decodes the subjects' tokens, on whose device everything is.
        subjects: All with as many tokens; regions of no points are left out.
        donors: For each subject the number of the one whose tokens replace its own; its regions are the same ones.
        counts: How many tokens are edited, each fewer than there are.
        change: How much values changed where a mask says.
        draws: Random choices averaged.
        seed: Of these.

    Raises:
        UsageError: If a count leaves no token in or none out, or two signals have no region in common.
    """
    counts, total = tuple(counts), len(subjects[0].tokens)
    if not counts or not all(0 < count < total for count in counts):
        raise UsageError(f"study regions: counts are {counts}, expected numbers from 1 to {total - 1}.")
    ways = ways_for(field, subjects)
    names = [name for name in ways for _ in range(draws if WAYS[name].is_drawn else 1)]
    chosen = [
        Chosen(subject, _order(field, subject, names, generator(seed, "choice of tokens", number)))
        for number, subject in enumerate(track(subjects, "choosing tokens", unit="signal"))
    ]
    pairs = [(own, chosen[donor]) for own, donor in zip(chosen, donors, strict=True)]
    found = torch.stack([_effect(field, *pair, counts, change) for pair in track(pairs, "editing", unit="signal")])
    of_way = torch.stack([found[:, :, [name == way for name in names]].mean(2) for way in ways], 2)
    return Effects(ways, counts, dict(zip(EDITS, of_way.unbind(1), strict=True)))


def _order(
    field: TokenField, subject: Subject, names: Sequence[str], draw: torch.Generator
) -> Int[Tensor, "choices regions tokens"]:
    known: dict[Score, Scores] = {}  # two ways may read one score

    def scores(way: Way) -> Scores:
        if way.is_drawn or way.score not in known:
            known[way.score] = way.score(field, subject, draw).to(subject.tokens.device)
        return less_the_rest(known[way.score]) if way.is_relative else known[way.score]

    ordered = (scores(WAYS[name]).argsort(dim=-1, descending=True, stable=True) for name in names)
    return torch.stack(list(ordered))


def _effect(
    field: TokenField, own: Chosen, other: Chosen, counts: Sequence[int], change: Change
) -> Float[Tensor, "edits choices counts 2"]:
    """Return the change inside and outside, the mean over regions that both have."""
    subject = own.subject
    before = field.decode(subject.tokens[None], coords=subject.coords)
    has_points = subject.own.any(0) & other.subject.own.any(0)
    if not has_points.any():
        raise UsageError("study regions: a signal shares no region that has points with the one whose tokens it gets.")

    def measure(edit: Edit, region: int, count: int) -> Float[Tensor, "choices 2"]:
        after, cell = field.decode(edit(own, other, region, count), coords=subject.coords), subject.cells[:, region]
        return torch.stack([change(before, after, where) for where in (cell, ~cell)], -1)

    by_region = [
        torch.stack([torch.stack([measure(edit, region, count) for count in counts], 1) for edit in EDITS.values()])
        for region in has_points.nonzero().flatten().tolist()
    ]
    return torch.stack(by_region).mean(0).cpu()
