"""Records of runs, and what can be made of them: tables, plots and a page."""

from topoopt.errors import RecordError
from topoopt.report.live import Live
from topoopt.report.reading import read
from topoopt.report.record import Record, RunRecord
from topoopt.report.sink import JsonLines

__all__ = ["JsonLines", "Live", "Record", "RecordError", "RunRecord", "read"]
