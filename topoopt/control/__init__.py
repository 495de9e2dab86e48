"""Policies: a measurement in, a factor on the user's learning rate out. Pure functions of plain numbers; no torch."""

from topoopt.control.course import Look, looks_in
from topoopt.control.hold import Hold
from topoopt.control.policy import Policy, Reading, Seen, State
from topoopt.control.preserve import Preserve
from topoopt.control.registry import policy_from_dict, policy_from_mode, policy_to_dict
from topoopt.control.report import Report
from topoopt.control.schedule import Schedule, wish
from topoopt.control.simplify import Simplify

__all__ = [
    "Hold",
    "Look",
    "Policy",
    "Preserve",
    "Reading",
    "Report",
    "Schedule",
    "Seen",
    "Simplify",
    "State",
    "looks_in",
    "policy_from_dict",
    "policy_from_mode",
    "policy_to_dict",
    "wish",
]
