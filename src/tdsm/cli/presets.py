"""Named experiments: whole settings, with the command, and what to expect of it."""

from collections.abc import Callable
from typing import Any

from tdsm.classification.config import ProbeConfig
from tdsm.data.config import AugmentConfig, DataConfig
from tdsm.features.config import MapConfig
from tdsm.models.config import FieldConfig
from tdsm.pipeline.config import RunConfig
from tdsm.training.config import TrainConfig


def digits() -> RunConfig:
    """Handwritten digits, 8×8 grey, 1 797 images that ship with scikit-learn: `tdsm demo`.

    64 seconds of one CPU core, everything included (an AMD EPYC); 29.2 dB on test.
    """
    decoded = ("tdsm-ridge", "tdsm-avg", "tdsm-linear", "tdsm-cnn", "tdsm-attention", "tdsm-knn", "additive-ridge")
    pixels = ("pixels-ridge", "pixels-linear", "pixels-knn", "pixels-cnn", "reconstruction-ridge", "reconstruction-cnn")
    before = ("tokens-ridge", "tokens-avg", "tokens-linear", "tokens-mlp", "values-ridge", "values-linear")
    others = ("additive-linear", "untrained-tokens-ridge", "untrained-tdsm-ridge", "majority")
    return RunConfig(
        data=DataConfig(source="digits"),
        field=_local_field(
            channels=1,
            mapping_dim=16,
            fourier_scale=2.0,
            widths=(64,),
            num_latents=16,
            cross_head_dim=16,
            self_head_dim=16,
        ),
        train=_short_steps(steps=800, warmup_steps=50, validate_every=100, checkpoint_every=200),
        probe=ProbeConfig(rows=(*decoded, *pixels, *before, *others), epochs=20),
    )


def fashion_mnist() -> RunConfig:
    """Fashion-MNIST, 28×28 grey, with a field of 48 tokens × 96: `tdsm train --preset fashion-mnist`.

    The field takes half an hour of one CPU core. Point --data.source at a folder of idx files to stay offline.
    """
    return RunConfig(
        data=DataConfig(source="zalando-datasets/fashion_mnist"),
        field=_local_field(channels=1, fourier_scale=5.0, num_latents=48),
        train=_short_steps(
            steps=24_000, num_queries=192, objectives={"full": 0, "sparse_context": 1}, context_fraction=0.25
        ),
    )


def cifar10_small() -> RunConfig:
    """CIFAR-10 with a field of 64 tokens × 96: `tdsm demo --preset cifar10-small`.

    By the cost of its steps the field takes 90 minutes of one CPU core; not yet run to its end here. Point
    --data.source at a local copy to stay offline.
    """
    return RunConfig(
        data=DataConfig(source="uoft-cs/cifar10"),
        field=_local_field(fourier_scale=6.0, num_latents=64, mapping_dim=48),
        train=_short_steps(steps=30_000, num_queries=192, augment=AugmentConfig(flip=True)),
    )


def cifar10_best() -> RunConfig:
    """CIFAR-10 with a field of 128 tokens × 128: `tdsm train --preset cifar10-best`.

    Several hours of 2 CPU cores. On an H100 that others used, 12 000 steps of 128 images took 8 minutes: 33.7 dB
    on test (`results/cifar10-best`).
    """
    return RunConfig(
        data=DataConfig(source="uoft-cs/cifar10"),
        field=_local_field(
            fourier_scale=8.0, num_latents=128, mapping_dim=48, widths=(128,), cross_head_dim=32, self_head_dim=32
        ),
        train=_short_steps(steps=100_000, batch_size=32, num_queries=384, augment=AugmentConfig(flip=True)),
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


def _local_field(**changes: Any) -> FieldConfig:
    """Return a field of one block whose tokens start local, which a CPU trains fast."""
    base = {"latents": "local", "mapping_dim": 32, "widths": (96,), "processor_depth": 2}
    heads = {"cross_heads": 4, "cross_head_dim": 24, "self_heads": 4, "self_head_dim": 24}
    return FieldConfig(**base | heads | changes)


def _short_steps(**changes: Any) -> TrainConfig:
    """Return a training of many small steps."""
    base = {"batch_size": 16, "learning_rate": 3e-3, "warmup_steps": 500, "validate_every": 1000}
    return TrainConfig(**base | {"checkpoint_every": 500} | changes)


def images() -> RunConfig:
    """Your own images: field, steps and maps are sized from them and from this machine, for a budget of --minutes.

    What is taken without any preset where --data.source names images of your own; --dry-run says what was chosen.
    """
    decoded = (f"{maps}-{reader}" for maps in ("tdsm", "additive", "attention") for reader in ("ridge", "cnn"))
    before = ("pixels-ridge", "pixels-knn", "pixels-cnn", "reconstruction-ridge", "reconstruction-cnn", "tokens-ridge")
    others = ("tokens-mlp", "tokens-knn", "values-ridge", "untrained-tokens-ridge", "untrained-tdsm-ridge", "majority")
    return RunConfig(field=_local_field(), probe=ProbeConfig(rows=(*decoded, *before, *others), epochs=15))


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "digits": digits,
    "images": images,
    "fashion-mnist": fashion_mnist,
    "cifar10-small": cifar10_small,
    "cifar10-best": cifar10_best,
    "cifar10-reference": cifar10_reference,
}
