"""Read a store, wherever it was made: arrays, a data set to train from, an Arrow table."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from tdsm.base import io
from tdsm.base.errors import CheckpointError, ResourceError, UsageError
from tdsm.base.randomness import generator
from tdsm.base.registry import nearest
from tdsm.data import ImageSet
from tdsm.features.card import SAMPLES, require_whole
from tdsm.features.formats import ID, LABEL, Format, Rows, arrow_table
from tdsm.features.registry import FORMATS
from tdsm.features.store import FeatureRows, shard_ranges

if TYPE_CHECKING:
    import pyarrow as pa

POOLED = 4  # shards whose rows are mixed, when rows are shuffled


def open_store(path: str | Path) -> "Store":
    """Open a store of `tdsm extract`.

        store = tdsm.open_store("features")
        x, y = store.numpy("tokens", split="train"), store.labels("train")

    Raises:
        CheckpointError: If there is none, or it is not complete.
    """
    return Store(Path(path).expanduser())


class Store:
    """The features of a data set by a field, and ids and labels of its samples; `about` says what they are of."""

    def __init__(self, path: Path):
        self.path, self.about = path, require_whole(path)
        self.classes: tuple[str, ...] = tuple(self.about["data"]["classes"])
        self.splits: tuple[str, ...] = tuple(self.about["data"]["splits"])
        self.features: tuple[str, ...] = tuple(self.about["features"])

    @property
    def format(self) -> Format:
        """In which form it is kept."""
        return FORMATS[self.about["format"]]

    def count(self, split: str) -> int:
        """Count the samples of a split."""
        return self.about["data"]["splits"][self._known(split, self.splits, "split")]["images"]

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a feature of one sample, channels last."""
        return tuple(self.about["features"][self._known(name, self.features, "feature")]["shape"])

    def ids(self, split: str) -> Int64[np.ndarray, " samples"]:
        """Return the ids of a split's samples: their places in the source's own split, in store order."""
        return self._samples[f"{self._known(split, self.splits, 'split')}.ids"].numpy()

    def labels(self, split: str) -> Int64[np.ndarray, " samples"]:
        """Return the labels of a split's samples, positions in `classes`; -1 without."""
        return self._samples[f"{self._known(split, self.splits, 'split')}.labels"].numpy()

    def numpy(self, name: str, split: str) -> Shaped[np.ndarray, "samples ..."]:
        """Return a feature of all samples of a split, as it is stored."""
        return torch.cat(self.shards(name, split)).numpy()

    def shards(self, name: str, split: str) -> list[Shaped[Tensor, "_ ..."]]:
        """Return a feature of a split in pieces, mapped from disk where the store is safetensors, else read whole.

        Raises:
            UsageError: If the store has no such feature or split.
        """
        pieces = range(len(shard_ranges(self.count(split), self.about["shard_samples"])))
        return [self._shard(name, split, index) for index in pieces]

    def lend(self, split: str, images: ImageSet, name: str, made_from: Mapping[str, Any]) -> list[Tensor] | None:
        """Return a feature for a use that names all that decides it; None if the store has no such feature.

        Raises:
            CheckpointError: If the store's is of another field, other data or other settings, or damaged.
        """
        if name not in self.features:
            return None
        for index, rows in enumerate(shard_ranges(len(images), self.about["shard_samples"])):
            ids = images.ids[rows.start : rows.stop]
            if (reason := self.format.fault(self.path / split, index, ids, {name: made_from})) is not None:
                raise CheckpointError(
                    f"{self.path}: its {name} of {split} cannot be used here: {reason}. Extract it with this run's "
                    "field, data and settings, or leave --store out."
                )
        return self.shards(name, split)

    def dataset(self, *names: str, split: str) -> "StoreDataset":
        """Return samples to train from: {name: float32 tensor, …, "label", "id"} each."""
        return StoreDataset(self, names or self.features, split)

    def arrow(self, split: str, names: Sequence[str] = ()) -> "pa.RecordBatchReader":
        """Return samples as Arrow batches, a shard each, read as they are asked for.

        Columns are id, label, class, and a fixed-shape tensor for each feature; `read_all()` makes a table of them.
        """
        import pyarrow as pa

        wanted, step = tuple(names or self.features), self.about["shard_samples"]
        rows = Rows(torch.from_numpy(self.ids(split)), torch.from_numpy(self.labels(split)), self.classes)

        def tables() -> Iterator[Any]:
            for index, samples in enumerate(shard_ranges(len(rows.ids), step)):
                part = slice(samples.start, samples.stop)
                values = {name: self._shard(name, split, index).numpy() for name in wanted}
                yield arrow_table(values, Rows(rows.ids[part], rows.labels[part], rows.classes))

        rest = tables()
        first = next(rest)  # which says the columns
        batches = (batch for table in chain([first], rest) for batch in table.to_batches())
        return pa.RecordBatchReader.from_batches(first.schema, batches)

    def pandas(self, split: str, names: Sequence[str] = ()) -> Any:
        """Return samples as a pandas frame: id, label, class, and each feature as a flat list a sample.

        Raises:
            ResourceError: If pandas is not installed.
        """
        if find_spec("pandas") is None:
            raise ResourceError(f"{self.path}: a frame needs pandas. Install it: pip install pandas, or use arrow().")
        return self.arrow(split, names).read_all().to_pandas()

    @cached_property
    def _samples(self) -> dict[str, Tensor]:
        return io.read_tensors(self.path / SAMPLES)

    def _shard(self, name: str, split: str, index: int) -> Shaped[Tensor, "_ ..."]:
        return self.format.read(self.path / split, self._known(name, self.features, "feature"), index)

    def _known(self, name: str, known: Sequence[str], what: str) -> str:
        if name not in known:
            raise UsageError(
                f"{self.path}: has no {what} {name!r}{nearest(name, known)}; expected one of {', '.join(known)}."
            )
        return name


