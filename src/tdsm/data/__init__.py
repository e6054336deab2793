"""Labelled images from many sources, as uint8 tensors with stable sample ids.

    load_data(DataConfig(source="digits"), seed=0) -> Data(train, validation, test, name, notes)

Names are imported on first use, so that reading a `DataConfig` needs no torch. `augment` lives in
`tdsm.data.augment`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tdsm.data.config import AugmentConfig, DataConfig
    from tdsm.data.decode import decode_image
    from tdsm.data.imageset import Data, ImageSet
    from tdsm.data.load import SOURCES, load_data

__all__ = ["SOURCES", "AugmentConfig", "Data", "DataConfig", "ImageSet", "decode_image", "load_data"]

_HOME = {
    "AugmentConfig": "config",
    "DataConfig": "config",
    "decode_image": "decode",
    "Data": "imageset",
    "ImageSet": "imageset",
    "SOURCES": "load",
    "load_data": "load",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tdsm.data' has no attribute {name!r}")
    return getattr(import_module(f"tdsm.data.{_HOME[name]}"), name)
