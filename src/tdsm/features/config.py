"""Which spatial maps are made of a field's tokens."""

from typing import Annotated, Literal

from pydantic import Field

from tdsm.base.settings import Choice, Positive, Settings
from tdsm.decomposition.registry import DECOMPOSITIONS, REDUCTIONS, STRATEGIES


class MapConfig(Settings):
    """Which spatial maps are made of a field's tokens."""

    method: Annotated[str, Choice(DECOMPOSITIONS)] = Field(
        "solo", description="Decomposition the maps show: solo is the TDSM; docs/method.md has the others."
    )
    reduction: Annotated[str, Choice(REDUCTIONS)] = Field("mean", description="What becomes of the colour channels.")
    selection: str = Field("all", description="Tokens decoded: all, stride:n, first:n, or indices such as 0,5,7.")
    size: tuple[Positive, Positive] | None = Field(None, description="Height and width; the image's if not set.")
    strategy: Annotated[str, Choice(STRATEGIES)] = Field("auto", description="How `solo` decodes tokens.")
    dtype: Literal["float16", "float32"] = Field("float16", description="What maps are stored in.")
    batch_size: Positive = Field(64, description="Images encoded at once.")
