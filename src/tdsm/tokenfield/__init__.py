"""What a model must answer to be decomposed, and what such models are built of."""

from tdsm.tokenfield.interface import Norm, Readout, TokenField, device_of, resolve_points

__all__ = ["Norm", "Readout", "TokenField", "device_of", "resolve_points"]
