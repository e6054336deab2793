"""Run the whole comparison on images of one's own, given as arrays.

    python examples/own_data.py

Writes an .npz of synthetic colour images (discs and squares of random colour and place), then does what
`tdsm demo --data.source npz:FILE` does with it, on a very small budget. Prints the table.
"""

import tempfile
from pathlib import Path

import numpy as np

from tdsm.cli.main import run_command

random = np.random.default_rng(0)
rows, columns = np.mgrid[:12, :12]
images, labels = [], []
for index in range(400):
    centre, radius, colour = random.uniform(4, 8, 2), random.uniform(2, 4), random.integers(60, 255, 3)
    offsets = np.abs(rows - centre[0]), np.abs(columns - centre[1])
    inside = np.hypot(*offsets) < radius if index % 2 else np.maximum(*offsets) < radius
    images.append(np.where(inside[..., None], colour, 20).astype(np.uint8))
    labels.append("disc" if index % 2 else "square")

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "shapes.npz"
    np.savez(file, images=np.stack(images), labels=np.array(labels))
    small = "--field.widths 16 24 --field.num-latents 8 --field.mapping-dim 8 --field.cross-head-dim 8"
    budget = "--field.self-head-dim 8 --field.fourier-scale 2 --train.steps 150 --train.batch-size 32 --probe.epochs 10"
    rows_shown = "--probe.rows tdsm-avg tdsm-cnn pixels-linear pixels-cnn values-linear"
    command = f"demo --run {folder}/run --data.source npz:{file} {small} {budget} {rows_shown}"
    assert run_command(command.split()) == 0
