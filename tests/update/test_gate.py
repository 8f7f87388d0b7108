"""The gate: every release updates to this checkout as promised, and broken promises are found."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.templates import WORK_TREE, Template, git, released
from tools.gate import (
    PUBLIC,
    broken_updates,
    cases_of,
    configuration,
    lost_answers,
    promises_broken,
)

NEXT = "v999.1.0"
# of so many sets of answers `make test` tries one; the slow tests and releases try all
EVERY = 10
ANSWERS = {"knowledge": "none", "memory": "none", "license": "Apache-2.0"}


def complaints_of_updates(template: Template, version: str, folder: Path, every: int) -> list[str]:
    found = []
    for number, answers in enumerate(cases_of(configuration(template, version))[::every]):
        found += broken_updates(
            template, version, answers, folder / str(number), by_steps=number == 0
        )
    return found


@pytest.mark.parametrize("version", released())
def test_projects_of_every_release_update_as_promised(
    template: Template, version: str, tmp_path: Path
) -> None:
    assert complaints_of_updates(template, version, tmp_path, EVERY) == []


@pytest.mark.slow
@pytest.mark.parametrize("version", released())
def test_with_any_answers(template: Template, version: str, tmp_path: Path) -> None:
    assert complaints_of_updates(template, version, tmp_path, 1) == []


def test_no_release_needs_trust_loses_an_answer_or_a_name_that_owners_use(
    template: Template,
) -> None:
    assert list(promises_broken(template)) == []


def test_a_tag_that_copier_would_take_for_a_release_is_told(own_template: Template) -> None:
    git(own_template.path, "tag", "20261127", released()[0])
    (complaint,) = promises_broken(own_template)
    assert complaint.startswith("the tag 20261127 is no release")


def test_every_name_that_owners_are_promised_is_in_their_documentation(template: Template) -> None:
    page = (template.path / "template" / "docs" / "agent" / "ownership.md").read_text(
        encoding="utf-8"
    )
    for path, members in PUBLIC.items():
        _, holder = path.rsplit(".", 1)
        for name in (holder, *members):
            assert {f"`{name}`", f"`{name}()`", f"`{holder}.{name}`"} & set(
                re.findall("`[^`]+`", page)
            ), f"docs/agent/ownership.md does not say that owners may use {name} of {path}"


def replace(template: Template, name: str, old: str, new: str) -> None:
    text = (template.path / name).read_text(encoding="utf-8")
    assert old in text
    (template.path / name).write_text(text.replace(old, new), encoding="utf-8")


REGION = "\nregion:\n  type: str\n  help: Where?\n"


@pytest.mark.parametrize(
    ("name", "old", "new", "complaint"),
    [
        (
            "copier.yml",
            "_subdirectory:",
            "_tasks: [git init]\n_subdirectory:",
            "v999.1.0 has _tasks",
        ),
        (
            "copier.yml",
            "_subdirectory:",
            "_migrations: []\n_subdirectory:",
            "v999.1.0 has _migrations",
        ),
        (
            "copier.yml",
            "    Nowhere, every caller is new: none\n",
            "",
            "memory=none of v0.1.0 is gone",
        ),
        (
            "copier.yml",
            "[Apache-2.0, MIT, proprietary]",
            "[Apache-2.0, MIT]",
            "license=proprietary of v0.1.0 is gone",
        ),
        (
            "copier.yml",
            "<= 200",
            "<= 100",
            "description='" + "a" * 101 + "' was accepted by v0.1.0 and is refused now",
        ),
        ("copier.yml", "\nlicense:\n", "\nlicence:\n", "the question license of v0.1.0 is gone"),
        (
            "copier.yml",
            "\nlicense:\n",
            f"{REGION}\nlicense:\n",
            "the question region is new since v0.1.0 and has no def",
        ),
        (
            "template/src/agent/lifecycle/call.py",
            "async def hang_up(",
            "async def bye(",
            "lifecycle.Call.hang_up is gone",
        ),
        (
            "template/src/agent/conversation/agent.py",
            "def goodbye(self, reason: str)",
            "def goodbye(self, reason: str, politely: bool)",
            "conversation.CallAgent.goodbye is not what it was",
        ),
    ],
)
def test_a_broken_promise_is_read_from_the_sources(
    own_template: Template, name: str, old: str, new: str, complaint: str
) -> None:
    replace(own_template, name, old, new)
    own_template.release(NEXT)
    found = list(promises_broken(own_template))
    assert [said for said in found if complaint in said], found


def asked(**spec: object) -> dict[str, dict[str, object]]:
    return {"memory": {"type": "str", "choices": ["sqlite", "none"], "default": "sqlite", **spec}}


@pytest.mark.parametrize(
    "others",
    [
        {"taken": {"type": "str", "when": False, "default": "agent memory tests"}},
        {"memory_url": {"type": "str", "default": "{{ in_memory }}"}},
    ],
    ids=["a word", "a longer name"],
)
def test_only_a_default_that_reads_the_old_answer_keeps_it(
    others: dict[str, dict[str, object]],
) -> None:
    assert [
        said
        for said in lost_answers("v1", asked(), others)
        if "the question memory of v1 is gone" in said
    ]


@pytest.mark.parametrize(
    "now",
    [
        asked(
            choices=["sqlite", "nobody"],
            default="{{ 'nobody' if memory | default('') == 'none' else 'sqlite' }}",
        ),
        {
            "store": {
                "type": "str",
                "choices": ["sqlite", "none"],
                "default": "{{ memory | default('sqlite') }}",
            }
        },
        asked() | {"later": {"type": "str", "default": "x"}},
    ],
    ids=["a choice renamed", "a question renamed", "a question added"],
)
def test_a_default_that_reads_the_old_answer_keeps_it(now: dict[str, dict[str, object]]) -> None:
    assert list(lost_answers("v1", asked(), now)) == []


def test_a_name_may_go_once_a_minor_version_has_warned(own_template: Template) -> None:
    module = "template/src/agent/lifecycle/call.py"
    warning = "@deprecated('use `end`')\n    async def hang_up("
    replace(own_template, module, "async def hang_up(", warning)
    own_template.release("v999.1.0")
    assert list(promises_broken(own_template)) == []
    replace(own_template, module, warning, "async def bye(")
    own_template.release("v999.2.0")
    assert list(promises_broken(own_template, "999.2.0")) == []
    (complaint,) = promises_broken(own_template, "999.1.1")
    assert (
        "agent.lifecycle.Call.hang_up is gone since v999.1.0: keep it for a minor version"
        in complaint
    )


def test_what_is_deprecated_warns_whoever_uses_it(own_template: Template, tmp_path: Path) -> None:
    module = "template/src/agent/lifecycle/call.py"
    replace(
        own_template,
        module,
        "async def hang_up(",
        "@deprecated('use end()')\n    async def hang_up(",
    )
    replace(
        own_template,
        module,
        "\nfrom typing import ",
        "\nfrom typing_extensions import deprecated\nfrom typing import ",
    )
    own_template.release(NEXT)
    project = own_template.copy(tmp_path / "project", NEXT)
    use = "import agent.lifecycle; agent.lifecycle.Call.hang_up(None).close()"
    done = subprocess.run(
        [sys.executable, "-W", "error:use end:DeprecationWarning", "-c", use],
        env={**os.environ, "PYTHONPATH": str(project.path / "src")},
        cwd=project.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "DeprecationWarning: use end()" in done.stderr


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("template/Dockerfile.jinja", "Dockerfile is shared and is gone"),
        ("template/src/agent/resources.py", "src/agent/resources.py is owner and is gone"),
    ],
)
def test_a_file_with_lines_of_owners_stays_where_it_is(
    own_template: Template, name: str, complaint: str, tmp_path: Path
) -> None:
    source = own_template.path / name
    source.rename(source.with_name(f"renamed-{source.name}"))
    own_template.release(NEXT)
    found = broken_updates(own_template, WORK_TREE, ANSWERS, tmp_path)
    assert [said for said in found if complaint in said], found


def test_a_file_of_the_template_moves_only_if_it_is_said_where_to(own_template: Template) -> None:
    source = own_template.source("docs/agent/logs.md")
    source.rename(source.with_name("log.md"))
    own_template.release(NEXT)
    (complaint,) = {said.partition(" of v")[0] for said in promises_broken(own_template)}
    assert complaint == "docs/agent/logs.md"

    ownership = own_template.path / "template" / ".template.toml.jinja"
    with ownership.open("a", encoding="utf-8") as file:
        file.write('"docs/agent/logs.md" = "docs/agent/log.md"\n')
    git(own_template.path, "commit", "--quiet", "--all", "--message=moved")
    git(own_template.path, "tag", "--force", "--annotate", "--message=moved", NEXT)
    assert list(promises_broken(own_template)) == []


def test_a_name_has_to_stay_importable_from_where_owners_import_it(own_template: Template) -> None:
    own_template.source("src/agent/lifecycle/__init__.py").write_text('"""Empty."""\n', "utf-8")
    own_template.release(NEXT)
    found = list(promises_broken(own_template))
    assert any("agent.lifecycle.Call is gone" in said for said in found), found
    assert any("agent.lifecycle.Reason is gone" in said for said in found), found


def test_a_file_stays_with_whom_it_was(own_template: Template, tmp_path: Path) -> None:
    replace(own_template, "copier.yml", "  - /src/agent/resources.py\n", "")
    ownership = own_template.path / "template" / ".template.toml.jinja"
    own_template.release(NEXT)
    replace(
        own_template,
        str(ownership.relative_to(own_template.path)),
        '    "src/agent/resources.py",\n',
        "",
    )
    git(own_template.path, "commit", "--quiet", "--all", "--message=class")
    git(own_template.path, "tag", "--force", "--annotate", "--message=class", NEXT)
    found = broken_updates(own_template, WORK_TREE, ANSWERS, tmp_path)
    assert [said for said in found if "src/agent/resources.py was owner and is template" in said], (
        found
    )


def test_an_update_that_does_not_end_at_a_fresh_copy_is_told(
    own_template: Template, tmp_path: Path
) -> None:
    config = own_template.path / "copier.yml"
    # a file that comes only once has to be the owner's
    once = "{% if _copier_operation == 'update' %}/docs{% endif %}"
    config.write_text(
        config.read_text(encoding="utf-8").replace("_exclude:\n", f'_exclude:\n  - "{once}"\n', 1),
        "utf-8",
    )
    own_template.add_line("docs/agent/ending-calls.md", "A line.")
    own_template.release(NEXT)
    found = broken_updates(own_template, WORK_TREE, ANSWERS, tmp_path)
    assert [
        said for said in found if "docs/agent/ending-calls.md is not what a fresh copy has" in said
    ], found
