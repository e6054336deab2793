"""Settings of the data layer. Imports no torch: the command line reads its flags from here."""

from typing import Literal

from pydantic import Field

from tdsm.base.settings import Settings

Channels = Literal["auto", "grey", "rgb"]


class DataConfig(Settings):
    """Which images, how they are decoded, and how they are split.

    >>> DataConfig(source="digits", max_train=500).validation_fraction
    0.1
    """

    source: str = Field(
        "digits",
        description="Where the images come from: 'digits', 'toy', a folder (of images, parquet, tar or idx files, or "
        "saved by `datasets`), an .npz, .parquet or .tar file, a Hugging Face data set id such as 'uoft-cs/cifar10', "
        "or KIND:WHERE, such as 'hub:uoft-cs/cifar10', 'parquet:PATH', 'folder:PATH', 'npz:PATH', 'tar:PATH', "
        "'idx:PATH', 'disk:PATH'.",
    )
    config: str | None = Field(
        None, description="Which config or fold of a source that holds several; without it they are listed."
    )
    revision: str | None = Field(
        None, description="Commit, branch or tag of a hub data set. Without it the newest is taken; notes say which."
    )
    test_split: str | None = Field(
        None, description="Name of the split that serves as test; without it, the one called so."
    )
    image_size: int | None = Field(
        None,
        gt=0,
        description="Resize to squares of this many pixels: the shorter side is scaled, the centre is kept. "
        "Needed when images differ in size.",
    )
    channels: Channels = Field(
        "auto", description="Decode to one grey or three RGB channels; 'auto' is grey if every image is stored so."
    )
    max_train: int | None = Field(
        None,
        gt=0,
        description="Keep a random subset of this many training images; validation is carved from these.",
    )
    max_test: int | None = Field(
        None,
        gt=0,
        description="Keep a random subset of this many test images, and of the source's own validation images.",
    )
    validation_fraction: float = Field(
        0.1,
        gt=0,
        lt=0.9,
        description="Share of the training images held out for validation, the same in each class, "
        "where the source has no validation split.",
    )
    image_column: str | None = Field(None, description="Column of the images in a table.")
    label_column: str | None = Field(
        None, description="Column of the labels in a table, or beside images; their key in .json files."
    )
    skip_bad: bool = Field(False, description="Leave out images that cannot be read, and list them, instead of ending.")
    follow_links: bool = Field(False, description="Follow links that lead out of a folder of images.")
    drop_duplicates: bool = Field(
        False, description="Leave out of train what is in validation or test too, and of validation what is in test."
    )
    memory_limit: int = Field(
        256,
        ge=0,
        description="Keep decoded images in memory up to this many MiB; beyond, they are decoded once into "
        "the cache and read from there.",
    )
    cache: str | None = Field(
        None, description="Folder of decoded images, shared between runs; not set: tdsm/images in the user's cache."
    )


class AugmentConfig(Settings):
    """Random changes to training images; the default changes nothing."""

    crop: int = Field(0, ge=0, description="Shift images by up to this many pixels, edges filled by reflection.")
    flip: bool = Field(False, description="Mirror half of the images left to right.")
    rotate: float = Field(0.0, ge=0, le=180, description="Rotate by up to this many degrees either way.")
    zoom: float = Field(0.0, ge=0, lt=4, description="Magnify or shrink by a factor of up to 1 + this.")
    brightness: float = Field(0.0, ge=0, lt=1, description="Scale colours by 1 ± up to this.")
    contrast: float = Field(0.0, ge=0, lt=1, description="Scale distances to the image's mean grey by 1 ± up to this.")
    saturation: float = Field(0.0, ge=0, lt=1, description="Scale distances to each pixel's grey by 1 ± up to this.")
