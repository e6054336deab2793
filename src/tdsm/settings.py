"""Everything that can be set, with its range: the settings of each part and of a run made of them.

All models are frozen and refuse unknown keys. No torch is imported here, so that `--help` is quick.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tdsm.data.config import AugmentConfig, DataConfig

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FieldConfig(Settings):
    """Widths and counts of a field. The defaults are the reference scale (CIFAR-10, 256 tokens × 512)."""

    channels: Positive = Field(3, description="Channels of the signal: 3 for RGB, 1 for grey. Runs take the data's.")
    num_axes: Positive = Field(2, description="Axes of the signal: 1 audio, 2 images, 3 volumes.")
    mapping_dim: Positive = Field(96, description="Fourier features per block; queries are twice as wide.")
    fourier_scale: float = Field(15.0, gt=0, description="Standard deviation of the Fourier matrix.")
    widths: tuple[Positive, ...] = Field((256, 384, 512), min_length=1, description="Width of each encoder block.")
    num_latents: Positive = Field(256, description="Latents of every block, which is the number of tokens.")
    latents: Literal["fixed", "learned", "random"] = Field(
        "fixed", description="Latents' start: sinusoidal and fixed, sinusoidal and trained, or random and trained."
    )
    cross_heads: Positive = Field(4, description="Heads of every cross-attention.")
    cross_head_dim: Positive = Field(128, description="Width of a cross-attention head.")
    self_heads: Positive = Field(8, description="Heads of every self-attention.")
    self_head_dim: Positive = Field(128, description="Width of a self-attention head.")
    processor_depth: int = Field(4, ge=0, description="Rounds of self-attention and feed-forward.")
    feedforward_multiple: Positive = Field(4, description="Hidden width of a feed-forward over its width.")
    has_query_residual: bool = Field(True, description="Whether the decoder adds the query to what it attended.")
    has_decoder_feedforward: bool = Field(True, description="Whether the decoder has a feed-forward.")
    has_masks: bool = Field(
        False, description="Whether tokens are decoded alone and mixed by a mask each, instead of attended together."
    )

    @property
    def num_tokens(self) -> int:
        """Tokens an image becomes."""
        return self.num_latents

    @property
    def query_dim(self) -> int:
        """Width of the query features, which is the decoder's width."""
        return 2 * self.mapping_dim


class HeadConfig(Settings):
    """What stands between maps and class scores."""

    pool: Literal["avg", "max", "flatten", "cnn", "attention", "transformer"] = Field(
        "avg", description="Kind of head."
    )
    hidden_dim: int = Field(0, ge=0, description="Hidden width of the MLP after `flatten`; 0 is a linear layer.")
    kernel_size: Literal[1, 3] = Field(3, description="Window of the convolutions of `cnn`.")
    width: Positive = Field(64, description="Channels of `cnn`, width of `transformer`.")
    depth: Positive = Field(2, description="Convolutions of `cnn`, layers of `transformer`.")
    num_weightings: Positive = Field(4, description="Weightings of `attention`, each pooled on its own.")
    attention_scope: Literal["location", "global"] = Field(
        "location", description="Whether `attention` weighs tokens anew at each location or once an image."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the class scores.")


class ObjectiveWeights(Settings):
    """How much each objective counts in a step's loss; 0 leaves it out. The equations: docs/method.md."""

    full: float = Field(1.0, ge=0, description="Weight of reconstructing from all pixels and all tokens.")
    sparse_context: float = Field(0.0, ge=0, description="Of reconstructing from a random share of the pixels.")
    token_dropout: float = Field(0.0, ge=0, description="Of reconstructing from random subsets of the tokens.")
    nested: float = Field(0.0, ge=0, description="Of reconstructing from the first n tokens, n random.")
    mixture: float = Field(0.0, ge=0, description="Of reconstructing by masks; needs --field.has-masks.")


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
    objectives: ObjectiveWeights = Field(ObjectiveWeights(), description="What the loss is made of.")
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

    @model_validator(mode="before")
    @classmethod
    def _from_share_alone(cls, data: Any) -> Any:
        """Take a share below 1 without objectives for `sparse_context`, as it was before there were objectives."""
        if isinstance(data, dict) and "objectives" not in data and data.get("context_fraction", 1) != 1:
            return data | {"objectives": {"full": 0, "sparse_context": 1}}
        return data


class MapConfig(Settings):
    """Which spatial maps are made of a field's tokens."""

    method: Literal["solo", "additive", "leave_one_out", "attention", "shapley", "mixture"] = Field(
        "solo", description="Decomposition the maps show: solo is the TDSM; docs/method.md has the others."
    )
    reduction: Literal["mean", "rgb", "l2"] = Field("mean", description="What becomes of the colour channels.")
    selection: str = Field("all", description="Tokens decoded: all, stride:n, first:n, or indices such as 0,5,7.")
    size: tuple[Positive, Positive] | None = Field(None, description="Height and width; the image's if not set.")
    strategy: Literal["auto", "loop", "batched", "exact"] = Field("auto", description="How `solo` decodes tokens.")
    batch_size: Positive = Field(64, description="Images encoded at once.")


class ProbeConfig(Settings):
    """How every head and baseline is trained and chosen: the same way for all of them."""

    rows: tuple[str, ...] = Field((), description="Rows of the table, by name; all of them if not set.")
    seeds: Positive = Field(
        1,
        description="Seeds of every head: hyperparameters are chosen with the first, on validation; then a head is "
        "trained for each.",
    )
    epochs: Positive = Field(40, description="Passes over the training features.")
    batch_size: Positive = Field(128, description="Samples a step.")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-3, 1e-2), min_length=1, description="Learning rates tried; validation chooses."
    )
    weight_decays: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (1e-2,), min_length=1, description="Weight decays tried; validation chooses."
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


