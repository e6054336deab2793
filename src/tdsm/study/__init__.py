"""Experiments that anyone can rerun on a run's field."""
