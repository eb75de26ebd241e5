"""Stages for the ward: one for each way in which a process can end. The ward's child imports them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from types import MappingProxyType

from pipeline.stages.stage import Road, SickProcess, Stage


class Patient(Stage):
    """Does what its row's `ailment` says."""

    name = "load"
    empty = MappingProxyType({"answer": 0})

    def process(self, row):
        print(f"segment {row['key']}", file=sys.stderr, flush=True)
        match row["ailment"]:
            case "segfault":
                ctypes.string_at(0)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exits":
                os._exit(7)
            case "sick":
                raise SickProcess("CUDA error: unspecified launch failure")
            case "raises":
                raise ValueError("a bad row")
            case "prints":
                print("this is no answer")
        return {"answer": 2 * row["number"], "pid": os.getpid()}


class Passing(Stage):
    name = "infer"
    empty = MappingProxyType({})

    def process(self, row):
        return {}


class Unbuildable(Passing):
    def __init__(self) -> None:
        raise RuntimeError("no such checkpoint")


ROAD = Road(load=(Patient, ()), infer=(Passing, ()), record=(Passing, ()))
BROKEN_ROAD = Road(load=(Patient, ()), infer=(Unbuildable, ()), record=(Passing, ()))
