"""How anything is trained, and how a field is trained to reconstruct."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tdsm.base.settings import Choice, Positive, Settings, Share
from tdsm.data.config import AugmentConfig
from tdsm.training.registry import OBJECTIVES

Tracker = Literal["none", "tensorboard", "wandb", "mlflow"]
TRACKER = "Where measurements go beside metrics.jsonl."


class LoopConfig(Settings):
    """How the one training loop runs, whatever it trains."""

    accumulate: Positive = Field(1, description="Parts a process takes its share of a batch in; saves memory.")
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="The others run steps under autocast, float16 with a scaled loss."
    )
    compile: bool = Field(False, description="Compile the model's blocks by torch.compile: minutes first, then faster.")
    gradient_clip: float | None = Field(None, gt=0, description="Largest norm of the gradient; none if not set.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of the averaged weights that are judged; 0 averages none.")
    patience: int = Field(
        0, ge=0, description="Stop after this many measurements without a better validation, keep the best; 0 never."
    )


def objective_weights(given: dict[str, float]) -> dict[str, float]:
    """Return the weight of every objective there is: 1 of `full` and 0 of the others where none is given.

    >>> objective_weights({"nested": 0.5})
    {'full': 1.0, 'sparse_context': 0.0, 'token_dropout': 0.0, 'nested': 0.5, 'mixture': 0.0}
    """
    return {name: float(given.get(name, name == "full")) for name in OBJECTIVES}


ObjectiveWeights = Annotated[
    dict[Annotated[str, Choice(OBJECTIVES)], Annotated[float, Field(ge=0)]], AfterValidator(objective_weights)
]


class TrainConfig(LoopConfig):
    """How a field is trained to reconstruct."""

    steps: int = Field(3000, ge=0, description="Optimizer steps; 0 keeps the field as it starts.")
    batch_size: Positive = Field(64, description="Images a step, over all processes.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak of the learning rate (AdamW, warm-up, then cosine).")
    warmup_steps: int = Field(100, ge=0, description="Steps of linear warm-up.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    gradient_clip: float | None = Field(1.0, gt=0, description="Largest norm of the gradient; none if not set.")
    num_queries: int | None = Field(None, ge=1, description="Random points decoded a step; all points if not set.")
    objectives: ObjectiveWeights = Field(
        default_factory=lambda: objective_weights({}),
        description="Weight of each objective in a step's loss; 0 leaves it out. What each descends: docs/method.md.",
    )
    context_fraction: Share | tuple[Share, Share] = Field(
        (0.1, 1.0), description="Share of the pixels `sparse_context` encodes, or the bounds it is drawn between."
    )
    subset_sizes: Literal["uniform", "log_uniform"] = Field(
        "log_uniform", description="How `token_dropout` and `nested` draw the number of tokens, from 1 to all."
    )
    augment: AugmentConfig = Field(AugmentConfig(), description="Random changes of the training images.")
    validate_every: Positive = Field(250, description="Steps between measurements on validation images.")
    validation_images: Positive = Field(
        256, description="Validation images measured, drawn by the seed, the same share of each class."
    )
    checkpoint_every: Positive = Field(250, description="Steps between checkpoints; two are kept.")
    tracker: Tracker = Field("none", description=TRACKER)


RESUMABLE: dict[str, Literal["any", "higher"]] = {
    "steps": "higher",
    "learning_rate": "any",
    "warmup_steps": "any",
    "weight_decay": "any",
    "gradient_clip": "any",
    "accumulate": "any",
    "precision": "any",
    "compile": "any",
    "patience": "any",
    "tracker": "any",
    "validate_every": "any",
    "validation_images": "any",
    "checkpoint_every": "any",
}
"""Entries of `TrainConfig` that may change when a training is resumed: to any value, or to a higher one.

They extend or correct a training; the others decide what is trained on what. Rate, clipping, decay and precision hold
from the next step on, with the schedule of the new settings as if it had always been theirs: after more `steps` the
cosine is the longer one, so the rate rises to where that one stands, and a lower `learning_rate` lowers what is left.
"""
