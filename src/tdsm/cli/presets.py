"""Named experiments: whole settings, with the command, and what to expect of it."""

from collections.abc import Callable

from tdsm.classification.config import ProbeConfig
from tdsm.data.config import AugmentConfig, DataConfig
from tdsm.features.config import MapConfig
from tdsm.models.config import FieldConfig
from tdsm.pipeline.config import RunConfig
from tdsm.training.config import TrainConfig


def digits() -> RunConfig:
    """Handwritten digits, 8×8 grey, 1 797 images that ship with scikit-learn: `tdsm demo`.

    Under 3 minutes on 2 CPU cores, everything included.
    """
    return RunConfig(
        data=DataConfig(source="digits"),
        field=FieldConfig(
            channels=1,
            mapping_dim=16,
            fourier_scale=2.0,
            widths=(32, 48, 64),
            num_latents=16,
            cross_heads=4,
            cross_head_dim=16,
            self_heads=4,
            self_head_dim=16,
            processor_depth=2,
        ),
        train=TrainConfig(steps=1200, batch_size=32, learning_rate=2e-3, validate_every=150, checkpoint_every=300),
        probe=ProbeConfig(epochs=20),
    )


def cifar10_small() -> RunConfig:
    """CIFAR-10 with a field of 32 tokens × 96 on 10 000 training images: `tdsm demo --preset cifar10-small`.

    Sized for 2 CPU cores. Point --data.source at a local copy to stay offline.
    """
    return RunConfig(
        data=DataConfig(source="uoft-cs/cifar10", max_train=10000, max_test=10000),
        field=FieldConfig(
            mapping_dim=32,
            fourier_scale=10.0,
            widths=(64, 96),
            num_latents=32,
            cross_heads=4,
            cross_head_dim=24,
            self_heads=4,
            self_head_dim=24,
            processor_depth=2,
        ),
        train=TrainConfig(
            steps=4000,
            batch_size=32,
            learning_rate=2e-3,
            num_queries=256,
            augment=AugmentConfig(crop=0, flip=True),
            validate_every=500,
            checkpoint_every=500,
        ),
        probe=ProbeConfig(epochs=8),
    )


def cifar10_reference() -> RunConfig:
    """CIFAR-10 at reference scale, 256 tokens × 512, all 50 000 images: for a GPU; not yet run here."""
    return RunConfig(
        data=DataConfig(source="uoft-cs/cifar10"),
        train=TrainConfig(
            steps=100_000,
            batch_size=64,
            learning_rate=2e-4,
            warmup_steps=2000,
            augment=AugmentConfig(crop=0, flip=True),
            validate_every=2000,
            checkpoint_every=2000,
        ),
        maps=MapConfig(selection="stride:4", batch_size=32),
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "digits": digits,
    "cifar10-small": cifar10_small,
    "cifar10-reference": cifar10_reference,
}
