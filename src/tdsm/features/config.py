"""Which spatial maps are made of a field's tokens."""

from typing import Literal

from pydantic import Field

from tdsm.base.settings import Positive, Settings


class MapConfig(Settings):
    """Which spatial maps are made of a field's tokens."""

    method: Literal["solo", "additive", "leave_one_out", "attention", "shapley", "mixture"] = Field(
        "solo", description="Decomposition the maps show: solo is the TDSM; docs/method.md has the others."
    )
    reduction: Literal["mean", "rgb", "l2"] = Field("mean", description="What becomes of the colour channels.")
    selection: str = Field("all", description="Tokens decoded: all, stride:n, first:n, or indices such as 0,5,7.")
    size: tuple[Positive, Positive] | None = Field(None, description="Height and width; the image's if not set.")
    strategy: Literal["auto", "loop", "batched", "exact"] = Field("auto", description="How `solo` decodes tokens.")
    dtype: Literal["float16", "float32"] = Field("float16", description="What maps are stored in.")
    batch_size: Positive = Field(64, description="Images encoded at once.")
