"""What git takes for a conflict and is none: a version that both raised, or lines side by side.

A line of a TOML file has a key or requirements, a line of a workflow or a Dockerfile a pin. Where
the owner's line, the template's, and the one that both come from are about the same, that line is
settled first, by itself. What is left is merged as text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

TABLE = re.compile(r"\s*\[+([^\[\]]+)\]+\s*(#.*)?")
KEY = re.compile(r"\s*([\w.-]+)\s*=\s*[^\s\[{].*")
STRING = re.compile(r'"([^"\\]*)"')
REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z][\w.-]*) *(\[(?P<extras>[\w., -]*)\])? *(?P<range>[<>=!~][^;@]*?)? *"
    r"(?P<marker>;.*)?"
)
# an action, an image, and the version of what an action installs
PINS = (
    re.compile(r"(?P<before>\s*(- +)?uses: *)(?P<name>[^\s@]+)@(?P<pin>\S+( *# *v?\d[\w.]*)?)\s*"),
    re.compile(
        r"(?P<before>\s*(- +)?(image:|FROM|COPY --from=) *[\"']?)(?P<name>[\w./-]+(:\d+/[\w./-]+)?)"
        r"(?P<pin>(:[\w.-]+)?(@sha256:\w+)?)([\"'\s].*)?"
    ),
    re.compile(r"(?P<before>\s*)(?P<name>version: *[\"'])(?P<pin>\d[\w.]*)[\"'].*"),
)
NUMBER = re.compile(r"v?(?P<number>\d+(\.\d+)*)(?P<variant>(-[\w.-]+)?)")


ENDLESS = Version("9999999")


class Bounds(NamedTuple):
    """A range of versions: from the first to before the last, which is the first if it is one."""

    first: Version
    last: Version


class Line(NamedTuple):
    """What a line is about, and how two changes of it become one."""

    about: tuple[str, ...]
    merge: Callable[[str, str, str], str | None] = lambda base, ours, theirs: None


def settled(name: str, base: str, ours: str, theirs: str) -> tuple[list[str], list[str]]:
    """The texts, in which each line that can be settled by itself is the same; what was decided."""
    decided = []
    texts = [text.splitlines(keepends=True) for text in (base, ours, theirs)]
    read = toml_lines if name.endswith(".toml") else pin_lines
    known = [list(read(text)) for text in texts]
    to_ours, to_theirs = (pairs(known[0], other) for other in known[1:])
    for number in to_ours.keys() & to_theirs.keys():
        places = (number, to_ours[number], to_theirs[number])
        three = [text[place] for text, place in zip(texts, places, strict=True)]
        line = merged(three, known[0][number].merge)
        if line is not None and len(set(three)) == 3:
            decided.append(line)
        for text, place in zip(texts, places, strict=True):
            text[place] = text[place] if line is None else line
    return ["".join(text) for text in texts], decided


def pairs(old: Sequence[Line], new: Sequence[Line]) -> dict[int, int]:
    """Which line of `new` each line of `old` has become."""
    before, after = ([line.about for line in lines] for lines in (old, new))
    found = SequenceMatcher(None, before, after, autojunk=False).get_matching_blocks()
    return {block.a + step: block.b + step for block in found for step in range(block.size)}


def merged(three: Iterable[str | None], merge: Callable[[str, str, str], str | None]) -> str | None:
    """What one has changed, or both to the same; else `merge` decides, or cannot: None."""
    base, ours, theirs = (text or "" for text in three)
    if ours in (base, theirs):
        return theirs
    return ours if theirs == base else merge(base, ours, theirs)


# ---------------------------------------------------------------------- TOML


def toml_lines(lines: Sequence[str]) -> Iterator[Line]:
    """Keys and requirements, each with its table."""
    table = ""
    for line in lines:
        if found := TABLE.fullmatch(line.rstrip()):
            table = found[1].strip()
        if (found := KEY.fullmatch(line.rstrip())) and found[1] == "requires-python":
            yield Line((table, found[1]), narrower)
        elif found:
            yield Line((table, found[1]))  # two new values are for the owner to decide
        else:
            parts = STRING.split(line)
            parts[1::2] = [named(part) for part in parts[1::2]]
            yield Line((table, *parts), merged_requirements)


def narrower(base: str, ours: str, theirs: str) -> str | None:
    """A line with the versions, of Python, that both allow."""
    parts = [STRING.split(line) for line in (ours, theirs)]
    mine, its = (bounds(each[1]) if len(each) == 3 else None for each in parts)
    if mine is None or its is None:
        return None
    both = Bounds(max(mine.first, its.first), min(mine.last, its.last))
    if both.first >= both.last:
        return None
    before, _, after = parts[0]
    return f'{before}"{as_range(both)}"{after}'


def as_range(both: Bounds) -> str:
    """As a requirement writes it."""
    return f">={both.first}" + (f",<{both.last}" if both.last < ENDLESS else "")


def named(text: str) -> str:
    """The package that a requirement names; other text as it is."""
    found = REQUIREMENT.fullmatch(text)
    return re.sub(r"[-_.]+", "-", found["name"]).lower() if found else text


def merged_requirements(base: str, ours: str, theirs: str) -> str | None:
    """A line with the requirements of both."""
    parts = [STRING.split(line) for line in (base, ours, theirs)]
    strings = [merged(three, merged_requirement) for three in zip(*parts, strict=True)]
    if None in strings:
        return None
    return "".join(f'"{text}"' if place % 2 else str(text) for place, text in enumerate(strings))


def merged_requirement(base: str, ours: str, theirs: str) -> str | None:
    """The extras of both, and the newer range."""
    found = [REQUIREMENT.fullmatch(text) for text in (base, ours, theirs)]
    three = [match.groupdict() for match in found if match]
    if len(three) < 3:
        return None
    mine, its, before = (
        {*re.findall(r"[\w.-]+", each["extras"] or "")} for each in (*three[1:], three[0])
    )
    extras = ",".join(sorted((mine & its) | ((mine ^ its) - before)))
    range_ = merged((each["range"] for each in three), newer_range)
    marker = merged((each["marker"] for each in three), lambda *_: None)
    if range_ is None or marker is None:
        return None
    return three[2]["name"] + (f"[{extras}]" if extras else "") + range_ + marker


def newer_range(base: str, ours: str, theirs: str) -> str | None:
    """From the newer first version to the newer last one, unless the owner holds a version back."""
    before, mine, its = bounds(base), bounds(ours), bounds(theirs)
    if not before or not mine or not its:
        return None
    if mine.first == mine.last:
        return ours if its.first <= mine.first and mine.first < its.last else None
    if mine.last < before.last:
        return None
    both = Bounds(max(mine.first, its.first), max(mine.last, its.last))
    if both in (its, mine):
        return theirs if both == its else ours
    return as_range(both)


def bounds(text: str) -> Bounds | None:
    """The bounds of a range; None if that is not all that it says."""
    try:
        clauses = {one.operator: one.version for one in SpecifierSet(text)}
        first = Version(clauses.get(">=") or clauses.get("~=") or clauses["=="])
        last = Version(clauses["<"]) if "<" in clauses else ENDLESS
    except (InvalidSpecifier, InvalidVersion, KeyError):
        return None
    if "~=" in clauses:
        *_, before_last, _ = 0, *first.release
        last = Version(".".join(map(str, (*first.release[:-2], before_last + 1))))
    elif "==" in clauses:
        last = first
    known = clauses.keys() in ({">="}, {">=", "<"}, {"~="}, {"=="})
    return Bounds(first, last) if known else None


# ---------------------------------------------------------------------- pins


def pin_lines(lines: Sequence[str]) -> Iterator[Line]:
    """Pins, each with what stands around it; other lines as they are."""
    for line in lines:
        found = pin_in(line)
        yield (
            Line((line[: found.start("pin")], line[found.end("pin") :]), newer_pin)
            if found
            else Line((line,))
        )


def pin_in(line: str) -> re.Match[str] | None:
    """The pin of a line, if it has one."""
    return next(filter(None, (kind.fullmatch(line.rstrip("\r\n")) for kind in PINS)), None)


def newer_pin(base: str, ours: str, theirs: str) -> str | None:
    """The newer version of the same variant; the template's if only the digests differ."""
    before, mine, its = (version_of(line) for line in (base, ours, theirs))
    if not before or not mine or not its or not before[1] == mine[1] == its[1] or mine < before:
        return None
    return ours if mine > its else theirs


def version_of(line: str) -> tuple[tuple[int, ...], str] | None:
    """The version of a pin, and its variant such as -alpine; of a commit, that in the comment."""
    found = pin_in(line)
    tag = re.split(r" *# *", found["pin"])[-1].lstrip(":").partition("@")[0] if found else ""
    version = NUMBER.fullmatch(tag)
    return (tuple(map(int, version["number"].split("."))), version["variant"]) if version else None
