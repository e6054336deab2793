"""The table of trained regimes: accuracy over seeds, and what became of the reconstruction."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev

from tdsm.base import io
from tdsm.base.statistics import wilson_interval

HEADINGS = ["regime", "head", "seeds", "test accuracy (%)", "deviation", "95 % interval (%)", "validation (%)"]
DECIBELS = ["dB before", "dB after"]


def write_regimes(run: Path) -> tuple[Path, str]:
    """Write regimes.md of a run from every seed that was trained; return its path and its text."""
    results = [io.read_json(file) for file in sorted((run / "regimes").glob("*/seed-*/result.json"))]
    text = regimes_markdown(results)
    io.write_text(run / "regimes.md", text)
    return run / "regimes.md", text


def regimes_markdown(results: Sequence[dict]) -> str:
    """Write one line a regime, seeds averaged.

    The interval is Wilson's of the mean accuracy on the n test images of one seed: it holds the sampling of images,
    the deviation that of seeds.
    """
    names = list(dict.fromkeys(result["regime"] for result in results))
    lines = [[*HEADINGS, *DECIBELS], ["---"] * (len(HEADINGS) + 2)]
    lines += [_line([result for result in results if result["regime"] == name]) for name in names]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    count = results[0]["n_test"]
    return (
        f"{table}\n\n{count} test images. Deviation: over seeds. Interval: Wilson's, of the mean accuracy on {count} "
        "images. dB: PSNR on test images of the field before and after, mean over seeds.\n"
    )


def _line(results: Sequence[dict]) -> list[str]:
    accuracies = [result["accuracy"] for result in results]
    count = results[0]["n_test"]
    low, high = wilson_interval(round(fmean(accuracies) * count), count)
    return [
        results[0]["regime"],
        results[0]["settings"]["head"]["pool"],
        str(len(results)),
        f"{100 * fmean(accuracies):.1f}",
        f"{100 * stdev(accuracies):.1f}" if len(accuracies) > 1 else "–",
        f"{100 * low:.1f} – {100 * high:.1f}",
        f"{100 * fmean(result['validation_accuracy'] for result in results):.1f}",
        f"{fmean(result['psnr_before'] for result in results):.2f}",
        f"{fmean(result['psnr_after'] for result in results):.2f}",
    ]
