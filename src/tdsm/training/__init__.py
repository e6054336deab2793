"""The one training loop, and what a field descends."""
