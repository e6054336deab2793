"""How the studies ask."""

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from tdsm.base.registry import Registry
from tdsm.base.settings import Choice, Positive, Settings
from tdsm.classification.config import HeadConfig
from tdsm.training.registry import OBJECTIVES

if TYPE_CHECKING:
    from tdsm.study.readings import Reading


READINGS: "Registry[Reading]" = Registry(
    "reading",
    {
        "ridge": "tdsm.study.readings:RIDGE",
        "mlp": "tdsm.study.readings:MLP",
        "mlp-pca": "tdsm.study.readings:EQUAL",
        "structured": "tdsm.study.readings:STRUCTURED",
    },
)


class Asked(Settings):
    """How a question is asked, and what it needs of the run."""

    needs_labels: ClassVar[bool] = True


class StudyConfig(Asked):
    """Does decoding the tokens pay for classification? Equal budget and tuning for every feature, paired intervals."""

    readings: tuple[Annotated[str, Choice(READINGS)], ...] = Field(
        default_factory=lambda: tuple(READINGS), min_length=1, description="How every feature is read."
    )
    seeds: Positive = Field(3, description="Seeds of each head that has any.")
    hidden_dim: Positive = Field(256, description="Hidden width of the mlp, the same for every feature.")
    components: Positive = Field(256, description="Principal components that mlp-pca reads of every feature.")
    parameters: Positive = Field(50_000, description="Most parameters a structured head may have; the widest is taken.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the class scores, of heads but ridge.")
    size: tuple[Positive, Positive] | None = Field((8, 8), description="Height and width of maps; not set: images'.")
    epochs: Positive = Field(40, description="Most passes over the training features.")
    patience: int = Field(6, ge=0, description="Epochs without a better validation after which a head is done.")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-3, 3e-3), min_length=1, description="Learning rates raced over two epochs; validation chooses."
    )
    max_train: int | None = Field(5000, ge=1, description="Training images used, a random subset of the run's.")
    max_test: int | None = Field(None, ge=2, description="Test images used, a random subset; all if not set.")
    train_counts: tuple[Positive, ...] = Field(
        (100, 300, 1000, 3000), description="Also by ridge from n training images alone, where there are more."
    )
    token_counts: tuple[Positive, ...] = Field(
        (4, 8, 16), description="Also from the first n tokens alone, where there are more, by ridge."
    )
    steps: tuple[Positive, ...] = Field(
        (250, 1000), description="Also from fields trained anew for fewer steps, by ridge."
    )


class ObjectiveStudyConfig(Asked):
    """What does the training objective make of the tokens? One field an objective, all else equal."""

    objectives: tuple[Annotated[str, Choice(OBJECTIVES)], ...] = Field(
        default_factory=lambda: tuple(OBJECTIVES), min_length=1, description="Which objectives."
    )
    seeds: Positive = Field(1, description="Seeds of field and head.")
    steps: Positive = Field(1000, description="Training steps of each field; all else is the run's.")
    images: int = Field(256, ge=2, description="Test images whose components are measured, a stratified draw.")
    size: tuple[Positive, Positive] | None = Field((16, 16), description="Height and width of maps; not set: images'.")
    head: HeadConfig = Field(HeadConfig(kind="ridge"), description="The probe, on maps and on tokens.")
    epochs: Positive = Field(20, description="Passes of the probe over the training features.")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-4, 1e-3), min_length=1, description="Learning rates of the probe tried; validation chooses."
    )
    max_train: int | None = Field(5000, ge=1, description="Training images of the probe, a random subset of the run's.")
    max_test: int | None = Field(None, ge=2, description="Test images of the probe, a random subset; all if not set.")


class TokenStudyConfig(Asked):
    """Which tokens are worth keeping? The same head and tuning for every way of choosing them."""

    counts: tuple[int, ...] = Field(
        (), description="Numbers of tokens kept; an eighth, a quarter and a half of them if not set."
    )
    seeds: Positive = Field(3, description="Seeds of gate, head and random choice.")
    head: HeadConfig = Field(HeadConfig(kind="ridge"), description="The head.")
    epochs: Positive = Field(40, description="Passes over the training maps, by the gate and by each trained head.")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-3, 1e-2), min_length=1, description="Learning rates tried; validation chooses."
    )


class RegionStudyConfig(Asked):
    """Which tokens are a handle on a region? Chosen in every way, edited; change inside against outside."""

    needs_labels: ClassVar[bool] = False

    images: int = Field(64, ge=2, description="Test images asked about, a random draw.")
    grid: tuple[Positive, Positive] = Field((2, 2), description="Rows and columns of fields, each of them a region.")
    counts: tuple[int, ...] = Field(
        (), description="Numbers of tokens edited; 1, 2, 4 and so on to half of them if not set."
    )
    draws: Positive = Field(3, description="Random choices averaged.")


class AnalysisConfig(Settings):
    """What is measured of every decomposition."""

    images: int = Field(256, ge=2, description="Test images measured, drawn in proportion from every class.")


QUESTIONS: dict[str, type[Asked]] = {  # each is answered by `answer` of the module of its name
    "worth": StudyConfig,
    "objectives": ObjectiveStudyConfig,
    "tokens": TokenStudyConfig,
    "regions": RegionStudyConfig,
}
