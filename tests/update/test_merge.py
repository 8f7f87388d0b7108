"""Lines that both have changed: what is settled by itself, and what is left to the owner."""

from __future__ import annotations

import pytest

from agent_update.merge import settled
from agent_update.scratch import with_line_ends_of

SDK = '    "livekit-agents>=1.8.9,<1.9",\n'
NEXT_SDK = '    "livekit-agents>=1.9.2,<1.10",\n'
CHECKOUT = "      - uses: actions/checkout@3d3c # v7.0.1\n"
NEXT_CHECKOUT = "      - uses: actions/checkout@4e4d # v7.2.0\n"


def merged(name: str, base: str, ours: str, theirs: str) -> tuple[str, bool]:
    """The line that the three have in common, if there is one, and whether it is reported."""
    texts, lines = settled(name, base, ours, theirs)
    return texts[0] if len(set(texts)) == 1 else "", bool(lines)


@pytest.mark.parametrize(
    ("ours", "line"),
    [
        # `uv add "livekit-agents[openai]"`, and as LiveKit's pages say it
        ('"livekit-agents[openai]>=1.8.9,<1.9"', '"livekit-agents[openai]>=1.9.2,<1.10"'),
        ('"livekit-agents[openai,silero]~=1.8"', '"livekit-agents[openai,silero]>=1.9.2,<2"'),
        # a bot
        ('"livekit-agents>=1.8.9,<1.12"', '"livekit-agents>=1.9.2,<1.12"'),
        ('"livekit-agents>=1.9.5,<1.10"', '"livekit-agents>=1.9.5,<1.10"'),
        ('"livekit-agents>=1.8.9"', '"livekit-agents>=1.9.2"'),
        ('"livekit-agents==1.9.4"', '"livekit-agents==1.9.4"'),
        # held back, or of another kind: their owner has to decide
        ('"livekit-agents>=1.8.9,<1.8.12"', ""),
        ('"livekit-agents==1.8.9"', ""),
        ('"livekit-agents>=1.8.9,!=1.9.2"', ""),
        ('"livekit-agents @ git+https://example.com/agents"', ""),
        ('"livekit-agents"', ""),
        ('"livekit-agents-fork>=1"', ""),
    ],
)
def test_a_requirement_has_the_extras_of_both_and_the_newer_range(ours: str, line: str) -> None:
    result = merged("pyproject.toml", SDK, f"    {ours},\n", NEXT_SDK)
    assert result == ((f"    {line},\n", True) if line else ("", False))


@pytest.mark.parametrize(
    ("ours", "line"),
    [
        (">=3.12", ">=3.12,<3.15"),
        (">=3.11,<3.14", ">=3.11,<3.14"),
        (">=3.12,<4", ">=3.12,<3.15"),
        ("==3.13.*", ""),
        (">=3.15", ""),
    ],
)
def test_of_python_the_versions_stay_that_both_allow(ours: str, line: str) -> None:
    lines = [f'requires-python = "{range_}"\n' for range_ in (">=3.11", ours, ">=3.11,<3.15")]
    result = merged("pyproject.toml", *lines)
    assert result == ((f'requires-python = "{line}"\n', True) if line else ("", False))


def test_an_extra_that_one_has_dropped_is_gone() -> None:
    lines = ['"redis[a,b]>=1",\n', '"redis[b,c]>=1",\n', '"redis[a,b,d]>=2",\n']
    assert merged("pyproject.toml", *lines) == ('"redis[b,c,d]>=2",\n', True)


def test_requirements_on_one_line_are_merged_one_by_one() -> None:
    lines = [
        'local = ["fastembed>=0.9.1,<0.10", "onnx>=1"]\n',
        'local = ["fastembed>=0.9.4,<0.10", "onnx>=1"]\n',
        'local = ["fastembed>=0.9.1,<0.11", "onnx>=2"]\n',
    ]
    assert merged("pyproject.toml", *lines) == (
        'local = ["fastembed>=0.9.4,<0.11", "onnx>=2"]\n',
        True,
    )


def test_a_key_that_one_has_changed_is_no_conflict_beside_one_that_the_other_has() -> None:
    base, ours, theirs = (
        f'[project]\nname = "desk"\nversion = "{version}"\ndescription = "{description}"\n'
        for version, description in (("0.1.0", "It."), ("0.2.0", "It."), ("0.1.0", "That."))
    )
    text = base.replace("0.1.0", "0.2.0").replace("It.", "That.")
    assert merged("pyproject.toml", base, ours, theirs) == (text, False)


