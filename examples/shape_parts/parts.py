"""What the study asks about shapes: their tokens, their parts, and whose tokens replace whose."""

import torch
from autoencoder import POINTS, TOKENS, ShapeAutoencoder, farthest
from shapes import KINDS, Shapes, draw_shapes
from torch import Tensor

from tdsm import adapters
from tdsm.base.randomness import generator
from tdsm.decomposition.surface import decode_surface, strongest_token, token_contribution
from tdsm.figures.shapes import mesh_bytes, painted_shape
from tdsm.figures.style import png
from tdsm.study.regions import Effects, Subject, compare_ways, occupancy_change

COUNTS, QUERIES, NOISE, SEED = (1, 2, 4, 8, 16, 32), 1024, 0.05, 1


def compare(model: ShapeAutoencoder, count: int) -> Effects:
    """Ask about new shapes; a shape's tokens are replaced by those of the next one of its kind."""
    field = adapters.shape_field(model)
    asked = subjects(model, draw_shapes(count, generator(SEED, "test shapes")))
    donors = [(number + len(KINDS)) % count for number in range(count)]
    return compare_ways(field, asked, donors, COUNTS, occupancy_change)


@torch.no_grad()
def subjects(model: ShapeAutoencoder, shapes: Shapes) -> list[Subject]:
    """Return shapes whose regions are their parts: a part's own points are decoded as inside and nearest to it."""
    draw = generator(SEED, "test points")
    surface = shapes.surface(POINTS, draw)
    tokens = model.decode(model.encode(surface))
    near = shapes.surface(QUERIES, draw)
    near = near + NOISE * torch.randn(near.shape, generator=draw)
    coords = torch.cat([2 * torch.rand(near.shape, generator=draw) - 1, near], 1)
    is_inside = model.geo_decoder(coords, tokens) > 0
    cells = [_cells(own, kind) for own, kind in zip(shapes.parts(coords), shapes.kind.tolist(), strict=True)]
    owned = [cell & inside for cell, inside in zip(cells, is_inside, strict=True)]
    positions = surface.gather(1, farthest(surface, TOKENS)[..., None].expand(-1, -1, 3))
    return [Subject(*one) for one in zip(tokens, coords, owned, cells, positions, strict=True)]


def paint(model: ShapeAutoencoder, size: int) -> dict[str, bytes]:
    """Draw a new shape of each kind: its strongest tokens, what the strongest gave, its parts; return files."""
    field, shapes = adapters.shape_field(model), draw_shapes(len(KINDS), generator(SEED, "shown shapes"))
    files: dict[str, bytes] = {}
    for number, (name, kind) in enumerate(KINDS.items()):
        shape = shapes[number : number + 1]
        tokens = model.decode(model.encode(shape.surface(POINTS, generator(SEED, "shown points", number))))
        surface = decode_surface(field, tokens, (size,) * 3)
        strongest = strongest_token(field, tokens, surface.vertices)
        token = int(strongest.bincount().argmax())
        paints = {
            "strongest token": strongest,
            f"given by token {token}": token_contribution(field, tokens, surface.vertices, token),
            "part": shape.parts(surface.vertices[None])[0],
        }
        drawn = {title: values.numpy() for title, values in paints.items()}
        mesh = surface.vertices.numpy(), surface.faces.numpy()
        files[f"{name}.png"] = png(painted_shape(*mesh, drawn, names={"part": kind.parts}), dpi=120)
        files[f"{name}.glb"] = mesh_bytes(*mesh, drawn["strongest token"], "glb")
    return files


def _cells(part: Tensor, kind: int) -> Tensor:
    parts = list(KINDS.values())[kind].parts
    return torch.nn.functional.one_hot(part, len(parts)).bool()
