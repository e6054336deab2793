"""Heads, and how they are trained and chosen: on stored features, or with the field."""

from typing import Annotated, Literal

from pydantic import Field

from tdsm.base.settings import Choice, Positive, Settings
from tdsm.classification.registry import HEADS
from tdsm.data.config import AugmentConfig
from tdsm.training.config import TRACKER, LoopConfig, Tracker


class HeadConfig(Settings):
    """What stands between maps and class scores."""

    kind: Annotated[str, Choice(HEADS)] = Field("avg", description="Kind of head.")
    hidden_dim: int = Field(0, ge=0, description="Hidden width of the MLP after `flatten`; 0 is a linear layer.")
    kernel_size: Literal[1, 3] = Field(3, description="Window of the convolutions of `cnn`.")
    pooling: Literal["flatten", "mean"] = Field(
        "flatten", description="Whether `cnn` reads every place after its convolutions, or their mean."
    )
    width: Positive = Field(
        64, description="Channels of `cnn`, of the first stage of `resnet`, width of `transformer`."
    )
    depth: Positive = Field(
        2, description="Convolutions of `cnn`, convolutions that a stage of `resnet` adds, layers of `transformer`."
    )
    max_values: Positive = Field(
        4096, description="Most values `ridge` reads of an image: larger maps are averaged over cells first."
    )
    num_weightings: Positive = Field(4, description="Weightings of `attention`, each pooled on its own.")
    attention_scope: Literal["location", "global"] = Field(
        "location", description="Whether `attention` weighs tokens anew at each location or once an image."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the class scores.")


class MapAugment(Settings):
    """Random moves of maps as pictures: of the stored training features, which cost no encoding."""

    flip: bool = Field(False, description="Mirror half of the maps left to right.")
    shift: float = Field(
        0.0, ge=0, lt=0.5, description="Shift maps by up to this share of their side, edges filled by reflection."
    )


class ProbeConfig(LoopConfig):
    """How every head and baseline is trained and chosen: the same way for all of them."""

    rows: tuple[str, ...] = Field(
        (), description="Rows of the table, FEATURE-READER each, as in additive-cnn; a fixed selection if not set."
    )
    max_train: Positive | None = Field(
        None, description="Training images that heads and baselines see, every class its share; all if not set."
    )
    seeds: Positive = Field(
        1,
        description="Seeds of every head: hyperparameters are chosen with the first, on validation; then a head is "
        "trained for each.",
    )
    epochs: Positive = Field(40, description="Most passes over the training features.")
    patience: int = Field(
        6,
        ge=0,
        description="Stop after this many epochs (of at least 50 steps) without a better validation; the rate falls to "
        "a fifth at a third and at two thirds of them, beside its cosine over all epochs. 0 never.",
    )
    batch_size: Positive = Field(128, description="Samples a step.")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-3, 3e-3, 1e-2), min_length=1, description="Learning rates tried; validation chooses."
    )
    weight_decays: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (1e-2,), min_length=1, description="Weight decays tried; validation chooses."
    )
    penalties: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),
        min_length=1,
        description="λ of `ridge` tried, against features of variance 1; validation chooses.",
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of each label spread over all classes.")
    map_augment: MapAugment = Field(
        MapAugment(),
        description="Random moves of spatial training features, drawn anew each epoch: of maps, reconstruction and "
        "pixels alike, under every head that is trained; ridge and k-NN read them as they are.",
    )
    race_epochs: int = Field(
        2,
        ge=0,
        description="A race: epochs (of at least 50 steps) after which only the learning rates and weight decays that "
        "validation finds best are trained, anew and to the end; 0 trains all.",
    )
    views: int = Field(
        0,
        ge=0,
        description="Augmented copies of each training image beside the image itself, their features kept on disk. "
        "Published frozen fields often use 50.",
    )
    augment: AugmentConfig = Field(AugmentConfig(crop=4, flip=True), description="How those copies are made.")
    neighbours: tuple[Positive, ...] = Field(
        (1, 5, 20, 200), min_length=1, description="k of k-NN; validation chooses."
    )
    temperature: float = Field(0.1, gt=0, description="Temperature of the k-NN vote, exp(cosine / temperature).")


class LearningRates(Settings):
    """Peaks of the learning rates of a classifier's parts; the regime's own where not set."""

    encoder: float | None = Field(None, ge=0, description="Of the field's encoder.")
    processor: float | None = Field(None, ge=0, description="Of the field's processor.")
    decoder: float | None = Field(None, ge=0, description="Of the field's decoder.")
    head: float = Field(1e-3, gt=0, description="Of the head.")


class RegimeConfig(LoopConfig):
    """How a head is trained with its field."""

    regime: Literal["frozen", "finetune", "two_stage"] = Field(
        "finetune",
        description="frozen: the head alone. finetune: head and field, through the decoder. two_stage: the head alone, "
        "then both at small rates, classifying and reconstructing.",
    )
    features: str = Field(
        "tdsm",
        description="What the head reads: tdsm, the maps of the settings, or what they are compared with, trained "
        "likewise: tokens, reconstruction, pixels and others.",
    )
    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$",
        description="Under which it is kept and shown; made of regime and features if not set.",
    )
    start: str | None = Field(
        None,
        description="A fitted row of the table, such as additive-mlp, whose head the training starts from; head and "
        "features are then the row's.",
    )
    head: HeadConfig = Field(HeadConfig(), description="The head.")
    seeds: Positive = Field(1, description="Seeds of head and order.")
    epochs: Positive = Field(5, description="Passes over the training images in each phase.")
    batch_size: Positive = Field(64, description="Images a step.")
    learning_rates: LearningRates = Field(LearningRates(), description="Peaks of the learning rates.")
    warmup_steps: int = Field(50, ge=0, description="Steps of linear warm-up of each phase, then a cosine.")
    weight_decay: float = Field(1e-2, ge=0, description="Decoupled weight decay.")
    gradient_clip: float | None = Field(1.0, gt=0, description="Largest norm of the gradient; none if not set.")
    classification_weight: float = Field(1.0, ge=0, description="Weight of the classification loss.")
    reconstruction_weight: float | None = Field(
        None, ge=0, description="Weight of the reconstruction loss; not set: 1 for two_stage, else 0."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the label spread over all classes.")
    mixup: float = Field(0.0, ge=0, description="α of mixup's Beta(α, α); 0 mixes nothing.")
    token_drop: float = Field(0.0, ge=0, lt=1, description="Share of tokens whose maps are blanked in a step.")
    tracker: Tracker = Field("none", description=TRACKER)
    augment: AugmentConfig = Field(AugmentConfig(), description="Random changes of the training images.")

    @property
    def label(self) -> str:
        """The name under which it is kept and shown.

        >>> RegimeConfig(regime="frozen").label, RegimeConfig(features="tokens").label
        ('frozen', 'finetune-tokens')
        """
        return self.name or (self.regime if self.features == "tdsm" else f"{self.regime}-{self.features}")
