"""The process in which one segment runs alone: `python -m pipeline.stages.alone`, started by `ward` and by nobody else.

Reads a pickled road from stdin, builds its stages, says that it is ready, and then answers each row with a status row.
Both ends of the pipe are this project's own processes on one machine; nothing from a dataset is ever unpickled.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import sys
from typing import BinaryIO

from pipeline.stages.stage import Road, SickProcess

# What the process exits with when it finds itself sick: 128 and above are left to signals.
EXIT_SICK = 86


def main() -> int:
    faulthandler.enable()
    with _private_stdout() as answers:
        road: Road = pickle.load(sys.stdin.buffer)
        stages = [stage(*arguments) for stage, arguments in road.stages]
        _send(answers, None)
        while (row := pickle.load(sys.stdin.buffer)) is not None:
            try:
                for stage in stages:
                    row = stage(row)
            except SickProcess as error:
                print(error, file=sys.stderr, flush=True)
                return EXIT_SICK
            _send(answers, row)
    return 0


def _private_stdout() -> BinaryIO:
    """The pipe to the ward. Whatever a library prints goes to stderr from here on, and is no answer."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return answers


def _send(answers: BinaryIO, value: object) -> None:
    pickle.dump(value, answers)
    answers.flush()


if __name__ == "__main__":
    # Without tearing down: what is written is written, and libraries may hang or crash on their way out.
    code = main()
    sys.stderr.flush()
    os._exit(code)
