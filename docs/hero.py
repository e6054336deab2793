"""Draw the first picture of the README from a run: image, tokens, what they contribute, and who speaks where.

    python docs/hero.py runs/fashion --row 3 --out docs/images/hero.png

Everything in it is computed from the run's field and one of its test images.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

import tdsm
from tdsm.decomposition.measures import rank_by_energy

SIDE, SHOWN = 96, 9


def main() -> None:
    """Draw the picture of one test image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="Folder of a run whose field is trained.")
    parser.add_argument("--row", type=int, default=0, help="Which test image.")
    parser.add_argument("--out", type=Path, default=Path("docs/images/hero.png"), help="File of the picture.")
    arguments = parser.parse_args()
    run = tdsm.load_run(arguments.run)
    drawn(run.field, run.data.test.floats([arguments.row])).savefig(arguments.out, dpi=100, facecolor="white")


@torch.no_grad()
def drawn(field: tdsm.NeuralField, images: torch.Tensor) -> Figure:
    """Return the figure of the first of some images, decoded finer than it is."""
    tokens = field.encode(images)
    parts = tdsm.decompose(field, tokens, size=(SIDE, SIDE), method="additive", points=8)
    planes = parts.components[0].mean(dim=-1)
    first = rank_by_energy(parts.components)[0, :SHOWN].tolist()
    scale = float(planes.abs().max())
    figure, axes = plt.subplots(1, 5, figsize=(12.5, 3), layout="constrained")
    show(axes[0], _picture(images[0].movedim(0, -1)), "an image", "{} × {} pixels".format(*images.shape[2:]))
    count, width = tokens.shape[1:]
    spread = float(tokens.abs().max())
    matrix = tokens[0].numpy()
    axes[1].imshow(matrix, cmap="RdBu_r", vmin=-spread, vmax=spread, aspect="auto", interpolation="nearest")
    show(axes[1], None, "its tokens", f"{count} rows of {width} numbers")
    mosaic = np.block([[planes[k].numpy() for k in first[row : row + 3]] for row in range(0, SHOWN, 3)])
    axes[2].imshow(mosaic, cmap="RdBu_r", vmin=-scale, vmax=scale)
    for line in (SIDE, 2 * SIDE):
        axes[2].axhline(line - 0.5, color="white", linewidth=2)
        axes[2].axvline(line - 0.5, color="white", linewidth=2)
    show(axes[2], None, "decoded token by token", f"what each contributed, {SHOWN} of {count}")
    show(axes[3], who_speaks(planes), "the map", "who contributed most where")
    show(axes[4], _picture(parts.reconstruction[0]), "added up", f"decoded at {SIDE} × {SIDE}")
    return figure


def who_speaks(planes: torch.Tensor) -> np.ndarray:
    """Colour each point by the token that contributed most to it, the paler the less that was."""
    strength, speaker = planes.abs().max(dim=0)
    hues = plt.get_cmap("hsv")(np.linspace(0, 1, len(planes), endpoint=False))[:, :3]
    hues = hues[np.random.default_rng(0).permutation(len(planes))]
    share = (strength / strength.quantile(0.98)).clamp(max=1).sqrt().numpy()[..., None]
    return 1 - share * (1 - hues[speaker.numpy()])


def show(axes: plt.Axes, picture: np.ndarray | None, title: str, below: str) -> None:
    """Show a picture without axes, with words above and below."""
    if picture is not None:
        axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axes.set_title(title, fontsize=13)
    axes.set_xlabel(below, fontsize=10, color="#555")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _picture(values: torch.Tensor) -> np.ndarray:
    return ((values.clamp(-1, 1) + 1) / 2).squeeze(-1).numpy()


if __name__ == "__main__":
    main()