class RegimeConfig(Settings):
    """How a head is trained with its field."""

    regime: Literal["frozen", "finetune", "two_stage"] = Field(
        "finetune",
        description="frozen: the head alone. finetune: head and field, through the decoder. two_stage: the head alone, "
        "then both at small rates, classifying and reconstructing.",
    )
    head: HeadConfig = Field(HeadConfig(), description="The head.")
    seeds: Positive = Field(1, description="Seeds of head and order.")
    epochs: Positive = Field(5, description="Passes over the training images in each phase.")
    batch_size: Positive = Field(64, description="Images a step.")
    learning_rates: LearningRates = Field(LearningRates(), description="Peaks of the learning rates.")
    warmup_steps: int = Field(50, ge=0, description="Steps of linear warm-up of each phase, then a cosine.")
    weight_decay: float = Field(1e-2, ge=0, description="Decoupled weight decay.")
    gradient_clip: float = Field(1.0, gt=0, description="Largest norm of the gradient.")
    classification_weight: float = Field(1.0, ge=0, description="Weight of the classification loss.")
    reconstruction_weight: float | None = Field(
        None, ge=0, description="Weight of the reconstruction loss; not set: 1 for two_stage, else 0."
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="Share of the label spread over all classes.")
    mixup: float = Field(0.0, ge=0, description="α of mixup's Beta(α, α); 0 mixes nothing.")
    token_drop: float = Field(0.0, ge=0, lt=1, description="Share of tokens whose maps are blanked in a step.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of the averaged weights that are judged; 0 averages none.")
    patience: int = Field(0, ge=0, description="Stop after this many epochs without a better validation; 0 never.")
    augment: AugmentConfig = Field(AugmentConfig(), description="Random changes of the training images.")


class StudyConfig(Settings):
    """How the study of worth asks: the same budget and tuning for every feature."""

    seeds: Positive = Field(3, description="Seeds of each head.")
    parameters: Positive = Field(50_000, description="Most parameters a head may have; the widest is taken.")
    size: tuple[Positive, Positive] | None = Field((16, 16), description="Height and width of maps; not set: images'.")
    epochs: Positive = Field(40, description="Passes over the training features by the mlp.")
    structured_epochs: Positive = Field(6, description="Passes by the structured heads, which cost more.")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-3, 1e-2), min_length=1, description="Learning rates tried; validation chooses."
    )
    max_train: int | None = Field(5000, ge=1, description="Training images used, a random subset of the run's.")
    max_test: int | None = Field(None, ge=2, description="Test images used, a random subset; all if not set.")
    token_counts: tuple[Positive, ...] = Field(
        (4, 8, 16), description="Also from the first n tokens alone, where there are more."
    )
    steps: tuple[Positive, ...] = Field((250, 1000), description="Also from fields trained anew for fewer steps.")


class ObjectiveStudyConfig(Settings):
    """How the study of objectives asks: one field an objective, all else equal."""

    objectives: tuple[Literal["full", "sparse_context", "token_dropout", "nested", "mixture"], ...] = Field(
        ("full", "sparse_context", "token_dropout", "nested", "mixture"), min_length=1, description="Which objectives."
    )
    seeds: Positive = Field(1, description="Seeds of field and head.")
    steps: Positive = Field(1000, description="Training steps of each field; all else is the run's.")
    images: int = Field(256, ge=2, description="Test images whose components are measured, the first ones.")
    size: tuple[Positive, Positive] | None = Field((16, 16), description="Height and width of maps; not set: images'.")
    head: HeadConfig = Field(HeadConfig(pool="flatten"), description="The probe, on maps and on tokens.")
    epochs: Positive = Field(20, description="Passes of the probe over the training features.")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-4, 1e-3), min_length=1, description="Learning rates of the probe tried; validation chooses."
    )
    max_train: int | None = Field(5000, ge=1, description="Training images of the probe, a random subset of the run's.")
    max_test: int | None = Field(None, ge=2, description="Test images of the probe, a random subset; all if not set.")


class TokenStudyConfig(Settings):
    """How the study of tokens asks: the same head and tuning for every way of choosing tokens."""

    counts: tuple[int, ...] = Field(
        (), description="Numbers of tokens kept; an eighth, a quarter and a half of them if not set."
    )
    seeds: Positive = Field(3, description="Seeds of gate, head and random choice.")
    head: HeadConfig = Field(HeadConfig(), description="The head.")
    epochs: Positive = Field(40, description="Passes over the training maps, by the gate and by each head.")
    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1e-3, 1e-2), min_length=1, description="Learning rates tried; validation chooses."
    )


class RunConfig(Settings):
    """A whole run: data, field, its training, its maps, the heads and baselines on them."""

    seed: int = Field(0, ge=0, description="Seed of every random draw.")
    init: str | None = Field(
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
