"""A whole run: the settings of its parts."""

import os
from typing import Annotated

from pydantic import AfterValidator, Field

from tdsm.base.settings import Positive, Settings
from tdsm.classification.config import ProbeConfig
from tdsm.data.config import DataConfig
from tdsm.features.config import MapConfig
from tdsm.models.config import FieldConfig
from tdsm.training.config import TrainConfig


class RunConfig(Settings):
    """A whole run: data, field, its training, its maps, the heads and baselines on them."""

    seed: int = Field(0, ge=0, description="Seed of every random draw.")
    init: Annotated[str, AfterValidator(os.path.expanduser)] | None = Field(
        None, description="Start from this field: a run folder, a save_pretrained folder or a published .pt file."
    )
    init_heads: tuple[Positive, Positive] = Field(
        (4, 8), description="Cross- and self-attention heads of a published .pt file, which its weights do not say."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    data: DataConfig = Field(DataConfig(), description="Images and their splits.")
    field: FieldConfig = Field(FieldConfig(), description="The field.")
    train: TrainConfig = Field(TrainConfig(), description="Training by reconstruction.")
    maps: MapConfig = Field(MapConfig(), description="Spatial maps.")
    probe: ProbeConfig = Field(ProbeConfig(), description="Heads and baselines.")
