"""Tables, chairs, lamps and mugs of random proportions whose parts are known, as signed distances.

The second axis points up; everything lies in [-1, 1]³. A distance is negative inside a part; the part of a point is the
one nearest to it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Points = Float[Tensor, "batch points 3"]
Distances = Float[Tensor, "batch points"]
MOST_NUMBERS, MOST_PARTS, TURN = 7, 3, 0.5


@dataclass(frozen=True)
class Kind:
    """A kind of shape: its parts, between what its proportions are drawn, and each part's distances from them."""

    parts: tuple[str, ...]
    limits: tuple[tuple[float, float], ...]
    distances: Callable[[Points, list[Tensor]], tuple[Distances, ...]]


def box(x: Points, centre: tuple, half: tuple) -> Distances:
    """Return distances to boxes."""
    return joined(*((x[..., axis] - centre[axis]).abs() - half[axis] for axis in range(3)))


def frustum(x: Points, low: Tensor, high: Tensor, wide: Tensor, narrow: Tensor) -> Distances:
    """Return distances to upright cones of radius `wide` at `low` and `narrow` at `high`, nearly exact outside."""
    slope = (narrow - wide) / (high - low)
    side = (x[..., ::2].norm(dim=-1) - wide - slope * (x[..., 1] - low)) / (1 + slope**2).sqrt()
    return joined(side, (x[..., 1] - (low + high) / 2).abs() - (high - low) / 2)


def joined(*sides: Distances) -> Distances:
    """Return distances to where all of several perpendicular distances are negative."""
    apart = torch.stack(torch.broadcast_tensors(*sides), -1)
    return apart.clamp(min=0).norm(dim=-1) + apart.amax(-1).clamp(max=0)


def table(x: Points, numbers: list[Tensor]) -> tuple[Distances, ...]:
    """Return distances to the top and to the nearest of four legs."""
    wide, deep, high, thick, leg = numbers
    corner = torch.stack([x[..., 0].abs(), x[..., 1], x[..., 2].abs()], -1)
    top = box(x, (0, high - thick / 2, 0), (wide, thick / 2, deep))
    return top, box(corner, (wide - leg, -thick / 2, deep - leg), (leg, high - thick / 2, leg))


def chair(x: Points, numbers: list[Tensor]) -> tuple[Distances, ...]:
    """Return distances to the seat, the back and the nearest of four legs."""
    wide, deep, long, thick, leg, back, rest = numbers
    seat, corner = long - 0.9 + thick / 2, torch.stack([x[..., 0].abs(), x[..., 1], x[..., 2].abs()], -1)
    return (
        box(x, (0, seat, 0), (wide, thick / 2, deep)),
        box(x, (0, seat + (thick + back) / 2, rest - deep), (wide, back / 2, rest)),
        box(corner, (wide - leg, (long - 1.8) / 2, deep - leg), (leg, long / 2, leg)),
    )


def lamp(x: Points, numbers: list[Tensor]) -> tuple[Distances, ...]:
    """Return distances to the base, the pole and the shade."""
    foot, thick, pole, long, wide, narrow, tall = numbers
    ground = torch.full_like(thick, -0.9)
    joint, bottom = ground + thick, ground + thick + long
    return (
        frustum(x, ground, joint, foot, foot),
        frustum(x, joint, bottom, pole, pole),
        frustum(x, bottom, bottom + tall, wide, narrow),
    )


def mug(x: Points, numbers: list[Tensor]) -> tuple[Distances, ...]:
    """Return distances to the body, open above, and to the handle outside it."""
    wide, half, wall, floor, ring, thick, place = numbers
    outer = frustum(x, -half, half, wide, wide)
    inner = frustum(x, floor - half, 2 * half, wide - wall, wide - wall)
    around = torch.stack([x[..., 0] - wide, x[..., 1] - place], -1).norm(dim=-1) - ring
    tube = torch.stack([around, x[..., 2]], -1).norm(dim=-1) - thick
    return torch.maximum(outer, -inner), torch.maximum(tube, -outer)


SIDE, LEG, PLATE = (0.4, 0.65), (0.08, 0.13), (0.1, 0.2)
KINDS = {
    "table": Kind(("top", "legs"), (SIDE, SIDE, (0.4, 0.8), PLATE, LEG), table),
    "chair": Kind(("seat", "back", "legs"), (SIDE, SIDE, (0.4, 0.8), PLATE, LEG, (0.4, 0.8), (0.05, 0.1)), chair),
    "lamp": Kind(
        ("base", "pole", "shade"),
        ((0.3, 0.55), (0.1, 0.2), (0.07, 0.12), (0.5, 0.9), (0.35, 0.6), (0.15, 0.3), (0.35, 0.6)),
        lamp,
    ),
    "mug": Kind(
        ("body", "handle"),
        ((0.35, 0.5), (0.4, 0.7), (0.1, 0.16), PLATE, (0.2, 0.35), (0.07, 0.12), (-0.1, 0.1)),
        mug,
    ),
}


@dataclass(frozen=True)
class Shapes:
    """A batch of shapes: of which kind, of which proportions, and how far turned."""

    kind: Int[Tensor, " batch"]
    numbers: Float[Tensor, "batch numbers"]
    turn: Float[Tensor, " batch"]

    def __len__(self) -> int:
        """Count them."""
        return len(self.kind)

    def __getitem__(self, rows: slice) -> "Shapes":
        """Take some."""
        return Shapes(self.kind[rows], self.numbers[rows], self.turn[rows])

    def distances(self, points: Points) -> Float[Tensor, "batch points parts"]:
        """Return distances to each part; infinite where a kind has fewer."""
        across, up, along = points.unbind(-1)
        cos, sin = self.turn.cos()[:, None], self.turn.sin()[:, None]
        turned = torch.stack([cos * across + sin * along, up, cos * along - sin * across], -1)
        rows, found = [], []
        for number, kind in enumerate(KINDS.values()):
            own = (self.kind == number).nonzero().flatten()
            low, high = torch.tensor(kind.limits).T
            drawn = low + (high - low) * self.numbers[own, : len(low)]
            parts = kind.distances(turned[own], list(drawn.T[..., None]))
            absent = [torch.full_like(parts[0], torch.inf)] * (MOST_PARTS - len(parts))
            rows.append(own)
            found.append(torch.stack([*parts, *absent], -1))
        return torch.cat(found)[torch.cat(rows).argsort()]

    def occupied(self, points: Points) -> Bool[Tensor, "batch points"]:
        """Tell which points lie inside."""
        return self.distances(points).amin(-1) < 0

    def parts(self, points: Points) -> Int[Tensor, "batch points"]:
        """Number the part that each point is nearest to."""
        return self.distances(points).argmin(-1)

    def surface(self, count: int, draw: torch.Generator) -> Points:
        """Move points drawn in the cube to the surface nearest to them, so that thin parts get many."""
        points = 2 * torch.rand(len(self), count, 3, generator=draw) - 1
        for _ in range(3):
            with torch.enable_grad():
                points = points.detach().requires_grad_()
                distance = self.distances(points).amin(-1)
                (ahead,) = torch.autograd.grad(distance.sum(), points)
            points = points - distance[..., None] * ahead
        return points.detach().clamp(-1, 1)


def draw_shapes(count: int, draw: torch.Generator) -> Shapes:
    """Draw shapes, their kinds in turn."""
    kind = torch.arange(count) % len(KINDS)
    numbers, turn = torch.rand(count, MOST_NUMBERS, generator=draw), 2 * torch.rand(count, generator=draw) - 1
    return Shapes(kind, numbers, TURN * turn)
