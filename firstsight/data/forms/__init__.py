"""Forms of rows: what a row's columns mean, one module per form. All become the row that `firstsight.data.row` takes.

row = to_row({"conversations": [...], "image": "a.jpg"}, "train.json: row 1", source)
"""

from firstsight.data.forms.convert import to_row

__all__ = ["to_row"]
