"""Pictures and charts: arrays in, Figure out."""
