"""Commands that may take so much processor time and no more: a busy machine does not count against them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from typing import Any

import psutil

IDLE = 20
"""A command may be there this many times as long as it may compute: what sleeps for ever ends too."""


class Overrun(Exception):
    """A command that was stopped at its limit."""


def spent(pid: int) -> float:
    """Processor seconds of a process and its children, ended ones included."""
    total = 0.0
    try:
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            times = one.cpu_times()
            total += times.user + times.system
        ended = process.cpu_times()
        total += ended.children_user + ended.children_system
    except psutil.NoSuchProcess:
        pass
    return total


def run(command: Sequence[str], seconds: float, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command and return it with what it wrote.

    Raises:
        Overrun: where it and its children took more processor time than that.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
    began = time.monotonic()
    while True:
        try:
            out, err = process.communicate(timeout=0.5)
            return subprocess.CompletedProcess(process.args, process.returncode, out, err)
        except subprocess.TimeoutExpired:
            if spent(process.pid) < seconds and time.monotonic() - began < IDLE * seconds:
                continue
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.communicate()
        raise Overrun(f"no end after {seconds:g} s of the processor")
