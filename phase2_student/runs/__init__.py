"""The directory of a run: what it was begun with, its checkpoints and its history."""
