"""How a field is trained to reconstruct."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from tdsm.base.settings import Choice, Positive, Settings, Share
from tdsm.data.config import AugmentConfig
from tdsm.training.registry import OBJECTIVES


def objective_weights(given: dict[str, float]) -> dict[str, float]:
    """Return the weight of every objective there is: 1 of `full` and 0 of the others where none is given.

    >>> objective_weights({"nested": 0.5})
    {'full': 1.0, 'sparse_context': 0.0, 'token_dropout': 0.0, 'nested': 0.5, 'mixture': 0.0}
    """
    return {name: float(given.get(name, name == "full")) for name in OBJECTIVES}


ObjectiveWeights = Annotated[
    dict[Annotated[str, Choice(OBJECTIVES)], Annotated[float, Field(ge=0)]], AfterValidator(objective_weights)
]


class TrainConfig(Settings):
    """How a field is trained to reconstruct."""

    steps: int = Field(3000, ge=0, description="Optimizer steps; 0 keeps the field as it starts.")
    batch_size: Positive = Field(64, description="Images a step, over all processes.")
    accumulate: Positive = Field(1, description="Parts a process takes its share of a batch in; saves memory.")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="bfloat16 runs steps under autocast.")
    compile: bool = Field(False, description="Compile the field's blocks by torch.compile: minutes first, then faster.")
    learning_rate: float = Field(1e-3, gt=0, description="Peak of the learning rate (AdamW, warm-up, then cosine).")
    warmup_steps: int = Field(100, ge=0, description="Steps of linear warm-up.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    gradient_clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
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
    validation_images: Positive = Field(256, description="Validation images measured, the first ones.")
    checkpoint_every: Positive = Field(250, description="Steps between checkpoints; two are kept.")


RESUMABLE = (
    *("steps", "learning_rate", "warmup_steps", "gradient_clip", "accumulate", "precision", "compile"),
    *("validate_every", "validation_images", "checkpoint_every"),
)
