"""Policies: a measurement in, a factor on the user's learning rate out. Pure functions of plain numbers; no torch."""

from topoopt.control.policies import Report
from topoopt.control.policy import Policy, Reading, State
from topoopt.control.registry import policy_from_dict, policy_from_mode, policy_to_dict

__all__ = ["Policy", "Reading", "Report", "State", "policy_from_dict", "policy_from_mode", "policy_to_dict"]
