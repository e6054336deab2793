"""A run whose field is trained: what every later stage takes up."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from tdsm.base.errors import UsageError
from tdsm.base.randomness import generator
from tdsm.base.registry import nearest
from tdsm.classification.probe import Samples
from tdsm.classification.rows import DEFAULT_ROWS, READERS, ROWS, Row
from tdsm.data import Data, ImageSet
from tdsm.data.augment import augment
from tdsm.data.sampling import stratified_sample
from tdsm.decomposition import DECOMPOSITIONS, missing_space
from tdsm.features.extract import FeatureSet, Lent, fingerprint_field
from tdsm.features.kinds import FEATURES
from tdsm.features.reader import Store
from tdsm.features.store import FeatureRows
from tdsm.models.field import NeuralField
from tdsm.pipeline.config import RunConfig
from tdsm.pipeline.field import new_field
from tdsm.pipeline.link import Say

FEATURES_FOLDER = "features"


@dataclass(frozen=True, eq=False)
class Run:
    """Where a run is, its settings, its data, its trained field; what is derived from them is derived once."""

    path: Path
    config: RunConfig
    data: Data
    field: NeuralField
    say: Say
    store: Store | None = None  # features made elsewhere
    _features: dict[tuple[str, bool, int], FeatureSet] = field(default_factory=dict, init=False)

    @property
    def device(self) -> str:
        """Where the field and its heads compute."""
        return str(next(self.field.parameters()).device)

    @cached_property
    def field_hash(self) -> str:
        """Hash of the trained field."""
        return fingerprint_field(self.field)

    @cached_property
    def untrained(self) -> NeuralField:
        """The field as it would be without any training."""
        return new_field(self.field.config, self.config.seed).to(self.device).eval()

    @cached_property
    def _untrained_hash(self) -> str:
        return fingerprint_field(self.untrained)

    @cached_property
    def _seen(self) -> ImageSet:
        """The training images that heads and baselines see."""
        train, count = self.data.train, self.config.probe.max_train
        if count is None or count >= len(train):
            return train
        return train.subset(stratified_sample(train.labels, count, generator(self.config.seed, "images of heads")))

    def images(self, split: str) -> ImageSet:
        """Return the images of a split that heads and baselines are fitted to or tried on."""
        return self._seen if split == "train" else getattr(self.data, split)

    def features(self, split: str, *, is_trained: bool = True, view: int = 0) -> FeatureSet:
        """Return the features of a split, or of its augmented view number 1, 2, …"""
        key = split, is_trained, view
        if key not in self._features:
            self._features[key] = self._feature_set(split, is_trained, view)
        return self._features[key]

    def lent(self, split: str, images: ImageSet) -> Lent | None:
        """Return what lends features of images that were made elsewhere, if there is a store of them."""
        return None if self.store is None else partial(self.store.lend, split, images)

    def samples(self, row: Row, split: str) -> Samples:
        """Return a row's features of a split; only training features may hold augmented views."""
        assert row.features is not None, "a row of the labels alone has no samples"
        views = range(1 + (self.config.probe.views if split == "train" else 0))
        parts = [self.features(split, is_trained=row.is_trained, view=view).rows(row.features) for view in views]
        rows = parts[0] if len(parts) == 1 else FeatureRows([shard for part in parts for shard in part.shards])
        labels = self.images(split).labels.repeat(len(parts))
        return Samples.of(FEATURES[row.features], rows, labels)

    def notes(self) -> list[str]:
        """List, in plain sentences, what a reader of the run's numbers must know."""
        method = self.config.maps.method
        is_plain = DECOMPOSITIONS[method].decodes_alone
        space = missing_space(self.field) if is_plain else f"The maps of the tdsm rows show {method!r}."
        seen, there = len(self.images("train")), len(self.data.train)
        few = f"Heads and baselines are fitted to {seen} of {there} training images." if seen < there else None
        return [*self.data.notes, *(words for words in (few, space, _seed_words(self.config.probe.seeds)) if words)]

    def _feature_set(self, split: str, is_trained: bool, view: int) -> FeatureSet:
        images = self.images(split)
        field = self.field if is_trained else self.untrained
        field_hash = self.field_hash if is_trained else self._untrained_hash
        folder = self.path / FEATURES_FOLDER / ("trained" if is_trained else "untrained")
        if not view:
            lent = self.lent(split, images) if is_trained else None
            return FeatureSet(folder / split, field, field_hash, images, self.config.maps, lent=lent, say=self.say)
        settings = self.config.probe.augment
        change = partial(augment, config=settings, seed=self.config.seed, epoch=view)
        name = {"augment": settings.model_dump(mode="json"), "seed": self.config.seed, "epoch": view}
        place = folder / f"{split}-view{view}"
        return FeatureSet(
            place, field, field_hash, images, self.config.maps, change=change, change_name=name, say=self.say
        )


def chosen_rows(names: Iterable[str]) -> dict[str, Row]:
    """Return rows by name, the fixed selection for no names; raise `UsageError` for an unknown one."""
    names = tuple(names) or DEFAULT_ROWS
    if unknown := [name + nearest(name, ROWS) for name in names if name not in ROWS]:
        raise UsageError(
            f"rows: unknown {'; '.join(unknown)}. Expected FEATURE-READER, or untrained-FEATURE-READER, with a feature "
            f"of {', '.join(FEATURES)} and a reader of {', '.join(READERS)} that reads such features; or majority."
        )
    return {name: ROWS[name] for name in names}


def _seed_words(seeds: int) -> str | None:
    if seeds == 1:
        return None
    return (
        f"Accuracies of heads are means over {seeds} seeds, deviations those of seeds, in points; intervals hold the "
        "sampling of images and of seeds. k-NN has no seed."
    )
