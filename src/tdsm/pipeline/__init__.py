"""A run: its folder, its stages, its table."""
