"""Any name is either legal in every file that has it, or refused before a file is written."""

from __future__ import annotations

import re
import sys
import tomllib
from io import StringIO
from pathlib import Path

import pytest
import yaml
from dotenv import dotenv_values
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jinja2 import UndefinedError
from jinja2.meta import find_undeclared_variables
from markdown_it import MarkdownIt

from tests.support import quick
from tests.support.templates import (
    ASKED,
    AWKWARD_NAMES,
    CHOICES,
    COMBINATIONS,
    CONFIG,
    FREE_TEXT_IN,
    WORK_TREE,
    Template,
    cookiecut,
    copy_by_hand,
    identify,
    literal,
)

SENTENCES = {
    "project_name": "Write a name of 1 to 80 printable characters on one line, such as Front Desk.",
    "project_slug": (
        "Write 1 to 60 of a-z, 0-9 and single dashes, with a letter first and no dash last, "
        "such as front-desk."
    ),
    "agent_name": (
        "Write 1 to 63 of A-Z, a-z, 0-9, dots, dashes and underscores, "
        "with a letter or digit first, such as front-desk."
    ),
    "description": (
        "Write a description of 1 to 200 printable characters on one line, "
        "such as Answers the phone of a small hotel."
    ),
    "author_name": (
        "Write an owner of 1 to 100 printable characters on one line, such as Ada Lovelace."
    ),
}
LIMITS = {"project_name": 80, "description": 200, "author_name": 100}
# the files with slugs and dispatch names
WORDS_IN = (
    *(
        ".copier-answers.yml",
        ".env.example",
        ".template.toml",
        "README.md",
        "compose.yaml",
        "deploy/kubernetes.yaml",
        "deploy/telephony/dispatch-rule.json",
        "pyproject.toml",
    ),
    "docs/agent/how-to.md",
    "src/agent/defaults.toml",
)
LOOK_ALIKES = [
    *(
        '"',
        "'",
        "\\",
        '\\"',
        "\\n",
        "\\u0041",
        "\\N{DASH}",
        '"""',
        "'''",
        "`",
        "```",
        "~~~",
        "%",
        "%s",
        "{}",
        "{0}",
    ),
    *(
        "{{ 7 * 7 }}",
        "{{",
        "}}",
        "{% raw %}",
        "{% endraw %}",
        "{#",
        "#}",
        "# % if x",
        "# %",
        "{{ cookiecutter._x }}",
    ),
    *(
        "${HOME}",
        "$HOME",
        "$(id)",
        "`id`",
        "; rm x",
        "&& x",
        "| x",
        "> x",
        ">",
        "!x",
        "!!",
        "*",
        "~",
        "\\$x",
    ),
    *(
        "key: value",
        ": ",
        " #",
        "# x",
        "- x",
        "-",
        "---",
        "...",
        "? x",
        "!!str x",
        "&a",
        "*a",
        "%YAML 1.1",
        "@x",
        "|-",
    ),
    *(
        "[table]",
        "[[x]]",
        "x = 1",
        "]",
        "}",
        ",",
        "null",
        "yes",
        "3.10",
        "1e3",
        "0x1F",
        "2026-01-01",
        "true",
    ),
    *("FROM x", "RUN x", "ARG x=1", "ENV x=$y", "COPY . .", "<<EOF", "EOF", "\\ x"),
    *(
        "*x*",
        "**x**",
        "_x_",
        "__x__",
        "a_b",
        "~~x~~",
        "[x](y)",
        "![x](y)",
        "[x]: /y",
        "<b>",
        "</b>",
        "<!-- x -->",
    ),
    *(
        "<a@b.c>",
        "<https://x.y>",
        "&amp;",
        "&#65;",
        "&copy",
        "1. x",
        "1) x",
        "12.",
        "+ x",
        "+",
        "=",
        "===",
        "***",
    ),
    *(
        "___",
        "##",
        "C#",
        "a #",
        "| a | b |",
        "x | y",
        "[^1]",
        "- [ ] x",
        "<details>",
        "<?x",
        "<!x",
        "1234567890. x",
    ),
    *(
        "🎙",
        "👩🚀",
        "é",
        "e\u0301",
        "\u0301",
        "שלום",
        "مرحبا",
        "漢字",
        "ß",
        "İ",
        "ﬀ",
        "\U0001d538",
        "\U000e0100",
    ),
]
REFUSED = [
    *((name, "") for name in SENTENCES),
    *((name, "x" * 201) for name in SENTENCES),
    *((name, "two\nlines") for name in SENTENCES),
    *((name, "trailing newline\n") for name in SENTENCES),
    ("project_name", "   "),
    ("project_name", "bell\x07"),
    ("project_slug", "Front-Desk"),
    ("project_slug", "../elsewhere"),
    ("project_slug", "a/b"),
    ("project_slug", "3-bears"),
    ("project_slug", "dash-"),
    ("project_slug", "slug\n"),
    ("project_slug", "{{ project_name }}"),
    ("agent_name", "-x"),
    ("agent_name", "café"),
    ("agent_name", "x\n"),
]