class StoreDataset(Dataset):
    """Samples of a store by position, one or many at once, for a `DataLoader`.

    Shuffle by `sampler=dataset.shuffled(seed)`, which mixes the rows of a few shards at a time: what is read lies
    together on disk, where rows of the whole store would each cost a seek.
    """

    def __init__(self, store: Store, names: Sequence[str], split: str):
        self.rows = {name: FeatureRows(store.shards(name, split)) for name in names}
        self.ids, self.labels = store.ids(split), store.labels(split)
        self.shard_samples: int = store.about["shard_samples"]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Read several samples at once, as a `DataLoader` asks for a batch."""
        places = torch.as_tensor(indices, dtype=torch.int64)
        read = {name: rows[places] for name, rows in self.rows.items()}
        return [
            {name: values[k] for name, values in read.items()}
            | {LABEL: int(self.labels[index]), ID: int(self.ids[index])}
            for k, index in enumerate(places.tolist())
        ]

    def shuffled(self, seed: int = 0, pooled: int = POOLED) -> "ShardShuffle":
        """Return a sampler of all samples, once each and in another order in every epoch."""
        return ShardShuffle(len(self), self.shard_samples, seed, pooled)


class ShardShuffle(Sampler):
    """Draw shards at random, and the rows of every `pooled` of them mixed: each sample once an epoch.

    >>> sampler = ShardShuffle(count=10, shard_samples=4, seed=0, pooled=1)
    >>> first, second = list(sampler), list(sampler)
    >>> sorted(first) == list(range(10)), first == second
    (True, False)

    Args:
        count: Samples there are.
        shard_samples: Samples a shard holds.
        seed: Decides the order; the epoch, counted here, too. Set `epoch` to go on from another.
        pooled: Shards whose rows are mixed; the more, the more random, and the more is read at once.
    """

    def __init__(self, count: int, shard_samples: int, seed: int = 0, pooled: int = POOLED):
        self.count, self.shard_samples, self.seed, self.pooled, self.epoch = count, shard_samples, seed, pooled, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        draw = generator(self.seed, "store order", self.epoch)
        self.epoch += 1
        shards = torch.arange(self.count).split(self.shard_samples)
        order = torch.randperm(len(shards), generator=draw).tolist()
        for start in range(0, len(order), self.pooled):
            rows = torch.cat([shards[number] for number in order[start : start + self.pooled]])
            yield from rows[torch.randperm(len(rows), generator=draw)].tolist()
