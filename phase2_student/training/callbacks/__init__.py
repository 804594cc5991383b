"""The callbacks of a training run: history, progress, signals."""
