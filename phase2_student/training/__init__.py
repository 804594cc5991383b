"""A training run: student, optimiser, trainer, resume."""
