"""Tell what is in an output folder, and follow a run that is going on: `uv run jobs/status.py OUTPUT_DIR`.

Exit code: 0 when the newest run is complete (planned = recorded + failed + quarantined, and no more failures than its
--max_failed_fraction tolerates), 1 when it is not, 2 when the folder is no output folder.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence

from pipeline.errors import PipelineError
from pipeline.printable import printable
from pipeline.status import FolderStatus, LeaseWatch, group_failures, read_status, to_json, verify
from pipeline.status_lines import failure_lines, status_lines

_REFRESH_S = 2.0
# Looking takes time, too, when a folder holds a million records: at most a quarter of all time goes into it.
_SHARE_OF_TIME = 4
_CLEAR = "\x1b[H\x1b[2J"
_EPILOG = "Local folders and s3:// alike. Nothing is changed."


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return _watch(options)
    except PipelineError as error:
        print(f"{type(error).__name__}: {printable(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read has seen enough; what is left in the buffer must not fail at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    description, _, exit_codes = __doc__.partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="jobs/status.py",
        description=description.partition(":")[0] + ".",
        epilog=f"{' '.join(exit_codes.split())} {_EPILOG}",
    )
    parser.add_argument("output_dir", help="what was a run's --output_dir")
    parser.add_argument("--follow", action="store_true", help="show it again and again until the run ends")
    parser.add_argument("--failures", type=int, metavar="N", default=0, help="list the N most frequent types of error")
    parser.add_argument("--verify", action="store_true", help="check that every merged row belongs to one record")
    parser.add_argument("--json", action="store_true", help="one JSON document, or with --follow one a line")
    return parser


def _watch(options: argparse.Namespace) -> int:
    watch = LeaseWatch(options.output_dir)
    shown = ""
    while True:
        began = time.monotonic()
        status = read_status(options.output_dir, watch)
        is_last = not (options.follow and status.is_going_on)
        problems = verify(options.output_dir, status.runs[0]) if options.verify and is_last and status.runs else []
        text = _as_json(status, problems, options) if options.json else _as_text(status, problems, options)
        if text != shown:
            is_screen = options.follow and not options.json and sys.stdout.isatty()
            print(f"{_CLEAR if is_screen else ''}{text}", flush=True)
            shown = text
        if is_last:
            return 0 if status.is_complete and not problems else 1
        time.sleep(max(_REFRESH_S, (_SHARE_OF_TIME - 1) * (time.monotonic() - began)))


def _as_text(status: FolderStatus, problems: Sequence[str], options: argparse.Namespace) -> str:
    lines = status_lines(status)
    newest = status.runs[0] if status.runs else None
    if newest and options.failures > 0 and newest.failures:
        lines += ["", f"failures of {printable(newest.run_id)}", *failure_lines(newest.failures, options.failures)]
    if newest and options.verify:
        lines += ["", *(f"PROBLEM  {printable(problem)}" for problem in problems)]
        if not problems:
            lines.append(f"verified {printable(newest.run_id)}: nothing is missing, and nothing is there twice")
    return "\n".join(lines)


def _as_json(status: FolderStatus, problems: Sequence[str], options: argparse.Namespace) -> str:
    told = to_json(status)
    if options.failures > 0 and status.runs:
        told["failures"] = [
            {
                "kind": kind,
                "error_type": error_type,
                "segments": len(members),
                "episodes": sorted({member.episode_index for member in members}),
                "error": members[0].error,
            }
            for kind, error_type, members in group_failures(status.runs[0].failures)[: options.failures]
        ]
    if options.verify:
        told["problems"] = list(problems)
    return json.dumps(told, indent=None if options.follow else 2, allow_nan=False)


if __name__ == "__main__":
    sys.exit(main())
