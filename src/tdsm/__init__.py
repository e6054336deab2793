"""Token-wise decoded decomposition of conditioned neural fields, and classification from its maps.

Names are imported when first used, so that `import tdsm` and `tdsm --help` cost nothing.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tdsm.base.extras import missing_words

if TYPE_CHECKING:
    from tdsm.base.errors import TdsmError
    from tdsm.classification.evidence import class_evidence
    from tdsm.classification.heads import TDSMClassifier
    from tdsm.decomposition import component_images, contributions, decompose, plan_decoding, pooled_map, spatial_map
    from tdsm.decomposition.reduce import reduce_components
    from tdsm.decomposition.select import select_tokens
    from tdsm.explore.notebook import show
    from tdsm.features.callable import FieldFeatures
    from tdsm.features.reader import open_store
    from tdsm.models import adapters
    from tdsm.models.config import FieldConfig
    from tdsm.models.field import NeuralField, get_tdsm
    from tdsm.models.load import load_field
    from tdsm.pipeline.reader import load_run
    from tdsm.tokenfield import TokenField

__version__ = version("tdsm")

__all__ = [
    "FieldConfig",
    "FieldFeatures",
    "NeuralField",
    "TDSMClassifier",
    "TdsmError",
    "TokenField",
    "__version__",
    "adapters",
    "class_evidence",
    "component_images",
    "contributions",
    "decompose",
    "get_tdsm",
    "load_field",
    "load_run",
    "open_store",
    "plan_decoding",
    "pooled_map",
    "reduce_components",
    "select_tokens",
    "show",
    "spatial_map",
]

_HOME = {
    "FieldConfig": "tdsm.models.config",
    "FieldFeatures": "tdsm.features.callable",
    "NeuralField": "tdsm.models.field",
    "TDSMClassifier": "tdsm.classification.heads",
    "TdsmError": "tdsm.base.errors",
    "TokenField": "tdsm.tokenfield",
    "adapters": "tdsm.models",
    "class_evidence": "tdsm.classification.evidence",
    "component_images": "tdsm.decomposition",
    "contributions": "tdsm.decomposition",
    "decompose": "tdsm.decomposition",
    "get_tdsm": "tdsm.models.field",
    "load_field": "tdsm.models.load",
    "load_run": "tdsm.pipeline.reader",
    "open_store": "tdsm.features.reader",
    "plan_decoding": "tdsm.decomposition",
    "pooled_map": "tdsm.decomposition",
    "reduce_components": "tdsm.decomposition.reduce",
    "select_tokens": "tdsm.decomposition.select",
    "show": "tdsm.explore.notebook",
    "spatial_map": "tdsm.decomposition",
}


if not TYPE_CHECKING:  # a type checker would take every name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'tdsm' has no attribute {name!r}")
        try:
            return getattr(import_module(_HOME[name]), name)
        except ModuleNotFoundError as error:
            if (words := missing_words(error)) is None:
                raise
            raise ModuleNotFoundError(f"tdsm.{name}: {words}", name=error.name) from error


def __dir__() -> list[str]:
    return sorted(__all__)
