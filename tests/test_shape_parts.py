"""The experiment on shapes with known parts."""

import sys
from pathlib import Path

import pytest
import torch
import trimesh

ROOT = Path(__file__).resolve().parents[1]
FOLDER, MODULES = ROOT / "examples" / "shape_parts", ("autoencoder", "classify", "shapes", "parts", "__main__")


@pytest.fixture
def modules(monkeypatch):
    """The modules of the example, imported anew, with little to do."""
    monkeypatch.syspath_prepend(FOLDER)
    names = [name for name in MODULES if name != "__main__"]
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = {name: __import__(name) for name in names}
    monkeypatch.setattr(found["parts"], "COUNTS", (1, 8))
    monkeypatch.setattr(found["parts"], "QUERIES", 128)
    monkeypatch.setattr(found["classify"], "COUNTS", {"train": 8, "validation": 8, "test": 12})
    monkeypatch.setattr(found["classify"], "SIDE", 4)
    yield found
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def model(modules):
    """An autoencoder that never learned, by which half of space is occupied."""
    shapes = modules["shapes"].draw_shapes(4, torch.Generator().manual_seed(0))
    model = modules["autoencoder"].ShapeAutoencoder().eval().requires_grad_(False)
    surface = shapes.surface(256, torch.Generator().manual_seed(0))
    logits = model.geo_decoder(surface, model.decode(model.encode(surface)))
    model.geo_decoder.output_proj.bias -= logits.median()
    return model


def test_points_of_a_surface_lie_on_it_and_thin_parts_have_some(modules):
    shapes = modules["shapes"].draw_shapes(8, torch.Generator().manual_seed(0))
    points = shapes.surface(1024, torch.Generator().manual_seed(1))
    away = shapes.distances(points).amin(-1).abs()
    assert away.quantile(0.9) < 0.02
    assert points.abs().max() <= 1
    for part, kind in zip(shapes.parts(points), shapes.kind.tolist(), strict=True):
        assert part.bincount(minlength=3).ne(0).sum() == len(list(modules["shapes"].KINDS.values())[kind].parts)


def test_parts_are_where_they_are_said_to_be(modules):
    shapes = modules["shapes"]
    table = shapes.Shapes(torch.tensor([0]), torch.full((1, 7), 0.5), torch.zeros(1))
    places = torch.tensor(
        [[[0.0, 0.55, 0.0], [0.45, -0.3, 0.45], [-0.45, -0.3, 0.45], [0.0, 0.0, 0.0], [0.0, 0.9, 0.0]]]
    )
    assert table.occupied(places)[0].tolist() == [True, True, True, False, False]
    assert table.parts(places)[0, :3].tolist() == [0, 1, 1]
    mug = shapes.Shapes(torch.tensor([3]), torch.full((1, 7), 0.5), torch.zeros(1))
    places = torch.tensor([[[0.0, 0.3, 0.0], [0.36, 0.0, 0.0], [0.7, 0.0, 0.0], [0.55, 0.0, 0.0], [0.0, 0.56, 0.0]]])
    assert mug.occupied(places)[0].tolist() == [False, True, True, False, False]
    assert mug.parts(places)[0, 1:3].tolist() == [0, 1]


def test_every_distance_is_that_to_the_nearest_point_of_the_surface(modules):
    shapes = modules["shapes"].draw_shapes(4, torch.Generator().manual_seed(2))
    surface = shapes.surface(8000, torch.Generator().manual_seed(1))
    points = 2 * torch.rand(4, 200, 3) - 1
    said, seen = shapes.distances(points).amin(-1), torch.cdist(points, surface).amin(-1)
    is_outside = said > 0.05
    assert (said - seen)[is_outside].abs().quantile(0.9) < 0.05


def test_farthest_points_are_those_found_one_by_one(modules):
    points, chosen = torch.rand(2, 30, 3), []
    for own in points:
        rows = [0]
        for _ in range(5):
            rows.append(int(torch.cdist(own, own[rows]).amin(1).argmax()))
        chosen.append(rows)
    assert modules["autoencoder"].farthest(points, 6).tolist() == chosen


def test_a_training_that_was_stopped_ends_as_if_it_had_not_been(modules, tmp_path, monkeypatch):
    module = modules["autoencoder"]
    for name, value in {
        "SHAPES": 4,
        "QUERIES": 16,
        "POINTS": 70,
        "TOKENS": 4,
        "DEPTH": 1,
        "JUDGED": 4,
        "JUDGED_AT": 64,
    }.items():
        monkeypatch.setattr(module, name, value)
    whole, again = module.trained(tmp_path / "a", 3, seed=0), module.trained(tmp_path / "a", 3, seed=0)
    other = module.trained(tmp_path / "b", 3, seed=1)
    for one, two, three in zip(whole.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
        assert not torch.equal(one, three) or one.std() == 0 or one.numel() == 1


def test_the_whole_experiment_runs(modules, model, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    names: dict = {"__name__": "experiment"}
    exec(compile((FOLDER / "__main__.py").read_text(), "__main__.py", "exec"), names)
    names["trained"] = lambda folder, steps, seed: model
    monkeypatch.setattr(sys, "argv", ["shape_parts", str(tmp_path), "--seeds", "2", "--shapes", "8", "--size", "10"])
    names["main"]()
    text = (tmp_path / "study-regions.md").read_text()
    assert all(title in text for title in ("### Tokens dropped", "### Tokens replaced", "### Kinds of shapes"))
    assert capsys.readouterr().out.endswith(text)
    assert (tmp_path / "handles.png").read_bytes()[1:4] == b"PNG"
    assert (tmp_path / "mug.png").read_bytes()[1:4] == b"PNG"
    assert len(trimesh.load(tmp_path / "mug.glb", force="mesh").faces)
    monkeypatch.setitem(names, "compare", None)
    names["main"]()  # what was asked is not asked again
    assert (tmp_path / "study-regions.md").read_text() == text
