"""What watches a training: history, progress, signals."""
