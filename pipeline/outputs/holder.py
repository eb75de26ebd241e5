"""Who runs: a process on a machine, described so that another process can tell whether it still lives."""

from __future__ import annotations

import getpass
import math
import os
import platform
import shlex
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import psutil

from pipeline.printable import printable

SignOfLife = Literal["alive", "dead", "unknown"]

# The kernel tells its boot time in whole seconds, and its adjustment may move it by one.
_SAME_START_S = 2.0
_COMMAND_CHARACTERS = 1000


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a process id means something: one boot of one host, and there one namespace of processes."""

    host: str
    boot_id: str
    pid_namespace: str  # empty where the system has none

    @classmethod
    def here(cls) -> Machine:
        return cls(host=platform.node(), boot_id=_boot_id(), pid_namespace=_pid_namespace())


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A process that runs a command on an output folder."""

    user: str
    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    started_s: float  # since boot: the wall clock may be set while a run goes on
    command: str
    run_id: str
    since: str  # ISO

    @classmethod
    def here(cls, run_id: str, machine: Machine) -> Holder:
        """This process, on the machine that it claims."""
        return cls(
            user=_user(),
            **asdict(machine),
            pid=os.getpid(),
            started_s=_started_s(psutil.Process()),
            command=shlex.join(sys.argv)[:_COMMAND_CHARACTERS],
            run_id=run_id,
            since=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @property
    def machine(self) -> Machine:
        return Machine(host=self.host, boot_id=self.boot_id, pid_namespace=self.pid_namespace)

    @property
    def is_sound(self) -> bool:
        """Whether the fields, which may come from a file, are what they should be."""
        texts = (self.user, self.host, self.boot_id, self.pid_namespace, self.command, self.run_id)
        if not all(isinstance(text, str) for text in texts) or not is_moment(self.since):
            return False
        is_time = isinstance(self.started_s, int | float) and math.isfinite(self.started_s)
        return is_time and isinstance(self.pid, int) and 0 < self.pid < 2**31

    def describe(self) -> str:
        """For a terminal: which run, of whom, where."""
        command = printable(self.command)
        return printable(f"run {self.run_id} of {self.user}@{self.host}, pid {self.pid}") + f" ({command})"

    def sign_of_life(self, *, seen_from: Machine) -> SignOfLife:
        """Whether the process lives, as far as process ids of `seen_from` (where this code runs) can tell."""
        if self.machine != seen_from:
            return "unknown"
        if not psutil.pid_exists(self.pid):
            return "dead"
        try:
            process = psutil.Process(self.pid)
            is_same = abs(_started_s(process) - self.started_s) < _SAME_START_S
            return "alive" if is_same and process.status() != psutil.STATUS_ZOMBIE else "dead"
        except psutil.NoSuchProcess:
            # Gone meanwhile, or hidden from us because it is somebody else's.
            return "unknown" if psutil.pid_exists(self.pid) else "dead"
        except psutil.Error:
            return "unknown"


def is_moment(text: object) -> bool:
    """Whether `text` is an ISO time that says of which time zone."""
    try:
        return isinstance(text, str) and datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _started_s(process: psutil.Process) -> float:
    return process.create_time() - psutil.boot_time()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # containers run under numbers that no user has
        return str(os.getuid())
