"""Is decoding the tokens worth it for classification? `tdsm study worth`.

Every feature gets the same two heads, each as wide as the same number of parameters allows, the same tuning on
validation and the same seeds; test is read once a row and seed. Differences are paired: both rows see the same test
images. The same is asked of fewer tokens, and of fields trained for fewer steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tdsm.base.errors import UsageError
from tdsm.base.randomness import derive_seed
from tdsm.classification.config import HeadConfig, ProbeConfig
from tdsm.classification.heads import make_head
from tdsm.classification.probe import Samples
from tdsm.data import Data
from tdsm.decomposition import check_method
from tdsm.features.config import MapConfig
from tdsm.features.extract import FeatureSet, fingerprint_field
from tdsm.models.field import NeuralField
from tdsm.models.weights import count_parameters
from tdsm.pipeline.field import new_field, train_and_keep
from tdsm.pipeline.run import Run
from tdsm.study.answers import changed, fit_and_test
from tdsm.study.config import StudyConfig
from tdsm.study.features import ASKED
from tdsm.study.keep import SPLITS, keep_answer, subsets
from tdsm.study.table import write_study
from tdsm.training.reconstruction import measure_psnr

FOLDER = "study-worth"
CELLS = 4  # the MLP reads maps averaged over CELLS × CELLS regions; tokens and images as they are
HEADS = ("mlp", "structured")
WIDTHS = {"flatten": "hidden_dim", "cnn": "width", "transformer": "width"}
WIDEST = 1024


@dataclass(frozen=True)
class Entry:
    """One question: this feature of this field, from this many tokens, read by this head."""

    field: str  # "trained", or "steps-N" for a field trained for N steps
    feature: str  # a name in ASKED
    head: str  # a name in HEADS
    tokens: int | None = None  # None: all

    @property
    def name(self) -> str:
        """What the entry is called in files."""
        return "_".join([self.field, self.feature, *([f"first{self.tokens}"] if self.tokens else []), self.head])


@dataclass(frozen=True, eq=False)
class Study:
    """What every entry needs: the run, the settings, the images, and the features of every field and split."""

    run: Run
    config: StudyConfig
    data: Data
    features: dict[tuple[str, str], FeatureSet]

    def of(self, entry: Entry, split: str) -> tuple[FeatureSet, str]:
        """Return the features an entry reads of a split, and the name of its own."""
        asked = ASKED[entry.feature]
        return self.features[entry.field if asked.is_trained else "untrained", split], asked.feature


def answer(run: Run, config: StudyConfig) -> tuple[Path, str]:
    """Answer every entry for every seed, and write the table; return its path and text."""
    return write_study(run, run_study(run, config))


def run_study(run: Run, config: StudyConfig) -> dict:
    """Answer every entry for every seed, taking up what an earlier call left; return all that was found."""
    maps = {asked.feature for asked in ASKED.values() if asked.kind.is_token_map}
    for method in maps:
        check_method(run.field, method)
    folder, rows = run.path / FOLDER, []
    data = subsets(run, config.max_train, config.max_test)
    fields = {"trained": run.field, "untrained": run.untrained}
    fields |= {f"steps-{n}": _shorter(run, n, folder) for n in config.steps}
    study = Study(run, config, data, dict(_feature_sets(run, data, fields, folder, config)))
    entries = list(_entries(run, config))
    for split in SPLITS:
        for name in fields:
            study.features[name, split].extract(sorted({_name(e) for e in entries if _field(e) == name}))
    for number, entry in enumerate(entries, start=1):
        for seed in range(config.seeds):
            rows.append(_answer(study, entry, seed))
        shown = sum(row["accuracy"] for row in rows[-config.seeds :]) / config.seeds
        run.say(f"{number}/{len(entries)} {entry.name}: test {100 * shown:.1f} %, mean of {config.seeds} seeds")
    psnr = {name: measure_psnr(field, data.validation) for name, field in fields.items() if name != "untrained"}
    return {"settings": config.model_dump(mode="json"), "rows": rows, "psnr": psnr, "test_images": len(data.test)}


def head_of_size(
    pool: str, maps: int, size: tuple[int, int], classes: int, parameters: int, **options: object
) -> HeadConfig:
    """Return the widest head of a kind that has at most this many parameters.

    >>> head_of_size("flatten", 3, (4, 4), 10, parameters=2000).hidden_dim
    33

    Raises:
        UsageError: If the narrowest one has more.
    """

    def make(width: int) -> HeadConfig:
        return HeadConfig.model_validate({"kind": pool, WIDTHS[pool]: width, **options})

    def count(width: int) -> int:
        with torch.device("meta"):
            head = make(width)
            return count_parameters(make_head(head, maps, classes, size))

    step = 4 if pool == "transformer" else 1  # its width is shared out among four heads
    widths = range(step, WIDEST + 1, step)
    if count(step) > parameters:
        raise UsageError(
            f"study: {pool} on {size[0]} × {size[1]} × {maps} features has {count(step)} parameters at its narrowest, "
            f"more than the {parameters} of --parameters."
        )
    low, high = 0, len(widths) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(widths[middle]) <= parameters else (low, middle - 1)
    return make(widths[low])


def _entries(run: Run, config: StudyConfig) -> Iterator[Entry]:
    for head in HEADS:
        yield from (Entry("trained", feature, head) for feature in ASKED)
    for count in (n for n in config.token_counts if n < run.field.config.num_tokens):
        yield from (Entry("trained", feature, "structured", count) for feature in ("solo", "tokens"))
    for steps in config.steps:
        yield from (Entry(f"steps-{steps}", feature, "structured") for feature in ("solo", "tokens"))


def _field(entry: Entry) -> str:
    return entry.field if ASKED[entry.feature].is_trained else "untrained"


def _name(entry: Entry) -> str:
    return ASKED[entry.feature].feature


def _shorter(run: Run, steps: int, folder: Path) -> NeuralField:
    """Train the run's field anew for fewer steps, or take up the one that was."""
    config = run.config.train.model_copy(update={"steps": steps})
    start, path = new_field(run.field.config, run.config.seed), folder / "fields" / f"steps-{steps}"
    return train_and_keep(path, start, run.data, config, run.config.seed, is_given=False, device=run.device)


