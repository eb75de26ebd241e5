"""A segment alone in a real process: it lives and answers, or dies, and the ward tells how."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from ward_patients import BROKEN_ROAD, ROAD

from pipeline.errors import StageError
from pipeline.stages.alone import EXIT_SICK
from pipeline.stages.ward import Death, Ward


@pytest.fixture(scope="module")
def ward() -> Iterator[Ward]:
    ward = Ward(ROAD)
    yield ward
    ward.close()


def row(ailment: str, number: int = 1) -> dict:
    return {
        "key": f"k{number}",
        "ailment": ailment,
        "number": number,
        "error": "",
        "error_type": "",
        "failed_stage": "",
    }


def test_the_healthy_share_one_process(ward):
    answers = [ward.treat(row("none", number)) for number in (1, 2, 3)]
    assert [answer["answer"] for answer in answers] == [2, 4, 6]
    assert len({answer["pid"] for answer in answers}) == 1


def test_what_a_library_prints_is_no_answer(ward):
    assert ward.treat(row("prints", 4))["answer"] == 8


def test_a_rows_own_error_comes_back_as_a_failed_row(ward):
    answer = ward.treat(row("raises"))
    assert (answer["error_type"], answer["failed_stage"]) == ("ValueError", "load")


@pytest.mark.parametrize(
    ("ailment", "signal", "exit_code", "words"),
    [
        ("segfault", "SIGSEGV", None, "string_at"),
        ("killed", "SIGKILL", None, "segment k9"),
        ("exits", "", 7, "segment k9"),
        ("sick", "", EXIT_SICK, "unspecified launch failure"),
    ],
)
def test_a_death_is_told_with_signal_or_exit_code_and_last_words(ward, ailment, signal, exit_code, words):
    ward.treat(row("none", 1))
    death = ward.treat(row(ailment, 9))
    assert isinstance(death, Death)
    assert (death.signal, death.exit_code) == (signal, exit_code)
    assert words in death.last_words
    assert "segment k1" not in death.last_words, "only what was said about this segment"
    assert len(death.last_words) <= 4096
    assert (signal or str(exit_code)) in str(death)
    assert ward.treat(row("none", 5))["answer"] == 10, "the next one gets a fresh process"


def test_the_line_that_names_a_fault_is_the_one_that_is_shown():
    words = "Fatal Python error: Segmentation fault\n\nCurrent thread:\n  File x\n"
    assert str(Death("SIGSEGV", None, words)) == "killed by SIGSEGV, last words: Fatal Python error: Segmentation fault"
    assert str(Death("SIGKILL", None, " ")) == "killed by SIGKILL, without a word"


def test_a_road_that_cannot_be_built_is_nobodys_fault():
    with pytest.raises(StageError, match="no such checkpoint"):
        Ward(BROKEN_ROAD).treat(row("none"))
