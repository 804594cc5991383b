"""Everything that is wrong with data, in one pass: no row is left out in silence, and no weights are needed.

report = check_data([DataSource(files=(path,), root=path.parent)])
report.faults, report.summary.rows, report.lost
print(report_text(report)); draw(report, Path("data.png"))
"""

from firstsight.data.check.charts import draw
from firstsight.data.check.reading import check_data
from firstsight.data.check.report import DataReport, refusal, report_text

__all__ = ["DataReport", "check_data", "draw", "refusal", "report_text"]
