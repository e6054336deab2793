"""The verbs that carry features and predictions out of a run: extract, verify, predict."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from pydantic import Field

from tdsm.base.settings import Positive
from tdsm.cli.verb import RunFolder, Verb, say, say_next
from tdsm.data.config import DataConfig
from tdsm.features.config import ExtractConfig, MapConfig

if TYPE_CHECKING:
    from tdsm.features.work import Job

RUN_FIELD = Path("field", "config.json")  # what a run folder holds and a lone field does not
SHOWN = Path("shown.csv")  # what is printed is as this file would be


class Extract(Verb):
    """Extract features of images by a trained field to a store, which is read anywhere: `tdsm.open_store(PATH)`.

    Of a run, data and maps are the run's unless given here; of other data (--data.source) all images are taken, decoded
    as the run's were. The same command continues what was stopped. It is shared out by `torchrun --nproc-per-node 8 -m
    tdsm extract …`, by job arrays (--shards 3/40 in each job), or by a Ray cluster (--engine ray).
    """

    field: tyro.conf.Positional[Path] = Field(description="Run folder, saved field or published .pt file.")
    to: str = Field(description="Folder of the store, under the same path for all who share the work.")
    settings: Annotated[ExtractConfig, tyro.conf.arg(name="")] = Field(ExtractConfig(), description="What and where.")
    data: DataConfig = Field(DataConfig(), description="Images.")
    maps: MapConfig = Field(MapConfig(), description="Spatial maps, for features that are maps.")
    heads: tuple[Positive, Positive] = Field((4, 8), description="Cross- and self-attention heads of a .pt file.")
    seed: int = Field(0, ge=0, description="Decides which images serve as validation and test where a source has none.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    dry_run: bool = Field(False, description="Say what would be done, how long and how large, and stop.")

    def opening(self) -> str | None:
        """Say of which field."""
        return f"{self.field}: taking it up"

    def based(self) -> "Verb":
        """Start from the settings of the run, if it is one."""
        from tdsm.pipeline.folder import read_config

        path = self.field
        if not (path / RUN_FIELD).is_file():
            return self
        config = read_config(path)
        data = config.data if self.data.source == DataConfig().source else _decoding(path, config.data)
        return self.model_copy(update={"data": data, "maps": config.maps, "seed": config.seed})

    def execute(self) -> None:
        """Extract this process's part, and print where the store is when all of it is there."""
        from tdsm.features.run import extract, plan

        process, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        if self.dry_run:
            say(plan(self._job(), self.settings, processes))
        elif extract(self._job(), self.settings, say, process=process, processes=processes):
            print(self.to)
            say_next("verify", self.to)

    def _job(self) -> "Job":
        from tdsm.data.load import absolute_source
        from tdsm.features.work import Job

        return Job(
            field=str(self.field.absolute()),
            heads=self.heads,
            data=self.data.model_copy(update={"source": absolute_source(self.data.source)}),
            seed=self.seed,
            features=tuple(dict.fromkeys(self.settings.features)),
            maps=self.maps,
            to=self.to if "://" in self.to else str(Path(self.to).expanduser().absolute()),
            format=self.settings.format,
            shard_samples=self.settings.shard_samples,
            device=self.device,
        )


class Verify(Verb):
    """Check a store of `tdsm extract`: every file by its hash, every sample once."""

    store: tyro.conf.Positional[Path] = Field(description="Folder of the store.")

    def opening(self) -> str | None:
        """Say of which store."""
        return f"{self.store}: taking it up"

    def execute(self) -> None:
        """Check, and say what is there."""
        from tdsm.features.card import verify

        said = verify(self.store)
        counts = ", ".join(f"{entry['images']} {split}" for split, entry in said["data"]["splits"].items())
        print(f"{self.store}: whole; {', '.join(said['features'])} of {counts} images, {said['format']}")


class Predict(Verb):
    """Classify images by a row of a run: the best one by validation, or another that was fitted."""

    run: RunFolder
    images: Annotated[
        tyro.conf.Positional[tuple[Path, ...]],
        tyro.conf.arg(metavar="IMAGE [IMAGE ...]"),
        Field(min_length=1, description="Image files, or folders of them."),
    ]
    row: str | None = Field(None, description="Row of the run's table; without it the best by validation.")
    to: Path | None = Field(None, description="File for the classes: .csv, .json or .parquet; without it CSV is shown.")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")

    def opening(self) -> str | None:
        """Say of which run."""
        return f"{self.run}: taking it up"

    def execute(self) -> None:
        """Classify, and print or write the classes and their probabilities."""
        from tdsm.pipeline.predict import as_text, predict_images, write_predictions

        as_text([], self.to or SHOWN)  # an ending that cannot be written is refused at once
        found = predict_images(self.run, self.images, row=self.row, device=self.device)
        say(f"row {found.row}, validation {100 * found.validation_accuracy:.1f} %")
        if self.to is None:
            print(as_text(found.table(), SHOWN), end="")
        else:
            write_predictions(found, self.to)
            print(self.to)


def _decoding(path: Path, config: DataConfig) -> DataConfig:
    """Return how a run's images were decoded, for images from elsewhere."""
    from tdsm.pipeline.data import decoding_of

    channels, size = decoding_of(path)
    square = size[0] if size[0] == size[1] else config.image_size
    return DataConfig(image_size=square, channels="grey" if channels == 1 else "rgb")
