"""What of a report may be kept: the owner's settings say whether words, cards and numbers are."""

from __future__ import annotations

from dataclasses import replace

from agent.redaction import redacted
from agent.reports import Report
from agent.settings import Settings


def as_kept(report: Report, settings: Settings) -> Report:
    """The report without words if none are kept, and without cards or numbers if they are not."""
    if not settings.keep_transcripts:
        report = replace(
            report,
            said=[replace(said, text="") for said in report.said],
            tools=[replace(tool, arguments="", result="") for tool in report.tools],
            lookups=[replace(lookup, question="") for lookup in report.lookups],
        )
    if settings.redact == "none":
        return report

    def fit(text: str) -> str:
        return redacted(text, settings.redact)

    return replace(
        report,
        caller=None if report.caller is None else fit(report.caller),
        said=[replace(said, text=fit(said.text)) for said in report.said],
        tools=[
            replace(tool, arguments=fit(tool.arguments), result=fit(tool.result))
            for tool in report.tools
        ],
        lookups=[replace(lookup, question=fit(lookup.question)) for lookup in report.lookups],
        failures=[replace(failure, problem=fit(failure.problem)) for failure in report.failures],
    )
