"""What a federation did, for people: one page that opens anywhere, and a screenful for the terminal."""

from not_fed.report.page import write_report
from not_fed.report.summary import terminal_summary

__all__ = ["terminal_summary", "write_report"]
