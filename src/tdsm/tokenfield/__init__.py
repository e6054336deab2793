"""What a model must answer to be decomposed, and what such models are built of."""

from tdsm.tokenfield.interface import GatedReadout, TokenField, device_of, resolve_points

__all__ = ["GatedReadout", "TokenField", "device_of", "resolve_points"]