def _feature_sets(
    run: Run, data: Data, fields: dict[str, NeuralField], folder: Path, config: StudyConfig
) -> Iterator[tuple[tuple[str, str], FeatureSet]]:
    maps = MapConfig(size=config.size or data.test.size, batch_size=32)
    for name, field in fields.items():
        field_hash = fingerprint_field(field)
        for split in SPLITS:
            place, images = folder / "features" / name / split, getattr(data, split)
            yield (name, split), FeatureSet(place, field, field_hash, images, maps, say=run.say)


def _answer(study: Study, entry: Entry, seed: int) -> dict:
    path = study.run.path / FOLDER / "answers" / f"{entry.name}_seed{seed}"
    made_from = _origin(study, entry) | {"seed": {"run": study.run.config.seed, "number": seed}}
    return keep_answer(study.run, path, made_from, study.data.test, lambda: _fit(study, entry, seed))


def _origin(study: Study, entry: Entry) -> dict[str, Any]:
    features = {split: sets.made_from(name) for split in SPLITS for sets, name in [study.of(entry, split)]}
    return {"entry": vars(entry), "features": features, "probe": _probe(study, entry).model_dump(mode="json")} | {
        "parameters": study.config.parameters
    }


def _probe(study: Study, entry: Entry) -> ProbeConfig:
    epochs = study.config.epochs if entry.head == "mlp" else study.config.structured_epochs
    return ProbeConfig(epochs=epochs, learning_rates=study.config.learning_rates)


def _fit(study: Study, entry: Entry, seed: int) -> tuple[dict, Tensor]:
    samples, run = {split: _samples(study, entry, split) for split in SPLITS}, study.run
    if entry.head == "mlp":
        samples = _standardized(samples)
    classes, is_sequence = len(run.data.train.classes), ASKED[entry.feature].kind.is_sequence
    height, width, maps = samples["train"].features.shape[1:]
    pool = "flatten" if entry.head == "mlp" else "transformer" if is_sequence else "cnn"
    head = head_of_size(pool, maps, (height, width), classes, study.config.parameters)
    start = derive_seed(run.config.seed, "study", seed)
    numbers, predicted = fit_and_test(head, samples, classes, _probe(study, entry), start, run.device)
    row = {
        "field": entry.field,
        "feature": entry.feature,
        "head": entry.head,
        "tokens": entry.tokens or run.field.config.num_tokens,
        "seed": seed,
    }
    return row | numbers, predicted


def _samples(study: Study, entry: Entry, split: str) -> Samples:
    sets, name = study.of(entry, split)
    features, kind = sets.rows(name), ASKED[entry.feature].kind
    if entry.tokens:
        features = changed(features, partial(_first, count=entry.tokens, is_sequence=kind.is_sequence))
    if entry.head == "mlp" and kind.is_map:
        features = changed(features, _pool)
    return Samples(features, sets.images.labels)


def _standardized(samples: dict[str, Samples]) -> dict[str, Samples]:
    """Standardise every single feature by the training samples: maps that differ more in space than between images."""
    features = samples["train"].features
    train = features[torch.arange(len(features))]
    mean, deviation = train.mean(dim=0), train.std(dim=0, correction=0).clamp(min=1e-6)
    return {
        split: Samples(changed(part.features, lambda values: (values - mean) / deviation), part.labels)
        for split, part in samples.items()
    }


def _first(features: Tensor, count: int, is_sequence: bool) -> Tensor:
    return features[:, :count] if is_sequence else features[..., :count]


def _pool(features: Tensor) -> Tensor:
    pooled = F.adaptive_avg_pool2d(rearrange(features, "b h w k -> b k h w"), CELLS)
    return rearrange(pooled, "b k h w -> b h w k")
