"""Errors in what a user gave: one clear line each, shown by the commands with exit code 2.

A message says what is wrong, where (key, file, line), what was expected, what was found, and what to do.
"""


class FirstSightError(Exception):
    """The root of the errors that a command reports in one line."""


class RecipeError(FirstSightError, ValueError):
    """A recipe that cannot be read, or a key in it that cannot be used."""


class DataError(FirstSightError, ValueError):
    """A data file, a sample or an image that cannot be used."""


class PictureError(DataError):
    """An image of a row that was not found or cannot be read: an error of that row alone, which then has no key."""


class ModelError(FirstSightError, OSError):
    """A model, tokenizer or processor that was not found or cannot be used."""


class AlignmentError(FirstSightError, ValueError):
    """Two vocabularies, or two token sequences, that do not fit each other."""


class TargetError(FirstSightError, ValueError):
    """Soft targets that cannot be made (non-finite logits) or do not fit the sample."""


class TrainingError(FirstSightError, ArithmeticError):
    """A training that cannot continue: a loss or a gradient that is not finite."""
