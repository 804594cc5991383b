"""The callbacks of a training: history, progress, signals."""
