"""Foreign models and checkpoints, brought to the interface of a token field."""
