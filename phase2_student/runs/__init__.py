"""The directory of a run: its settings, its checkpoints and its history."""
