"""Files that hold rows, whatever the rows mean: one module per kind behind one interface; the kind is detected from the file.

container = open_container(Path("train.json.gz"), "train.json.gz")
for locator, number, value in container.rows(): ...     # value: a row, or the DataError that says what is wrong with it
container.row(locator)                                   # the same row again
"""

from firstsight.data.containers.base import Container
from firstsight.data.containers.open import open_container

__all__ = ["Container", "open_container"]
