"""What there is by name: the forms a store is kept in, and where extraction runs. No torch: flags offer them.

To add one: a line here, beside what it names.
"""

from typing import TYPE_CHECKING

from tdsm.base.registry import Registry

if TYPE_CHECKING:
    from tdsm.features.engines import Engine
    from tdsm.features.formats import Format

HERE = "tdsm.features"

FORMATS: "Registry[Format]" = Registry(
    "store format", {"safetensors": f"{HERE}.formats:SAFETENSORS", "parquet": f"{HERE}.formats:PARQUET"}
)
ENGINES: "Registry[Engine]" = Registry(
    "engine", {"auto": f"{HERE}.engines:AUTO", "here": f"{HERE}.engines:HERE", "ray": f"{HERE}.ray_engine:RAY"}
)
