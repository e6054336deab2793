"""Is decoding the tokens worth it for classification? `tdsm study worth`.

Every feature gets the same two heads, each as wide as the same number of parameters allows, the same tuning on
validation and the same seeds; test is read once a row and seed. Differences are paired: both rows see the same test
images. The same is asked of fewer tokens, and of fields trained for fewer steps.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from tdsm.base import io
from tdsm.base.errors import UsageError
from tdsm.base.randomness import derive_seed, generator
from tdsm.classification.config import HeadConfig, ProbeConfig
from tdsm.classification.evaluate import Run, new_field, untrained_field
from tdsm.classification.heads import make_head
from tdsm.classification.probe import Samples
from tdsm.data import Data, ImageSet
from tdsm.decomposition import check_method
from tdsm.features.config import MapConfig
from tdsm.features.extract import Features, Images, fill_store, fingerprint_of
from tdsm.features.store import open_store
from tdsm.models.field import NeuralField, count_parameters
from tdsm.models.load import FIELD_FOLDER, load_field
from tdsm.pipeline.runfolder import keep_settings
from tdsm.study.answers import changed, fit_and_test, keep_answer
from tdsm.study.config import StudyConfig
from tdsm.study.features import IMAGES, MEANINGS, METHODS, SEQUENCES, all_features, token_features
from tdsm.training.reconstruction import measure_psnr, train_field

FOLDER, SPLITS = "study-worth", ("train", "validation", "test")
CELLS = 4  # the MLP reads maps averaged over CELLS × CELLS regions; tokens and images as they are
HEADS = ("mlp", "structured")
WIDTHS = {"flatten": "hidden_dim", "cnn": "width", "transformer": "width"}
WIDEST = 1024


@dataclass(frozen=True)
class Entry:
    """One question: this feature of this field, from this many tokens, read by this head."""

    field: str  # "trained", or "steps-N" for a field trained for N steps
    feature: str
    head: str  # a name in HEADS
    tokens: int | None = None  # None: all

    @property
    def name(self) -> str:
        """What the entry is called in files."""
        return "_".join([self.field, self.feature, *([f"first{self.tokens}"] if self.tokens else []), self.head])


def run_study(run: Run, config: StudyConfig, say: Callable[[str], None]) -> dict:
    """Answer every entry for every seed, taking up what an earlier call left; return all that was found."""
    for method in METHODS:
        check_method(run.field, method)
    folder, rows = run.path / FOLDER, []
    keep_settings(folder, config.model_dump(mode="json"))
    data = subsets(run, config.max_train, config.max_test)
    fields = {"trained": run.field} | {f"steps-{n}": _shorter(run, n, folder) for n in config.steps}
    for name, field in fields.items():
        _fill(run, name, field, data, folder, config)
    entries = list(_entries(run, config))
    for number, entry in enumerate(entries, start=1):
        for seed in range(config.seeds):
            rows.append(_answer(run, entry, seed, data, folder, config))
        shown = sum(row["accuracy"] for row in rows[-config.seeds :]) / config.seeds
        say(f"{number}/{len(entries)} {entry.name}: test {100 * shown:.1f} %, mean of {config.seeds} seeds")
    psnr = {name: measure_psnr(field, data.validation) for name, field in fields.items()}
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
        return HeadConfig.model_validate({"pool": pool, WIDTHS[pool]: width, **options})

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
        yield from (Entry("trained", feature, head) for feature in MEANINGS)
    for count in (n for n in config.token_counts if n < run.field.config.num_tokens):
        yield from (Entry("trained", feature, "structured", count) for feature in ("solo", "tokens"))
    for steps in config.steps:
        yield from (Entry(f"steps-{steps}", feature, "structured") for feature in ("solo", "tokens"))


def subsets(run: Run, max_train: int | None, max_test: int | None) -> Data:
    """Return a run's data with at most so many random training and test images, always the same ones."""

    def some(images: ImageSet, limit: int | None, split: str) -> ImageSet:
        order = torch.randperm(len(images), generator=generator(run.config.seed, "study", split))
        return images.subset(order[: limit or len(images)].sort().values)

    data = run.data
    train, test = some(data.train, max_train, "train"), some(data.test, max_test, "test")
    return Data(train, data.validation, test, data.name, data.notes)


def _shorter(run: Run, steps: int, folder: Path) -> NeuralField:
    """Train the run's field anew for fewer steps, or take up the one that was."""
    path = folder / "fields" / f"steps-{steps}"
    if (path / FIELD_FOLDER).is_dir():
        return load_field(path).to(run.device)
    config = run.field.config
    field = new_field(config, config.channels, run.config.seed).to(run.device)
    train_field(field, run.data, run.config.train.model_copy(update={"steps": steps}), run.config.seed, path)
    io.write_folder(path / FIELD_FOLDER, field.write)
    return field.eval()


def _fill(run: Run, name: str, field: NeuralField, data: Data, folder: Path, config: StudyConfig) -> None:
    start, size = untrained_field(run), config.size or tuple(run.data.test.images.shape[2:])

    def compute(images: Images, ids: Tensor) -> dict[str, Features]:
        images = images.to(run.device)
        if name == "trained":
            return all_features(field.eval(), start, images, size)
        return token_features(field.eval(), images, size)

    for split in SPLITS:
        images: ImageSet = getattr(data, split)
        fingerprint = fingerprint_of(field, images, MapConfig(size=size), images.floats([0]))
        fill_store(folder / "features" / name / split, images, compute, fingerprint, batch_size=32)


def _answer(run: Run, entry: Entry, seed: int, data: Data, folder: Path, config: StudyConfig) -> dict:
    file = folder / "answers" / f"{entry.name}_seed{seed}.json"
    return keep_answer(file, data.test.labels, lambda: _fit(run, entry, seed, data, folder, config))


def _fit(run: Run, entry: Entry, seed: int, data: Data, folder: Path, config: StudyConfig) -> tuple[dict, Tensor]:
    samples = {
        split: _samples(entry, folder / "features" / entry.field / split, getattr(data, split)) for split in SPLITS
    }
    if entry.head == "mlp":
        samples = _standardized(samples)
    classes = len(data.train.classes)
    height, width, maps = samples["train"].features.shape[1:]
    pool = "flatten" if entry.head == "mlp" else "transformer" if entry.feature in SEQUENCES else "cnn"
    head = head_of_size(pool, maps, (height, width), classes, config.parameters)
    epochs = config.epochs if entry.head == "mlp" else config.structured_epochs
    probe = ProbeConfig(epochs=epochs, learning_rates=config.learning_rates)
    start = derive_seed(run.config.seed, "study", seed)
    numbers, predicted = fit_and_test(head, samples, classes, probe, start, run.device)
    row = {
        "field": entry.field,
        "feature": entry.feature,
        "head": entry.head,
        "tokens": entry.tokens or run.field.config.num_tokens,
        "seed": seed,
    }
    return row | numbers, predicted


def _samples(entry: Entry, folder: Path, images: ImageSet) -> Samples:
    features = open_store([folder], len(images), entry.feature)
    is_sequence = entry.feature in SEQUENCES
    if entry.tokens:
        features = changed(features, partial(_first, count=entry.tokens, is_sequence=is_sequence))
    if entry.head == "mlp" and entry.feature not in SEQUENCES + IMAGES:
        features = changed(features, _pool)
    return Samples(features, images.labels)


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
