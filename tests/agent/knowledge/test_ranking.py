"""Which passages a question gets, whatever the store: the best, and not all of one section."""

from __future__ import annotations

from agent.knowledge.ranking import Candidate, rank


def order(passages: list[tuple[str, float]], limit: int) -> list[str]:
    """The sections of what is chosen; a passage is its section and its cosine."""
    candidates = {at: Candidate(meaning=cosine) for at, (_, cosine) in enumerate(passages)}
    chosen = rank(candidates, lambda at: passages[at][0], limit)
    return [f"{passages[at][0]} {passages[at][1]:g}" for at, _, _ in chosen]


def test_no_section_comes_twice_before_each_other_one_has_come_once() -> None:
    passages = [("long", 0.9), ("long", 0.8), ("long", 0.7), ("other", 0.5), ("third", 0.1)]
    assert order(passages, 3) == ["long 0.9", "other 0.5", "third 0.1"]
    assert order(passages, 4) == ["long 0.9", "other 0.5", "third 0.1", "long 0.8"]
    assert order(passages, 9) == ["long 0.9", "other 0.5", "third 0.1", "long 0.8", "long 0.7"]


def test_a_section_alone_gives_all_that_is_asked_for() -> None:
    assert order([("long", 0.7), ("long", 0.9), ("long", 0.8)], 2) == ["long 0.9", "long 0.8"]


def test_without_repetition_the_score_alone_decides() -> None:
    passages = [("one", 0.1), ("two", 0.3), ("three", 0.2)]
    assert order(passages, 2) == ["two 0.3", "three 0.2"]
    assert order(passages, 0) == []


def test_only_as_many_sections_are_asked_for_as_are_needed() -> None:
    """A store may have to read each."""
    asked: list[int] = []

    def section_of(at: int) -> int:
        asked.append(at)
        return at

    rank({at: Candidate(meaning=1 - at / 100) for at in range(100)}, section_of, 3)
    assert asked == [0, 1, 2]
