"""What a run looked like and what it showed, as one self-contained page."""

from tdsm.report.page import ReportInputs, render, write_report
from tdsm.report.table import table_markdown, verdict

__all__ = ["ReportInputs", "render", "table_markdown", "verdict", "write_report"]
