"""What a caller waits for is split into stages that add up to all of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.lifecycle.waits import Waits
from agent.reports import STAGES


def split(*intervals: tuple[str, float, float], until: float) -> dict[str, int]:
    """The wait from 100 s on, for parts that worked from and until so many seconds after that."""
    waits = Waits()
    for stage, began, ended in intervals:
        waits.add(stage, 100 + began, 100 + ended)
    return waits.split(100, 100 + until, rest="other")


def test_stages_one_after_another_have_their_own_times() -> None:
    spent = split(
        ("transcript", 0, 0.2),
        ("turn", 0.2, 0.5),
        ("documents", 0.5, 0.55),
        ("model", 0.55, 1.0),
        ("voice", 1.0, 1.2),
        until=1.25,
    )

    assert spent == {
        **{"transcript": 200, "turn": 300, "documents": 50, "model": 450, "voice": 200},
        "other": 50,
    }


def test_a_model_that_is_ready_before_the_turn_is_over_has_made_nobody_wait() -> None:
    spent = split(("transcript", 0, 0.2), ("turn", 0.2, 0.9), ("model", 0.2, 0.6), until=0.9)

    assert spent == {"transcript": 200, "turn": 700}


def test_a_reply_that_is_a_tool_call_counts_as_the_models_and_the_tools_time() -> None:
    spent = split(("model", 0, 0.5), ("tools", 0.5, 1.5), ("model", 1.5, 1.8), until=1.8)

    assert spent == {"model": 800, "tools": 1000}


def test_what_was_looked_up_inside_a_tool_is_not_the_tools_time() -> None:
    assert split(("tools", 0, 1), ("documents", 0.2, 0.9), until=1) == {
        **{"documents": 700, "other": 200, "tools": 100}
    }


def test_what_was_before_the_words_or_after_the_sound_does_not_count() -> None:
    assert split(("model", -5, -4), ("tools", -1, 0.3), ("voice", 0.5, 2), until=0.9) == {
        **{"tools": 300, "other": 200, "voice": 400}
    }


def test_the_wait_for_the_next_answer_begins_anew() -> None:
    waits = Waits()
    waits.add("turn", 100, 109)
    waits.add("model", 109, 110)
    waits.split(100, 110, rest="other")
    waits.add("model", 120, 121)

    assert waits.split(119, 121, rest="other") == {"other": 1000, "model": 1000}


INTERVALS = st.lists(
    st.tuples(
        st.sampled_from([*STAGES]),
        st.floats(-5, 20, allow_nan=False),
        st.floats(0, 10, allow_nan=False),
    ),
    max_size=12,
)


@given(intervals=INTERVALS, until=st.floats(0, 20, allow_nan=False))
def test_stages_add_up_to_the_whole_wait(
    intervals: list[tuple[str, float, float]], until: float
) -> None:
    spent = split(*[(stage, at, at + took) for stage, at, took in intervals], until=until)

    assert sum(spent.values()) == round(until * 1000)
    assert all(ms > 0 for ms in spent.values())
