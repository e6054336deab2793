"""Is what a token contributed to a part of a shape a better handle on that part than attention? Train, ask, draw.

    python examples/shape_parts runs/shapes --seeds 2                           what results/shapes holds
    python examples/shape_parts runs/shapes --steps 1250 --seeds 1 --size 48    a first look

A small autoencoder of the VecSet form is trained on tables, chairs, lamps and mugs, new ones every step, once a seed.
Then the tokens of shapes it never saw are asked for their parts, dropped, and replaced by those of another shape of the
same kind. A run that was stopped goes on where it was.
"""

import argparse
import sys
from pathlib import Path

import torch
from autoencoder import ShapeAutoencoder, trained
from classify import kinds_table
from parts import compare, paint

from tdsm.base import io
from tdsm.base.text import Table
from tdsm.figures.charts import handles
from tdsm.figures.style import png
from tdsm.study.regions import WAYS, Effects
from tdsm.study.regions_table import curves, region_facts, region_tables


def asked(folder: Path, model: ShapeAutoencoder, steps: int, shapes: int) -> Effects:
    """Return what every way of choosing tokens did to some shapes, as it was found before where it was."""
    path, made_from = folder / f"effects-{shapes}", {"steps": steps, "shapes": shapes, "ways": list(WAYS)}

    def fill(place: Path) -> None:
        effects = compare(model, shapes)
        io.write_tensors(place / "changes.safetensors", effects.changes)
        io.write_json(place / "asked.json", {"ways": effects.ways, "counts": effects.counts})

    if not path.exists() or io.verify_folder(path).made_from != made_from:
        io.write_folder(path, fill, made_from)
    facts = io.read_object(path / "asked.json")
    return Effects(tuple(facts["ways"]), tuple(facts["counts"]), io.read_tensors(path / "changes.safetensors"))


def main() -> None:
    """Train, ask, and write tables and pictures into the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run")
    parser.add_argument("--steps", type=int, default=2500, help="training steps; the learning rate falls over 2500")
    parser.add_argument("--seeds", type=int, default=3, help="trainings")
    parser.add_argument("--shapes", type=int, default=48, help="shapes asked about, a fourth of each kind")
    parser.add_argument("--size", type=int, default=64, help="points along each axis of the pictures' grids")
    options = parser.parse_args()
    torch.set_num_threads(1)  # more only wait on tensors this small
    folders = [options.run / f"seed-{seed}" for seed in range(options.seeds)]
    models = [trained(folder, options.steps, seed) for seed, folder in enumerate(folders)]
    effects = [
        asked(folder, model, options.steps, options.shapes) for folder, model in zip(folders, models, strict=True)
    ]
    note = f"{options.shapes} new shapes of four kinds; regions: their parts; change: 1 − IoU of occupancy."
    tables = [*region_tables(effects, note), kinds_table(models)]
    io.write_json(options.run / "study-regions.json", region_facts(effects))
    io.write_bytes(options.run / "handles.png", png(handles(*curves(effects))))
    for name, data in paint(models[0], options.size).items():
        io.write_bytes(options.run / name, data)
    write_tables(options.run / "study-regions.md", tables)


def write_tables(path: Path, tables: list[Table]) -> None:
    """Write tables, and print them."""
    text = "\n\n".join(table.markdown() for table in tables) + "\n"
    io.write_text(path, text)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
