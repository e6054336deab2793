"""Which spatial maps are made of a field's tokens, and how features are extracted to a store."""

from typing import Annotated, Literal

from pydantic import Field

from tdsm.base.settings import Choice, Positive, Settings
from tdsm.decomposition.registry import DECOMPOSITIONS, POOLS, REDUCTIONS, STRATEGIES
from tdsm.features.registry import ENGINES, FORMATS

SHARD_SAMPLES = 512


class MapConfig(Settings):
    """Which spatial maps are made of a field's tokens."""

    method: Annotated[str, Choice(DECOMPOSITIONS)] = Field(
        "solo", description="Decomposition the maps show: solo is the TDSM; docs/method.md has the others."
    )
    reduction: Annotated[str, Choice(REDUCTIONS)] = Field("mean", description="What becomes of the colour channels.")
    selection: str = Field("all", description="Tokens decoded: all, stride:n, first:n, or indices such as 0,5,7.")
    size: tuple[Positive, Positive] | None = Field(None, description="Height and width; the image's if not set.")
    strategy: Annotated[str, Choice(STRATEGIES)] = Field("auto", description="How `solo` decodes tokens.")
    pool: Annotated[str, Choice(POOLS)] = Field("avg", description="How the feature `pooled` pools maps over space.")
    cells: Positive = Field(1, description="`pooled` keeps a grid of this many × this many regions.")
    dtype: Literal["float16", "float32"] = Field("float16", description="What maps are stored in.")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="What the encoder computes in; decoding is in the field's own. bfloat16 is faster where the "
        "machine has units for it; how far its tokens are off is said.",
    )
    batch_size: Positive = Field(64, description="Images encoded at once.")


class ExtractConfig(Settings):
    """Which features are extracted, in which form they are kept, and where the work is done."""

    features: tuple[str, ...] = Field(
        ("tokens",),
        min_length=1,
        description="What is stored of each image, one or more: tokens, values, tdsm, pooled, reconstruction, pixels, "
        "or maps of a decomposition, such as additive.",
    )
    format: Annotated[str, Choice(FORMATS)] = Field(
        "safetensors", description="safetensors to train from; parquet to hand on, with ids, labels and class names."
    )
    shard_samples: Positive = Field(SHARD_SAMPLES, description="Samples a file holds: fewer where features are large.")
    shards: str = Field("1/1", description="Make this part of the store alone, such as 3/40: for job arrays.")
    engine: Annotated[str, Choice(ENGINES)] = Field("auto", description="Where the work is done; auto says why.")
    ray_address: str | None = Field(None, description="Address of a Ray cluster; without it Ray is started here.")
    actors: Positive | None = Field(None, description="Ray's workers; all processors but one if not set.")
