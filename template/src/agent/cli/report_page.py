"""The report of a call as one HTML file that loads nothing: a timeline, and each answer's wait."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from agent.cli.calls import Entry, head, length, timeline, when, who
from agent.reports import STAGES, Report, Said

# readable beside each other in light and dark
COLOURS = {
    "transcript": "#7aa2c8",
    "turn": "#b49ad6",
    "documents": "#6fb58a",
    "model": "#e0a458",
    "tools": "#d17b7b",
    "voice": "#5fb3b3",
    "other": "#a0a0a0",
}
STYLE = """
:root { color-scheme: light dark; --line: #8884;
        --quiet: color-mix(in srgb, CanvasText 65%, Canvas); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: 0 0 1.5rem; }
dt, time, .detail { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
ol { list-style: none; margin: 0; padding: 0; }
li { display: grid; grid-template-columns: 3.5rem 4.5rem 1fr; gap: .2rem .8rem;
     padding: .45rem 0; border-top: 1px solid var(--line); }
li > div { overflow-wrap: anywhere; }
.kind { font-weight: 600; }
.failed .kind, .failed .text { color: #d04040; }
.step, .closed, .lookup { font-size: .9rem; }
.detail { font-size: .85rem; }
.bar { display: flex; height: .6rem; margin: .3rem 0; border-radius: .2rem; overflow: hidden; }
.bar span { min-width: 2px; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1rem; font-size: .85rem; margin: 0 0 1rem; }
.legend i { display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem;
            margin-right: .3rem; vertical-align: -.1rem; }
@media (max-width: 32rem) {
  li { grid-template-columns: 3rem 1fr; }
  li > div { grid-column: 1 / -1; }
}
""".strip()


def page_of(report: Report) -> str:
    """The page; nothing in it is anything but text, whoever said it."""
    title = f"{when(report)}, {who(report)}"
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # what a caller said is shown to its owner only, and runs nothing
            '<meta http-equiv="Content-Security-Policy"'
            " content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>",
            f"<h1>{escape(title)}</h1>\n<dl>",
            *(f"<dt>{escape(name)}<dd>{escape(value)}" for name, value in head(report)),
            "</dl>",
            *_legend(report),
            "<ol>",
            *(_entry(entry, _longest(report)) for entry in timeline(report)),
            "</ol>\n</html>",
        ]
    )


def _legend(report: Report) -> Iterator[str]:
    used = [stage for stage in STAGES if any(stage in said.stages for said in report.said)]
    if used:
        marks = (
            f'<span><i style="background:{COLOURS[stage]}"></i>{escape(STAGES[stage])}</span>'
            for stage in used
        )
        yield f'<p class="legend">{"".join(marks)}</p>'


def _longest(report: Report) -> int:
    return max((said.heard_ms or 0 for said in report.said), default=0)


def _entry(entry: Entry, longest: int) -> str:
    bar = _bar(entry.said, longest) if entry.said is not None else ""
    detail = f'<div class="detail">{escape(entry.detail)}</div>' if entry.detail else ""
    return (
        f'<li class="{entry.kind}"><time>{length(entry.at)}</time>'
        f'<span class="kind">{entry.kind}</span>'
        f'<div><div class="text">{escape(entry.text)}</div>{bar}{detail}</div>'
    )


def _bar(said: Said, longest: int) -> str:
    """What the wait was spent on; the longest wait of the call is as wide as the page."""
    if not said.heard_ms:
        return ""
    parts = (
        f'<span style="flex:{said.stages[stage]};background:{COLOURS[stage]}"'
        f' title="{escape(STAGES[stage])}: {said.stages[stage]} ms"></span>'
        for stage in STAGES
        if stage in said.stages
    )
    width = 100 * said.heard_ms / longest
    return f'<div class="bar" style="width:{width:.1f}%">{"".join(parts)}</div>'
