"""Records of runs, and what can be made of them: plots and a page."""

from topoopt.report.record import JsonLines, Record, RecordError, read

__all__ = ["JsonLines", "Record", "RecordError", "read"]
