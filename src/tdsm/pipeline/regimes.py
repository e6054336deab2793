"""The table of trained regimes: accuracy over seeds, and what became of the reconstruction."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from jaxtyping import Bool
from torch import Tensor

from tdsm.base.statistics import Interval, accuracy_interval, paired_difference
from tdsm.base.text import NOTHING, Table, count_of, difference_words, percent, points

WORDS = ["name", "regime", "features", "head"]
HEADINGS = [*WORDS, "seeds", "test accuracy (%)", "deviation", "95 % interval (%)", "validation (%)"]
DECIBELS = ["dB before", "dB after"]
MEANS = ("validation_accuracy", "psnr_before", "psnr_after")


def regimes_table(results: Sequence[dict], is_right: Mapping[str, Bool[Tensor, "seeds samples"]]) -> Table:
    """Tabulate one regime a line, seeds averaged.

    Args:
        results: What each seed of each regime measured.
        is_right: Under its name, whether each of its seeds is right on each test image.
    """
    bounds = {name: accuracy_interval(right) for name, right in is_right.items()}
    lines = [
        _line([result for result in results if result["name"] == name], bounds[name], right)
        for name, right in is_right.items()
    ]
    notes = [
        f"{count_of(results[0]['n_test'], 'test image')}.",
        "Deviation: over seeds, in points.",
        f"Intervals: {', '.join(dict.fromkeys(bound.method for bound in bounds.values()))}.",
        "dB: PSNR on test images of the field before and after, mean over seeds.",
        *_differences(results, is_right),
    ]
    return Table("Heads trained with the field", [*HEADINGS, *DECIBELS], lines, WORDS, notes=notes)


def _line(results: Sequence[dict], bound: Interval, right: Bool[Tensor, "seeds samples"]) -> list[str]:
    means = {name: fmean(result[name] for result in results) for name in MEANS}
    accuracies = right.double().mean(dim=1)
    return [
        results[0]["name"],
        results[0]["regime"],
        results[0]["settings"]["features"],
        results[0]["settings"]["head"]["kind"],
        str(len(results)),
        percent(bound.value),
        percent(accuracies.std().item()) if len(results) > 1 else NOTHING,
        f"{percent(bound.low)} – {percent(bound.high)}",
        percent(means["validation_accuracy"]),
        *(f"{means[name]:.2f}" for name in ("psnr_before", "psnr_after")),
    ]


def _differences(results: Sequence[dict], is_right: Mapping[str, Bool[Tensor, "seeds samples"]]) -> list[str]:
    """Compare each with the one that is best on validation, image by image."""
    validation = {
        name: fmean(entry["validation_accuracy"] for entry in results if entry["name"] == name) for name in is_right
    }
    best = max(validation, key=lambda name: validation[name])
    found = {name: paired_difference(right, is_right[best]) for name, right in is_right.items() if name != best}
    return [
        f"{name} against {best}, the best on validation: {points(by.value)} points, {difference_words(by)}."
        for name, by in found.items()
    ]