def test_two_new_values_of_a_key_are_left_to_the_owner() -> None:
    assert merged("pyproject.toml", "a = 1\n", "a = 2\n", "a = 3\n") == ("", False)


def test_a_key_of_another_table_is_another_key() -> None:
    texts, _ = settled("a.toml", "[a]\nx = 1\n", "[b]\nx = 1\n", "[a]\nx = 2\n")
    assert texts[1] == "[b]\nx = 1\n"


@pytest.mark.parametrize(
    ("name", "three", "line"),
    [
        ("ci.yml", (CHECKOUT, "@5f5e # v8.0.0", NEXT_CHECKOUT), "@5f5e # v8.0.0"),
        ("ci.yml", (CHECKOUT, "@5f5e # v7.1.9", NEXT_CHECKOUT), NEXT_CHECKOUT),
        ("ci.yml", (CHECKOUT, "@v8", NEXT_CHECKOUT), "@v8"),
        ("ci.yml", (CHECKOUT, "@6a6a # v6.0.0", NEXT_CHECKOUT), ""),
        ("ci.yml", (CHECKOUT, "@main", NEXT_CHECKOUT), ""),
    ],
)
def test_of_two_actions_the_newer_one_is_kept(
    name: str, three: tuple[str, str, str], line: str
) -> None:
    action = CHECKOUT.partition("@")[0]
    base, ours, theirs = (f"{action}{text}\n" if text[0] == "@" else text for text in three)
    expected = f"{action}{line}\n" if line.startswith("@") else line
    assert merged(name, base, ours, theirs) == (expected, bool(expected))


@pytest.mark.parametrize(
    ("line", "tags", "tag"),
    [
        ("FROM python{} AS build\n", (":3.11-slim", ":3.13-slim", ":3.12-slim"), ":3.13-slim"),
        ("FROM python{} AS build\n", (":3.11-slim", ":3.13-alpine", ":3.12-slim"), None),
        (
            "COPY --from=ghcr.io/astral-sh/uv{} /uv /bin/\n",
            (":0.9.9", ":0.9.10", ":0.10.1"),
            ":0.10.1",
        ),
        ("    image: livekit/livekit-server{}\n", (":v1.13.5", ":v1.14.0", ":v1.13.9"), ":v1.14.0"),
        ("  image: redis{}\n", (":8@sha256:1a", ":8@sha256:2b", ":8@sha256:3c"), ":8@sha256:3c"),
        ("          version: {}\n", ('"0.13.9"', '"0.14.0"', '"0.13.12"'), '"0.14.0"'),
        ("  image: redis{}\n", (":8", ":latest", ":9"), None),
    ],
)
def test_of_two_images_of_one_kind_the_newer_one_is_kept(
    line: str, tags: tuple[str, str, str], tag: str | None
) -> None:
    base, ours, theirs = (line.format(one) for one in tags)
    expected = ("", False) if tag is None else (line.format(tag), True)
    assert merged("compose.yaml", base, ours, theirs) == expected


def test_a_line_of_the_owners_that_looks_like_the_templates_stays() -> None:
    job = f"jobs:\n{CHECKOUT}"
    own = "  mine:\n      - uses: actions/checkout@9f9f # v5.0.0\n"
    texts, _ = settled("ci.yml", job, job + own, f"jobs:\n{NEXT_CHECKOUT}")
    assert texts[1] == f"jobs:\n{NEXT_CHECKOUT}{own}"


@pytest.mark.parametrize(
    ("before", "text", "result"),
    [
        (b"a\r\nb\r\n", b"a\nnew\nb\n", b"a\r\nnew\r\nb\r\n"),
        (b"a\r\nb\nc\r\n", b"a\nb\nc\nnew\n", b"a\r\nb\nc\r\nnew\r\n"),
        (b"a\nb\nc\r\n", b"a\nnew\nb\nc\n", b"a\nnew\nb\nc\r\n"),
        (b"a\r\nb", b"a\nb\n", b"a\r\nb\r\n"),
        (b"a\r\n", b"", b""),
    ],
)
def test_a_files_lines_keep_their_ends(before: bytes, text: bytes, result: bytes) -> None:
    assert with_line_ends_of(before, text) == result