def is_legal(text: str, limit: int) -> bool:
    """Whether free text may be an answer."""
    return text.isprintable() and text == text.strip() and 0 < len(text) <= limit


@given(st.text(min_size=1, max_size=80) | st.from_regex(r"[a-z0-9 _.-]{1,80}", fullmatch=True))
@settings(max_examples=300, deadline=None, derandomize=True)
@example("🎙🎙🎙")
@example("3 Bears")
@example("agent")
@example("Redis")
@example("a" * 57 + "-" + "b" * 22)
@example("-" * 80)
@example("İstanbul")
def test_any_accepted_name_gives_a_legal_slug_and_agent_name(name: str) -> None:
    answers = quick.settle(project_name=name)
    refusals = quick.refusals(answers)
    if is_legal(name, LIMITS["project_name"]):
        assert refusals == []
    else:
        assert refusals[0] == f"project_name: {SENTENCES['project_name']}"
    assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", answers["project_slug"])
    assert len(answers["project_slug"]) <= 60
    assert answers["project_slug"] not in CONFIG["taken_names"]["default"].split()
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", answers["agent_name"])


def typed(limit: int) -> st.SearchStrategy[str]:
    """Legal free text: printable characters, and pieces that look like a file's own syntax."""
    printable = st.characters(exclude_categories=["C", "Z"], include_characters=" ")
    parts = st.lists(
        st.sampled_from(LOOK_ALIKES) | st.text(printable, min_size=1, max_size=12),
        min_size=1,
        max_size=12,
    )
    joined = st.builds(str.join, st.sampled_from(["", " "]), parts)
    return joined.map(lambda text: text[:limit].strip()).filter(lambda text: is_legal(text, limit))


def read_markdown(text: str) -> list[str]:
    """The text of a heading and of the paragraph below it; neither has any markup."""
    for flavour in ("commonmark", "gfm-like"):
        blocks = MarkdownIt(flavour, {"linkify": False}).parse(text)
        assert [block.type for block in blocks[:6]] == [
            *("heading_open", "inline", "heading_close"),
            *("paragraph_open", "inline", "paragraph_close"),
        ], text[:300]
        said = [block.children or [] for block in blocks[:6] if block.type == "inline"]
        assert {child.type for children in said for child in children} <= {
            "text",
            "text_special",
        }, text[:300]
    return ["".join(child.content for child in children) for children in said]


def read_back(files: dict[str, str]) -> dict[str, list[str]]:
    """Every free text in the files, as their readers parse it."""
    answers = yaml.safe_load(files[".copier-answers.yml"])
    about = tomllib.loads(files["pyproject.toml"])["project"]
    name, description = read_markdown(files["README.md"].split("\n```sh\n")[0])
    owner = re.search(
        r"^ *Copyright (?:\(c\) )?(.*?)(?:\. All rights reserved\.)?$",
        files["LICENSE"],
        re.MULTILINE,
    )
    assert owner
    return {
        "project_name": [answers["project_name"], name],
        "description": [answers["description"], about["description"], description],
        "author_name": [
            answers["author_name"],
            *(author["name"] for author in about["authors"]),
            owner[1],
        ],
    }


@given(typed(80), typed(200), typed(100), st.sampled_from(CHOICES["license"]))
@settings(max_examples=400, deadline=None, derandomize=True)
@example(*("x" * LIMITS[name] for name in LIMITS), "MIT")
@example(*(AWKWARD_NAMES[name] for name in LIMITS), "Apache-2.0")
def test_whatever_is_typed_comes_back_from_every_file_it_reaches(
    name: str, description: str, author: str, license: str
) -> None:
    names = {"project_name": name, "description": description, "author_name": author}
    answers = quick.settle(**names)
    assert quick.refusals(answers) == []
    files = quick.render(*FREE_TEXT_IN, **(answers | {"license": license}))
    assert read_back(files) == {
        question: [text] * (2 if question == "project_name" else 3)
        for question, text in names.items()
    }


