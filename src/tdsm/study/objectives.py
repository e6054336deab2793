"""What does the objective that a field was trained by make of its tokens? `tdsm study objectives`.

One field an objective and seed, of the run's own settings but for the objective: how well it reconstructs, from all
tokens, a quarter of them and one, how its solo components stand to one another, and what a probe reads from them.
"""

from functools import partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tdsm.base import io
from tdsm.base.randomness import derive_seed, generator
from tdsm.base.statistics import psnr, wilson_interval
from tdsm.base.text import Table, count_of
from tdsm.classification.config import ProbeConfig
from tdsm.classification.probe import Samples
from tdsm.data import Data, ImageSet
from tdsm.data.imageset import SPLITS
from tdsm.data.sampling import stratified_sample
from tdsm.decomposition import decompose
from tdsm.decomposition.measures import effective_rank, redundancy
from tdsm.decomposition.select import select_tokens
from tdsm.features.config import MapConfig
from tdsm.features.extract import FeatureSet, fingerprint_field
from tdsm.features.kinds import FEATURES
from tdsm.models.field import NeuralField
from tdsm.pipeline import link
from tdsm.pipeline.data import fingerprints
from tdsm.pipeline.field import new_field, train_and_keep
from tdsm.pipeline.findings import write_findings
from tdsm.pipeline.run import Run
from tdsm.study.answers import fit_and_test
from tdsm.study.config import ObjectiveStudyConfig
from tdsm.study.keep import subsets
from tdsm.training.config import TrainConfig, objective_weights
from tdsm.training.reconstruction import check_training
from tdsm.training.registry import OBJECTIVES

FOLDER, RESULT = "study-objectives", "result.json"
PROBED = ("solo", "tokens")
COLUMNS = {
    "psnr": "dB",
    "psnr_quarter": "dB from a quarter",
    "psnr_one": "dB from one",
    "completeness_error": "solo adds up to",
    "own_error": "own adds up to",
    "redundancy": "redundancy",
    "effective_rank": "effective rank",
    "solo_accuracy": "probe of maps (%)",
    "tokens_accuracy": "probe of tokens (%)",
}


def answer(run: Run, config: ObjectiveStudyConfig) -> tuple[Path, str]:
    """Train and measure one field an objective and seed, and write the table; return its path and text."""
    return write_objectives(run, run_objectives(run, config), config)


def run_objectives(run: Run, config: ObjectiveStudyConfig) -> list[dict]:
    """Train and measure one field an objective and seed, taking up what an earlier call left.

    Raises:
        UsageError: If an objective does not suit the field.
    """
    folder, rows = run.path / FOLDER, []
    for name in config.objectives:
        check_training(_start(run, name, 0), run.data.train, _training(run, name, config.steps))
    data = subsets(run, config.max_train, config.max_test)
    for name in config.objectives:
        for seed in range(config.seeds):
            path = folder / name / f"seed-{seed}"
            field = _field(run, name, seed, path, config.steps)
            fill = partial(_write, run=run, name=name, seed=seed, field=field, data=data, place=path, config=config)
            link.keep(path / "result", _origin(run, field, data, seed, config), fill, holds=[RESULT], say=run.say)
            rows.append(io.read_object(path / "result" / RESULT))
            shown = ", ".join(f"{COLUMNS[key]} {_shown(key, rows[-1][key])}" for key in COLUMNS)
            run.say(f"{name}, seed {seed}: {shown}")
    return rows


def write_objectives(run: Run, rows: list[dict], config: ObjectiveStudyConfig) -> tuple[Path, str]:
    """Write study-objectives.md and what is behind it; return its path and its text."""
    facts = {"settings": config.model_dump(mode="json"), "rows": rows}
    return write_findings(run, FOLDER, [objectives_table(rows, config)], facts)


def objectives_table(rows: list[dict], config: ObjectiveStudyConfig) -> Table:
    """Tabulate one objective a line, seeds averaged, with their standard deviation where there are several."""
    names, first = list(dict.fromkeys(row["objective"] for row in rows)), rows[0]
    lines = [_line(name, [row for row in rows if row["objective"] == name]) for name in names]
    tests = count_of(first["test_images"], "test image")
    notes = [
        f"Means over {count_of(config.seeds, 'seed')} of field and probe{', ± their deviation' * (config.seeds > 1)}; "
        f"{config.steps} steps each.",
        f"dB: PSNR on {count_of(first['psnr_images'], 'test image')}, from all {first['tokens']} tokens, from every "
        "fourth, and from one, mean over tokens.",
        f"Components are those of a stratified draw of {count_of(first['images'], 'test image')}.",
        "Adds up to: ‖base + Σ I_k − reconstruction‖ / ‖reconstruction − base‖, of solo decoding and of the "
        "decomposition made for it: additive with 3 points, or the mixture.",
        "Redundancy and effective rank: of the solo components.",
        f"Probe: {config.head.kind} on the TDSM and on the tokens, {count_of(first['train_images'], 'training image')} "
        f"and {tests}, learning rate and epoch chosen on validation; one field's accuracy is uncertain by "
        f"± {100 * max(map(_half_width, rows)):.1f} points (Wilson), the test images being a sample.",
    ]
    return Table(
        "What the objective makes of the tokens", ["objective", *COLUMNS.values()], lines, ["objective"], notes=notes
    )


def _half_width(row: dict) -> float:
    """Return half the width of the wider interval of a field's two accuracies."""
    total = row["test_images"]
    bounds = [wilson_interval(round(row[f"{feature}_accuracy"] * total), total) for feature in PROBED]
    return max(bound.high - bound.low for bound in bounds) / 2


