"""The field, its weights, and other people's models as fields."""