@pytest.mark.parametrize("text", LOOK_ALIKES)
def test_what_looks_like_a_part_of_a_file_is_text_alone_first_and_last(text: str) -> None:
    for line in (text.strip(), f"{text} last".strip(), f"first {text}".strip()):
        files = quick.render(*FREE_TEXT_IN, project_name=line, description=line, author_name=line)
        assert {answer for answers in read_back(files).values() for answer in answers} == {line}


def test_every_printable_character_comes_back_from_every_file_it_reaches() -> None:
    printable = "".join(
        character for character in map(chr, range(sys.maxunicode + 1)) if character.isprintable()
    )
    assert len(printable) > 140_000
    kept = {name: quick.TEMPLATES[name] for name in FREE_TEXT_IN}
    recorded = quick.settle()
    for first in range(0, len(printable), 198):
        # too long for a name, but the templates accept it
        text = f"a{printable[first : first + 198]}z"
        names = {"project_name": text, "description": text, "author_name": text}
        answers = recorded | names
        asked = {name: answers[name] for name in ASKED}
        files = {
            name: template.render(answers, _copier_answers=asked) for name, template in kept.items()
        }
        found = {answer for answers in read_back(files).values() for answer in answers}
        assert found == {text}, (
            f"one of U+{ord(printable[first]):04X} and the next 197 does not come back"
        )


@pytest.mark.parametrize(
    "name",
    [
        "My Agent",
        "Zoë & Söhne",
        "O'Neil's (2nd) desk, no. 5!",
        "front_desk: 24/7",
        "C# + R",
        "3 < 4 > 2",
        "R&D of AT&T",
        "Bär-Café #1",
    ],
)
def test_an_ordinary_name_is_not_escaped(name: str) -> None:
    assert quick.render("README.md", project_name=name)["README.md"].startswith(f"# {name}\n")


@pytest.mark.parametrize(
    ("typed", "written"),
    [
        ("See https://shop.example/~ann", "See https\\://shop.example/\\~ann"),
        ("WWW.shop.example/*", "WWW\\.shop.example/\\*"),
        ("See https://shop.example/ann?a=1&b=2", "See https://shop.example/ann?a=1&b=2"),
    ],
)
def test_an_address_is_no_link_where_backslashes_would_be_seen_in_it(
    typed: str, written: str
) -> None:
    assert f"\n{written}\n" in quick.render("README.md", description=typed)["README.md"]


@pytest.mark.parametrize("case", [COMBINATIONS[0], COMBINATIONS[-1]], ids=identify)
def test_copier_renders_what_plain_jinja_does(
    template: Template, case: dict[str, str], tmp_path: Path
) -> None:
    project = template.copy(tmp_path / "project", **AWKWARD_NAMES, **case)
    quickly = quick.render(
        *(name for name in quick.TEMPLATES if name in project.files()), **AWKWARD_NAMES, **case
    )
    assert {name for name, text in quickly.items() if text != project.read(name)} == {
        ".copier-answers.yml"
    }
    assert project.answers() == yaml.safe_load(quickly[".copier-answers.yml"]) | {
        "_commit": WORK_TREE,
        "_src_path": template.url,
    }


def named(files: dict[str, str]) -> tuple[list[object], list[object]]:
    """The places of the slug in the files, and those of the dispatch name."""
    compose = yaml.safe_load(files["compose.yaml"])
    objects = list(yaml.safe_load_all(files["deploy/kubernetes.yaml"]))
    answers = yaml.safe_load(files[".copier-answers.yml"])
    made_with = tomllib.loads(files[".template.toml"])["answers"]
    deployment = objects[-1]
    pod = deployment["spec"]["template"]
    sources = [
        source for entry in pod["spec"]["containers"][0]["envFrom"] for source in entry.values()
    ]
    slugs = [
        answers["project_slug"],
        made_with["project_slug"],
        tomllib.loads(files["pyproject.toml"])["project"]["name"],
        compose["name"],
        *(thing["metadata"]["name"] for thing in objects if thing["kind"] != "Job"),
        *(source["name"] for source in sources),
        deployment["spec"]["selector"]["matchLabels"]["app.kubernetes.io/name"],
        pod["metadata"]["labels"]["app.kubernetes.io/name"],
        pod["spec"]["containers"][0]["image"].split(":")[0],
        *(
            volume["persistentVolumeClaim"]["claimName"]
            for volume in pod["spec"]["volumes"]
            if "emptyDir" not in volume
        ),
    ]
    environment = dotenv_values(
        stream=StringIO(files[".env.example"].replace("# AGENT_NAME=", "AGENT_NAME="))
    )
    dispatch = [
        answers["agent_name"],
        made_with["agent_name"],
        environment["AGENT_NAME"],
        tomllib.loads(files["src/agent/defaults.toml"])["name"],
        *re.findall(r"dispatch name,? (?:is )?`(.*?)`", " ".join(files["README.md"].split())),
        *re.findall(r'"?agent_?[nN]ame"?(?:: |=)"(.*?)"', files["docs/agent/how-to.md"]),
    ]
    return slugs, dispatch


