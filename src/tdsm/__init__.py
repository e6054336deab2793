"""Token-wise decoded decomposition of conditioned neural fields, and classification from its maps.

Names are imported when first used, so that `import tdsm` and `tdsm --help` cost nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tdsm.base.extras import missing_words

if TYPE_CHECKING:
    from tdsm.base.errors import (
        CheckpointError,
        CompletenessWarning,
        DataError,
        NonFiniteError,
        ResourceError,
        SpaceWarning,
        TdsmError,
        UsageError,
    )
    from tdsm.classification.evidence import Evidence, class_evidence
    from tdsm.classification.heads import TDSMClassifier
    from tdsm.data import Data, DataConfig, ImageSet, load_data
    from tdsm.decomposition import (
        Contributions,
        Decomposition,
        Plan,
        component_images,
        contributions,
        decompose,
        measures,
        methods_for,
        missing_space,
        plan_decoding,
        pooled_map,
        spatial_map,
    )
    from tdsm.decomposition.reduce import reduce_components
    from tdsm.decomposition.select import select_tokens
    from tdsm.explore.notebook import show
    from tdsm.features.callable import FieldFeatures
    from tdsm.features.config import MapConfig
    from tdsm.features.reader import Store, open_store
    from tdsm.models import adapters
    from tdsm.models.adapters import CrossAttentionField
    from tdsm.models.config import FieldConfig
    from tdsm.models.field import NeuralField, get_tdsm
    from tdsm.models.load import load_field
    from tdsm.pipeline.reader import FinishedRun, load_run
    from tdsm.tokenfield import Norm, Readout, TokenField
    from tdsm.tokenfield.attention import TokenHeads
    from tdsm.tokenfield.coords import FourierFeatures, grid

    __version__: str

__all__ = [
    "CheckpointError",
    "CompletenessWarning",
    "Contributions",
    "CrossAttentionField",
    "Data",
    "DataConfig",
    "DataError",
    "Decomposition",
    "Evidence",
    "FieldConfig",
    "FieldFeatures",
    "FinishedRun",
    "FourierFeatures",
    "ImageSet",
    "MapConfig",
    "NeuralField",
    "NonFiniteError",
    "Norm",
    "Plan",
    "Readout",
    "ResourceError",
    "SpaceWarning",
    "Store",
    "TDSMClassifier",
    "TdsmError",
    "TokenField",
    "TokenHeads",
    "UsageError",
    "__version__",
    "adapters",
    "class_evidence",
    "component_images",
    "contributions",
    "decompose",
    "get_tdsm",
    "grid",
    "load_data",
    "load_field",
    "load_run",
    "measures",
    "methods_for",
    "missing_space",
    "open_store",
    "plan_decoding",
    "pooled_map",
    "reduce_components",
    "select_tokens",
    "show",
    "spatial_map",
]

_HOMES = {
    "base.errors": "TdsmError UsageError DataError CheckpointError ResourceError NonFiniteError SpaceWarning "
    "CompletenessWarning",
    "classification.evidence": "Evidence class_evidence",
    "classification.heads": "TDSMClassifier",
    "data": "Data DataConfig ImageSet load_data",
    "decomposition.measures": "measures",
    "decomposition.methods": "Decomposition decompose methods_for",
    "decomposition.plan": "Plan plan_decoding",
    "decomposition.pooled": "pooled_map",
    "decomposition.reduce": "reduce_components",
    "decomposition.regions": "Contributions contributions",
    "decomposition.select": "select_tokens",
    "decomposition.solo": "component_images missing_space spatial_map",
    "explore.notebook": "show",
    "features.callable": "FieldFeatures",
    "features.config": "MapConfig",
    "features.reader": "Store open_store",
    "models.adapters": "adapters CrossAttentionField",
    "models.config": "FieldConfig",
    "models.field": "NeuralField get_tdsm",
    "models.load": "load_field",
    "pipeline.reader": "FinishedRun load_run",
    "tokenfield": "Norm Readout TokenField",
    "tokenfield.attention": "TokenHeads",
    "tokenfield.coords": "FourierFeatures grid",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}


if not TYPE_CHECKING:  # a type checker would take every name for one of these

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            return import_module("importlib.metadata").version("tdsm")  # slow to import
        if name not in _HOME:
            raise AttributeError(f"module 'tdsm' has no attribute {name!r}")
        try:
            home = import_module(f"tdsm.{_HOME[name]}")
            return home if home.__name__.endswith(f".{name}") else getattr(home, name)
        except ModuleNotFoundError as error:
            if (words := missing_words(error)) is None:
                raise
            raise ModuleNotFoundError(f"tdsm.{name}: {words}", name=error.name) from error


def __dir__() -> list[str]:
    return sorted(__all__)