def _line(name: str, rows: list[dict]) -> list[str]:
    cells = [name]
    for key in COLUMNS:
        values = [row[key] for row in rows]
        deviation = f" ± {_shown(key, stdev(values))}" if len(values) > 1 else ""
        cells.append(_shown(key, fmean(values)) + deviation)
    return cells


def _shown(key: str, value: float) -> str:
    if key.endswith("accuracy"):
        return f"{100 * value:.1f}"
    return f"{value:.2f}" if key.startswith("psnr") else f"{value:.2g}"


def _training(run: Run, name: str, steps: int) -> TrainConfig:
    weights = objective_weights({"full": 0.0} | {name: 1.0})
    return run.config.train.model_copy(update={"objectives": weights, "steps": steps})


def _start(run: Run, name: str, seed: int) -> NeuralField:
    config = run.field.config.model_copy(update={"has_masks": False, **OBJECTIVES[name].needs})
    return new_field(config, derive_seed(run.config.seed, "objectives", seed))


def _field(run: Run, name: str, seed: int, path: Path, steps: int) -> NeuralField:
    """Train the field of an objective, or take up the one that was."""
    start, draws = _start(run, name, seed), derive_seed(run.config.seed, "objectives", seed)
    training = _training(run, name, steps)
    return train_and_keep(path, start, run.data, training, draws, is_given=False, device=run.device)


def _origin(run: Run, field: NeuralField, data: Data, seed: int, config: ObjectiveStudyConfig) -> dict[str, Any]:
    asked = config.model_dump(mode="json", exclude={"objectives", "seeds", "steps"})
    made_from = {"field": fingerprint_field(field), "data": fingerprints(data), "all": run.data.test.fingerprint()}
    return made_from | {"asked": asked, "seed": {"run": run.config.seed, "number": seed}}


def _write(
    folder: Path,
    run: Run,
    name: str,
    seed: int,
    field: NeuralField,
    data: Data,
    place: Path,
    config: ObjectiveStudyConfig,
) -> None:
    row = {"objective": name, "seed": seed, "tokens": field.config.num_tokens}
    row |= _reconstruction(field, run.data.test) | _components(field, run.data.test, config.images, run.config.seed)
    for feature in PROBED:
        row |= _probe(run, field, feature, data, place, seed, config)
    io.write_json(folder / RESULT, row)


@torch.no_grad()
def _reconstruction(field: NeuralField, images: ImageSet) -> dict:
    """Return the mean PSNR from all tokens and from every fourth."""
    some = select_tokens(field.config.num_tokens, "stride:4")
    ratios: dict[str, list[Tensor]] = {"psnr": [], "psnr_quarter": []}
    for rows in torch.arange(len(images)).split(64):
        tokens, target, size = _encoded(field, images, rows)
        for key, part in (("psnr", tokens), ("psnr_quarter", tokens[:, some])):
            ratios[key].append(psnr(target, field.decode(part, size=size)).cpu())
    return {key: torch.cat(values).mean().item() for key, values in ratios.items()} | {"psnr_images": len(images)}


@torch.no_grad()
def _components(field: NeuralField, images: ImageSet, limit: int, seed: int) -> dict:
    """Measure the solo components of a stratified draw of images, and whether the field's own decomposition adds up."""
    drawn = stratified_sample(images.labels, limit, generator(seed, "components"))
    own = "mixture" if field.config.has_masks else "additive"
    values: dict[str, list[Tensor]] = {}
    for rows in drawn.split(16):
        tokens, target, size = _encoded(field, images, rows)
        solo = decompose(field, tokens, size=size)
        measured = {
            "psnr_one": psnr(target[:, None].expand_as(solo.components).flatten(0, 1), solo.components.flatten(0, 1)),
            "completeness_error": solo.completeness_error,
            "own_error": decompose(field, tokens, size=size, method=own).completeness_error,
            "redundancy": redundancy(solo.components),
            "effective_rank": effective_rank(solo.components),
        }
        for key, value in measured.items():
            values.setdefault(key, []).append(value.cpu())
    return {key: torch.cat(parts).mean().item() for key, parts in values.items()} | {"images": len(drawn)}


def _encoded(
    field: NeuralField, images: ImageSet, rows: Tensor
) -> tuple[Tensor, Float[Tensor, "batch height width channels"], tuple[int, ...]]:
    pixels = images.floats(rows).to(next(field.parameters()).device)
    return field.encode(pixels), pixels.movedim(1, -1), tuple(pixels.shape[2:])


def _probe(
    run: Run, field: NeuralField, feature: str, data: Data, folder: Path, seed: int, config: ObjectiveStudyConfig
) -> dict:
    maps, field_hash = MapConfig(size=config.size or data.test.size, batch_size=32), fingerprint_field(field)
    samples = {}
    for split in SPLITS:
        images: ImageSet = getattr(data, split)
        sets = FeatureSet(folder / "features" / split, field, field_hash, images, maps, say=run.say)
        samples[split] = Samples.of(FEATURES[feature], sets.rows(feature), images.labels)
    probe, classes = ProbeConfig(epochs=config.epochs, learning_rates=config.learning_rates), len(data.train.classes)
    start = derive_seed(run.config.seed, "objectives", seed)
    numbers, _ = fit_and_test(config.head, samples, classes, probe, start, run.device)
    return {
        f"{feature}_accuracy": numbers["accuracy"],
        f"{feature}_validation": numbers["validation_accuracy"],
        "train_images": len(data.train),
        "test_images": len(data.test),
    }
