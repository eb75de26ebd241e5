"""Who works on what: whose hands a segment was in when they died, and how a run comes to rest."""

from __future__ import annotations

from pipeline.stages.register import Register


def register() -> Register:
    return Register({"load": 2, "infer": 1, "record": 1})


def test_what_is_begun_is_in_hand_until_it_ends():
    book = register()
    assert book.begin("load", "a", "k1")
    assert book.begin("infer", "b", "k2")
    assert book.attendance().in_hand == {"load": 1, "infer": 1}
    assert not book.attendance().is_idle
    book.end("load", "k1")
    book.end("infer", "k2")
    assert book.attendance().is_idle
    assert book.attendance().num_done == 0, "a segment is done when the last stage is"


def test_a_new_process_under_an_old_name_buries_what_the_old_one_had():
    book = register()
    book.born("infer", "b")
    book.begin("infer", "b", "k1")
    book.begin("infer", "b", "k2")
    book.begin("infer", "c", "k3")
    book.born("infer", "b")
    assert (book.deaths("k1"), book.deaths("k2")) == (1, 1)
    assert book.attendance().in_hand == {"infer": 1}, "the other one lives"
    assert book.attendance().births == {"infer": 2}


def test_a_segment_that_is_begun_again_has_outlived_somebody():
    book = register()
    for worker in ("a", "b", "c"):
        book.begin("infer", worker, "k")
    assert book.deaths("k") == 3, "the last one has not come back either"
    book.end("infer", "k")
    assert book.deaths("k") == 2


def test_a_segment_that_is_recorded_is_forgotten():
    book = register()
    book.begin("infer", "a", "k")
    book.begin("infer", "b", "k")
    book.end("infer", "k")
    book.begin("record", "c", "k")
    book.end("record", "k")
    assert (book.deaths("k"), book.attendance().num_done) == (0, 1)


def test_once_it_stops_only_records_are_finished():
    book = register()
    book.begin("infer", "a", "k1")
    book.stop()
    assert not book.begin("load", "b", "k2")
    assert not book.begin("infer", "a", "k3")
    assert book.begin("record", "c", "k1"), "what was computed is kept"
    book.end("infer", "k1")
    book.end("record", "k1")
    assert book.attendance().is_idle


def test_seconds_of_a_process_that_died_still_count():
    book = register()
    book.busy("a", 1, 2.0)
    book.busy("a", 1, 3.0)
    book.busy("a", 2, 0.5)
    assert book.attendance().busy_s == 3.5
    assert book.attendance().actors == {"load": 2, "infer": 1, "record": 1}
