"""What is measured of token decoding, and how."""

from typing import Literal

from pydantic import Field

from tdsm.base.settings import Positive, Settings
from tdsm.models.config import FieldConfig


class BenchConfig(Settings):
    """Measure speed and memory of token decoding, beside the loop and the floors, in one run."""

    field: FieldConfig = Field(FieldConfig(), description="The field, with random weights; the reference scale.")
    tokens: tuple[Positive, ...] = Field((), description="Tokens of an image; the field's num-latents if not set.")
    batch: tuple[Positive, ...] = Field((1,), min_length=1, description="Images at once.")
    side: tuple[Positive, ...] = Field((32,), min_length=1, description="Height and width of images and maps.")
    dtype: tuple[Literal["float32", "bfloat16", "float16", "float64"], ...] = Field(
        ("float32",), min_length=1, description="Precision of weights and tokens."
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N.")
    cases: tuple[str, ...] = Field(
        (), description="What is measured, by name; everything if not set. A wrong name lists them all."
    )
    gradients: bool = Field(True, description="Measure forward and backward passes too.")
    growth: bool = Field(True, description="Also vary tokens and points of exact decoding.")
    repeats: Positive = Field(5, description="Rounds after the first, which watches memory.")
    seconds: float = Field(10.0, gt=0, description="A case sits out the rounds after it has taken this long.")
    seed: int = Field(0, ge=0, description="Seed of weights, images and tokens.")
