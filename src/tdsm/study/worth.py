"""Is decoding the tokens worth it for classification? `tdsm study worth`.

Every feature is read in the same ways (`readings`), with the same tuning on validation and the same seeds; test is
read once a row and seed. Differences are paired: both rows see the same test images. The same is asked, by ridge, of
fewer training images, of fewer tokens, and of fields trained for fewer steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from tdsm.base.randomness import derive_seed, generator
from tdsm.base.text import count_of, percent
from tdsm.classification.config import ProbeConfig
from tdsm.classification.probe import Samples
from tdsm.data import Data
from tdsm.data.imageset import SPLITS
from tdsm.decomposition import check_method
from tdsm.features.config import MapConfig
from tdsm.features.extract import FeatureSet, fingerprint_field
from tdsm.features.store import FeatureRows
from tdsm.models.field import NeuralField
from tdsm.pipeline.field import new_field, train_and_keep
from tdsm.pipeline.run import Run
from tdsm.study.answers import changed, fit_and_test
from tdsm.study.config import READINGS, StudyConfig
from tdsm.study.features import ASKED
from tdsm.study.keep import keep_answer, subsets
from tdsm.study.mirror import mirror_errors
from tdsm.study.table import write_study
from tdsm.training.reconstruction import measure_psnr

FOLDER = "study-worth"
CURVE = "ridge"  # reads what is asked of fewer images, tokens or steps
MIRRORED = 256  # validation images whose maps are compared with those of their mirror images
FEW = ("solo", "tokens")  # what is asked of fewer tokens or steps


@dataclass(frozen=True)
class Entry:
    """One question: this feature of this field, of so many tokens and training images, read in this way."""

    field: str  # "trained", or "steps-N" for a field trained for N steps
    feature: str  # a name in ASKED
    reading: str  # a name in READINGS
    tokens: int | None = None  # None: all
    train: int | None = None  # None: all

    @property
    def name(self) -> str:
        """What the entry is called in files."""
        few = [f"first{self.tokens}"] * bool(self.tokens) + [f"of{self.train}"] * bool(self.train)
        return "_".join([self.field, self.feature, *few, self.reading])


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
    for method in {method for asked in ASKED.values() for method in asked.kind.methods}:
        check_method(run.field, method)
    folder, rows = run.path / FOLDER, []
    data = subsets(run, config.max_train, config.max_test)
    fields = {"trained": run.field, "untrained": run.untrained}
    fields |= {f"steps-{n}": _shorter(run, n, folder) for n in config.steps}
    study = Study(run, config, data, dict(_feature_sets(run, data, fields, folder, config)))
    entries = list(_entries(run, config, len(data.train)))
    for split in SPLITS:
        for name in fields:
            study.features[name, split].extract(sorted({_name(e) for e in entries if _field(e) == name}))
    for number, entry in enumerate(entries, start=1):
        answers = _answers(study, entry)
        rows += answers
        shown = fmean(row["accuracy"] for row in answers)
        run.say(f"{number}/{len(entries)} {entry.name}: test {percent(shown)} %, {count_of(len(answers), 'seed')}")
    spatial = [name for name, asked in ASKED.items() if asked.is_trained and asked.kind.is_spatial]
    seen = data.validation.subset(torch.arange(min(MIRRORED, len(data.validation))))
    mirrored = mirror_errors(run.field, seen, spatial, _maps(data, config))
    psnr = {name: measure_psnr(field, data.validation) for name, field in fields.items() if name != "untrained"}
    facts = {"settings": config.model_dump(mode="json"), "psnr": psnr, "mirrored": mirrored}
    return facts | {"rows": rows, "test_images": len(data.test), "mirrored_images": len(seen)}


def _entries(run: Run, config: StudyConfig, images: int) -> Iterator[Entry]:
    for reading in config.readings:
        for feature, asked in ASKED.items():
            if READINGS[reading].suits(asked.kind):
                yield Entry("trained", feature, reading)
    for train in (n for n in config.train_counts if n < images):
        yield from (Entry("trained", feature, CURVE, train=train) for feature in ASKED)
    for tokens in (n for n in config.token_counts if n < run.field.config.num_tokens):
        yield from (Entry("trained", feature, CURVE, tokens) for feature in FEW)
    for steps in config.steps:
        yield from (Entry(f"steps-{steps}", feature, CURVE) for feature in FEW)


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
    maps = _maps(data, config)
    for name, field in fields.items():
        field_hash = fingerprint_field(field)
        for split in SPLITS:
            place, images = folder / "features" / name / split, getattr(data, split)
            lent = run.lent(split, images) if field is run.field else None
            yield (name, split), FeatureSet(place, field, field_hash, images, maps, lent=lent, say=run.say)


def _maps(data: Data, config: StudyConfig) -> MapConfig:
    return MapConfig(size=config.size or data.test.size, batch_size=32)


def _answers(study: Study, entry: Entry) -> list[dict]:
    """Answer for every seed, once where the reading has none."""
    seeds = study.config.seeds if READINGS[entry.reading].has_seed else 1
    return [_answer(study, entry, seed) for seed in range(seeds)]


def _answer(study: Study, entry: Entry, seed: int) -> dict:
    path = study.run.path / FOLDER / "answers" / f"{entry.name}_seed{seed}"
    made_from = _origin(study, entry) | {"seed": {"run": study.run.config.seed, "number": seed}}
    return keep_answer(study.run, path, made_from, study.data.test, lambda: _fit(study, entry, seed))


def _origin(study: Study, entry: Entry) -> dict[str, Any]:
    features = {split: sets.made_from(name) for split in SPLITS for sets, name in [study.of(entry, split)]}
    sizes = study.config.model_dump(include={"hidden_dim", "components", "parameters", "dropout"})
    return {"entry": vars(entry), "features": features, "probe": _probe(study).model_dump(mode="json"), "sizes": sizes}


def _probe(study: Study) -> ProbeConfig:
    config = study.config
    return ProbeConfig(epochs=config.epochs, patience=config.patience, learning_rates=config.learning_rates)


def _fit(study: Study, entry: Entry, seed: int) -> tuple[dict, Tensor]:
    run, reading, classes = study.run, READINGS[entry.reading], len(study.data.train.classes)
    samples = reading.prepare({split: _samples(study, entry, split) for split in SPLITS}, study.config)
    head = reading.head(ASKED[entry.feature].kind, samples["train"], classes, study.config)
    start = derive_seed(run.config.seed, "study", seed)
    numbers, predicted = fit_and_test(head, samples, classes, _probe(study), start, run.device)
    row = {
        "field": entry.field,
        "feature": entry.feature,
        "head": entry.reading,
        "tokens": entry.tokens or run.field.config.num_tokens,
        "train": len(samples["train"].labels),
        "seed": seed,
    }
    return row | numbers, predicted


def _samples(study: Study, entry: Entry, split: str) -> Samples:
    sets, name = study.of(entry, split)
    features, labels, kind = sets.rows(name), sets.images.labels, ASKED[entry.feature].kind
    if entry.tokens:
        features = changed(features, partial(_first, count=entry.tokens, is_sequence=kind.is_sequence))
    if entry.train and split == "train":
        few = torch.randperm(len(labels), generator=generator(study.run.config.seed, "study", "few"))[: entry.train]
        features, labels = FeatureRows([features[few]]), labels[few]
    return Samples.of(kind, features, labels)


def _first(features: Tensor, count: int, is_sequence: bool) -> Tensor:
    return features[:, :count] if is_sequence else features[..., :count]
