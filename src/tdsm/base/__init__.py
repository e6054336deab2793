"""What everything stands on: errors, files, draws, progress, numbers, settings."""
