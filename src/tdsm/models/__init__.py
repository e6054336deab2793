"""The field, its weights, and other people's models as fields."""

from tdsm.models import adapters

__all__ = ["adapters"]
