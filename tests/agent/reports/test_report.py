"""A report is plain data: whole after a journey as JSON, and readable when newer."""

from __future__ import annotations

import pytest

from agent.lifecycle.draft import ReportDraft
from agent.reports import NewerReport, Report, Said
from tests.agent.reports.made import newer_report, report


def test_a_report_is_the_same_after_a_journey_as_json() -> None:
    said = [Said(1.5, "assistant", "Hello 🦊", heard_ms=5, stages={"model": 5})]
    made = report(said=said)
    newer = made.to_json()[:-1] + b',"added_later":1}'

    assert Report.from_json(made.to_json()) == made
    assert Report.from_json(newer).said == said


def test_a_report_of_a_newer_layout_is_known_for_one_whether_it_fits_or_not() -> None:
    for one in newer_report(), newer_report(steps=[]):
        with pytest.raises(NewerReport, match="newer version of this project: update this one"):
            Report.from_json(one.to_json())


def test_half_a_character_is_in_no_report() -> None:
    draft = ReportDraft()
    draft.add_said("user", "half a \ud83d", draft.began)
    draft.add_tool("note", '{"text":"\ud83d"}', "\ud83d", "ok", draft.began, 1)

    assert report(said=draft.said, tools=draft.tools).to_json()
    assert draft.said[0].text == "half a ?"