@given(
    st.sampled_from(["null", "on", "no", "y", "true", "e1", "x" * 60])
    | st.from_regex(r"[a-z][a-z0-9]{0,8}(-[a-z0-9]{1,8}){0,4}", fullmatch=True),
    st.sampled_from(
        [
            "null",
            "~",
            "on",
            "1e3",
            "0x1F",
            "1_000",
            "12:30:45",
            "2026-01-01",
            ".5",
            "3.10",
            "NaN",
            "=",
            "<<",
        ]
    )
    | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True),
    st.sampled_from(COMBINATIONS),
)
@settings(max_examples=200, deadline=None, derandomize=True)
@example("x" * 60, "x" * 63, {"knowledge": "pgvector", "memory": "redis", "license": "MIT"})
@example("x" * 55 + "-yz", "null", {"knowledge": "pgvector", "memory": "sqlite", "license": "MIT"})
def test_any_slug_and_dispatch_name_are_words_in_every_file_they_reach(
    slug: str, agent: str, case: dict[str, str]
) -> None:
    names = {"project_slug": slug, "agent_name": agent}
    if quick.refusals(quick.settle(**names)):
        return
    files = quick.render(*WORDS_IN, **names, **case)
    slugs, dispatch = named(files)
    assert set(slugs) == {slug}
    assert dispatch == [agent] * 8
    for thing in yaml.safe_load_all(files["deploy/kubernetes.yaml"]):
        assert len(thing["metadata"]["name"]) <= 63, "Kubernetes makes labels of names"
    reached = {
        name
        for name, text in quick.render(project_slug="s-l-u-g", agent_name="N.A.M.E", **case).items()
        if "s-l-u-g" in text or "N.A.M.E" in text
    }
    assert reached == set(WORDS_IN)


def test_an_answer_that_a_file_needs_and_that_is_missing_is_an_error() -> None:
    answers = quick.settle()
    needed = {
        path: find_undeclared_variables(quick.ENVIRONMENT.parse(text))
        for path, text in quick.SOURCES.items()
    }
    hidden = {name for name in CONFIG if not name.startswith("_")} - ASKED.keys()
    assert set.union(*needed.values()) - hidden == {*ASKED, "_copier_answers"}
    for path, names in needed.items():
        for name in names & ASKED.keys():
            fewer = {key: value for key, value in answers.items() if key != name}
            with pytest.raises(UndefinedError, match=name):
                quick.TEMPLATES[path].render(fewer)


@pytest.mark.parametrize(("question", "answer"), REFUSED)
def test_an_illegal_answer_is_refused_with_what_to_type(question: str, answer: str) -> None:
    answers = quick.settle(**{question: answer})
    assert f"{question}: {SENTENCES[question]}" in quick.refusals(answers)


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        *((question, "") for question in SENTENCES),
        ("project_slug", "../elsewhere"),
        ("project_name", "x" * 200),
    ],
)
def test_both_tools_refuse_in_the_same_words_before_a_file_is_written(
    template: Template, tmp_path: Path, question: str, answer: str
) -> None:
    copied = copy_by_hand(template.url, tmp_path / "copier" / "project", **{question: answer})
    assert copied.returncode != 0
    assert SENTENCES[question] in " ".join(copied.stderr.split())
    baked = cookiecut(
        str(template.path), tmp_path / "cookiecutter", f"{question}={literal(answer)}"
    )
    assert baked.returncode == 1
    assert f"{question}: {SENTENCES[question]}" in baked.stdout + baked.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["agent", "livekit-agents", "tests"])
def test_a_name_that_is_taken_is_refused_with_one_that_is_not(
    template: Template, tmp_path: Path, name: str
) -> None:
    with pytest.raises(ValueError, match=f"Write another name, such as my-{name}: {name} is taken"):
        template.copy(tmp_path / "project", project_slug=name)
    assert not (tmp_path / "project").exists()
