"""Draw the picture of the findings from tables in results/.

    python docs/findings.py --out docs/images/findings.png

Every dot is a row of a table there, its line the row's 95 % interval.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tdsm.figures.style import AMBER, BLUE, FAINT, INK, PALETTE, drawing, png

RESULTS = Path(__file__).resolve().parents[1] / "results"
FULL, SMALL = "full size, a network for pictures", "an MLP; maps of few points"
KINDS = {"pixels": FAINT, "all tokens decoded together": PALETTE[5], "one map a token": BLUE, "tokens": AMBER}
# Of each line: which head, what it reads, of which kind that is, table and row.
LINES = [
    (FULL, "pixels", "pixels", ("table-wide", "pixels-resnet_wide")),
    (FULL, "reconstruction, moved", "all tokens decoded together", ("table-wide-moved", "reconstruction-resnet_wide")),
    (FULL, "reconstruction", "all tokens decoded together", ("table-wide", "reconstruction-resnet_wide")),
    (FULL, "additive maps", "one map a token", ("table-wide-additive", "additive-resnet_wide")),
    (SMALL, "tokens", "tokens", ("table-tokens", "tokens-mlp_dropout")),
    (SMALL, "attention maps", "one map a token", ("table", "attention-mlp_dropout")),
]
PLACES = [y + 0.7 * (head == SMALL) for y, (head, *_) in enumerate(LINES)]  # from the top, room between heads
PANELS = {"Fashion-MNIST": "fashion-mnist-gpu", "CIFAR-10 (JPEG)": "cifar10-gpu"}


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/findings.png"), help="File of the picture.")
    parser.parse_args().out.write_bytes(png(drawn(), dpi=160))


@drawing("Test accuracy of what can be read of an image by its field, dots with 95 % intervals.")
def drawn() -> Figure:
    """Return the figure: a panel a data set, a line a row."""
    figure = Figure((8, 2.9), layout="constrained")
    for axes, (title, folder) in zip(figure.subplots(1, 2, sharey=True), PANELS.items(), strict=True):
        for place, (_, _, kind, (table, name)) in zip(PLACES, LINES, strict=True):
            row = found(folder, table, name)
            axes.plot([100 * row["low"], 100 * row["high"]], [place, place], color=KINDS[kind], linewidth=2)
            axes.plot(100 * row["accuracy"], place, "o", color=KINDS[kind], markersize=6)
            said = f"{100 * row['accuracy']:.1f}"
            axes.annotate(said, (100 * row["high"], place), (6, 0), textcoords="offset points", va="center", size=8)
        axes.set_yticks(PLACES, [label for _, label, *_ in LINES], color=INK)
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(PLACES[-1] + 0.6, -0.9)
        axes.margins(x=0.18)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)
        axes.set_title(title)
        axes.set_xlabel("test accuracy (%), with 95 % interval")
        for head in (FULL, SMALL):
            top = min(place for place, (of, *_) in zip(PLACES, LINES, strict=True) if of == head) - 0.55
            axes.text(0.0, top, head, transform=axes.get_yaxis_transform(), size=7.5, color=FAINT, style="italic")
    keys = [Line2D([], [], color=colour, marker="o", linewidth=2, label=kind) for kind, colour in KINDS.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=4)
    return figure


def found(folder: str, table: str, name: str) -> dict:
    """Return a row of a table in results/, of the first table where there is no such one."""
    path = RESULTS / folder / f"{table}.json"
    rows = json.loads((path if path.exists() else path.with_name("table.json")).read_text())
    return next(row for row in rows if row["name"] == name)


if __name__ == "__main__":
    main()
