"""Heads, the rows of every table, and how they are fitted."""
