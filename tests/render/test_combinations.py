"""Every combination of answers makes a project that parses, without traces of other options."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from tests.support.both_tools import BothTools
from tests.support.templates import (
    AWKWARD_NAMES,
    COMBINATIONS,
    CONFIG,
    FREE_TEXT_IN,
    MARK,
    ROOT,
    Project,
    Template,
    copy_by_hand,
    identify,
)

PARSERS: dict[str, Callable[[str], Any]] = {
    ".json": json.loads,
    ".jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
    ".py": ast.parse,
    ".toml": tomllib.loads,
    ".yaml": lambda text: list(yaml.safe_load_all(text)),
    ".yml": lambda text: list(yaml.safe_load_all(text)),
}
ANSWERS = "{{ _copier_conf.answers_file }}"


def parsed(project: Project) -> dict[str, Any]:
    """The contents of every file of a known format; raises if one does not parse."""
    return {
        name: PARSERS[Path(name).suffix](project.read(name))
        for name in project.files()
        if Path(name).suffix in PARSERS
    }


STORES = {
    "sqlite": ["knowledge/sqlite.py", "knowledge/bm25.py"],
    "pgvector": ["knowledge/pgvector/"],
}
FAMILIES = {
    "livekit": ["models/livekit.py"],
    "providers": ["models/providers.py"],
    "selfhosted": ["models/selfhosted.py"],
    "realtime": ["models/realtime.py"],
}
# these are the same in every project; the page's names are of its libraries
SAME = ("docs/", "src/agent/web/page/")
MEMORIES = {
    "sqlite": ["memory/sqlite.py"],
    "redis": ["memory/redis.py", "memory/redis_errors.py", "reports/redis.py"],
}


def is_left_out(name: str, case: dict[str, str]) -> bool:
    """Whether an option leaves a file out: repeated here, not read from copier.yml."""
    knowledge, memory = case["knowledge"], case["memory"]
    module = name.removeprefix("src/agent/")
    for chosen, every in (knowledge, STORES), (memory, MEMORIES), (case["models"], FAMILIES):
        left_out = tuple(path for store in every.keys() - {chosen} for path in every[store])
        if module.startswith(left_out):
            return True
    if knowledge == "none":
        below = name.startswith("knowledge/") or module.startswith("knowledge/")
        others = {"cli/documents.py", "docs/agent/knowledge.md", "tests/yours/test_knowledge.py"}
        if (below and module != "knowledge/__init__.py") or module in others:
            return True
    if memory == "none":
        # a report says who called by the same rules
        kept = {"memory/__init__.py", "memory/identity.py"}
        if (
            module.startswith("memory/") and module not in kept
        ) or module == "docs/agent/memory.md":
            return True
    if case["web"] == "no" and module.startswith(
        ("web/", "callers.py", "cli/talk.py", "docs/agent/web.md")
    ):
        return True
    if case["telephony"] == "no" and module.startswith(
        (
            "deploy/telephony/",
            "telephony/",
            "cli/call_number.py",
            "cli/trunks.py",
            "docs/agent/telephone.md",
        )
    ):
        return True
    if module == "sqlite_thread.py":
        return "sqlite" not in (knowledge, memory)
    return module == "circuit_breaker.py" and knowledge == memory == "none"


def test_every_file_parses_and_no_template_syntax_is_left(
    template: Template, project: Project
) -> None:
    root = template.path / "template"
    assert parsed(project).keys() >= {"pyproject.toml", ".copier-answers.yml", ".template.toml"}
    verbatim = {str(path.relative_to(root)) for path in root.rglob("*")}
    for name, (content, _) in project.files().items():
        text = content.decode()
        assert not text or text.endswith("\n"), f"{name} does not end in a newline"
        assert not text.endswith("\n\n"), f"{name} ends in blank lines"
        if name not in verbatim:
            assert not re.search(r"\{%|# %|(?<!\$)\{\{", text), f"{name} has template syntax left"


def test_what_an_option_leaves_out_is_not_there_and_all_else_is(
    template: Template, project: Project, case: dict[str, str]
) -> None:
    root = template.path / "template"
    sources = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
    names = {
        source.removesuffix(".jinja").replace(ANSWERS, ".copier-answers.yml") for source in sources
    }
    assert project.files().keys() == {name for name in names if not is_left_out(name, case)}
    assert not [
        folder for folder in project.folders() if not any((project.path / folder).iterdir())
    ]


def unique_files(projects: list[Project]) -> dict[tuple[str, bytes], Path]:
    """Each file that differs from all others at its path, once, and where to find it."""
    return {
        (name, content): project.path / name
        for project in projects
        for name, (content, _) in project.files().items()
    }


def test_every_unique_file_is_what_its_name_says(every_copy: list[Project]) -> None:
    texts = {(name, content.decode()) for name, content in unique_files(every_copy)}
    seen = set()
    for name, text in sorted(texts):
        suffix = Path(name).suffix
        if suffix in PARSERS:
            PARSERS[suffix](text)
        if suffix == ".md":
            for block in MarkdownIt().parse(text):
                if block.type == "fence" and f".{block.info}" in PARSERS:
                    PARSERS[f".{block.info}"](block.content)
        seen.add(suffix or name)
    assert seen >= {*PARSERS, ".md", "Dockerfile", "LICENSE"} - {".json"}


def test_every_unique_python_file_is_formatted_and_has_nothing_to_lint(
    every_copy: list[Project],
) -> None:
    # where they are: ruff looks around a file for the rules of its project, which leave out what is
    # the template's; `make check` judges that
    files = [
        str(path) for (name, _), path in unique_files(every_copy).items() if name.endswith(".py")
    ]
    ruff = Path(sys.executable).with_name("ruff")
    for command in (["format", "--check", "--diff"], ["check"]):
        done = subprocess.run(
            [ruff, *command, "--force-exclude", "--no-cache", *files],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_project_without_redis_has_no_trace_of_it(project: Project, case: dict[str, str]) -> None:
    # Python modules and their tests are the same in every project, too, and may name redis
    texts = {name: content.decode().lower() for name, (content, _) in project.files().items()}
    speak = {name for name, text in texts.items() if re.search(r"redis(?!tribut)", text)}
    with_redis = {name for name in speak if not name.endswith(".py") and not name.startswith(SAME)}
    if case["memory"] == "redis":
        assert with_redis >= {"pyproject.toml", "compose.yaml", ".copier-answers.yml"}
    else:
        # a server with a telephone needs one, whatever the agent remembers in
        assert with_redis == ({"compose.yaml"} if case["telephony"] == "yes" else set())


def test_a_project_without_pgvector_has_no_trace_of_it(
    project: Project, case: dict[str, str]
) -> None:
    texts = {name: content.decode().lower() for name, (content, _) in project.files().items()}
    speak = {name for name, text in texts.items() if re.search(r"asyncpg|pgvector|postgres", text)}
    with_postgres = {
        name for name in speak if not name.endswith(".py") and not name.startswith(SAME)
    }
    if case["knowledge"] == "pgvector":
        assert with_postgres >= {
            "pyproject.toml",
            "compose.yaml",
            "deploy/kubernetes.yaml",
            ".copier-answers.yml",
        }
    else:
        # a setting for every kind of knowledge, which may name another store
        assert with_postgres == ({".env.example"} if case["knowledge"] == "sqlite" else set())


def test_a_project_has_only_the_plugins_of_its_models(
    project: Project, case: dict[str, str]
) -> None:
    plugins = {
        "livekit": set(),
        "providers": {"openai", "deepgram", "cartesia"},
        "selfhosted": {"openai"},
        "realtime": {"openai"},
    }
    found = set(re.findall(r'"livekit-plugins-(\w+)', project.read("pyproject.toml")))
    assert found == plugins[case["models"]]
    keys = set(re.findall(r"^([A-Z]+)_API_KEY=$", project.read(".env.example"), re.M))
    # own servers have keys of their own
    named = plugins[case["models"]] if case["models"] in ("providers", "realtime") else set()
    assert keys == {"LIVEKIT", *(name.upper() for name in named)}


def test_an_option_takes_its_settings_away(project: Project, case: dict[str, str]) -> None:
    settings = {
        "knowledge": r"AGENT_(KNOWLEDGE|EMBEDDINGS)",
        "memory": r"AGENT_(MEMORY_URL|MEMORY_SECONDS|RESUME)",
    }
    for option, pattern in settings.items():
        speak = {
            name
            for name, (content, _) in project.files().items()
            if re.search(pattern, content.decode()) and not name.startswith(("docs/", "src/"))
        }
        if case[option] == "none":
            assert speak == set()
        else:
            assert ".env.example" in speak


def test_values_reach_the_package(project: Project, case: dict[str, str]) -> None:
    memory_url = "redis://localhost:6379/0" if case["memory"] == "redis" else case["memory"]
    defaults = tomllib.loads(project.read("src/agent/defaults.toml"))
    knowledge_url = {"knowledge_url": "postgresql://postgres:postgres@localhost:5432/postgres"}
    with_url = knowledge_url if case["knowledge"] == "pgvector" else {}
    servers = {name for name in defaults if name.startswith(("llm_", "stt_", "tts_"))}
    assert bool(servers) == (case["models"] == "selfhosted")
    for name in servers:
        assert defaults.pop(name)
    assert defaults == {
        "name": "my-agent",
        "models": case["models"],
        "knowledge": case["knowledge"],
        **with_url,
        "memory_url": memory_url,
    }


def test_the_license_is_the_chosen_one(project: Project, case: dict[str, str]) -> None:
    says = {
        "Apache-2.0": "Apache License",
        "MIT": "MIT License",
        "proprietary": "All rights reserved",
    }
    text = project.read("LICENSE")
    assert {license for license, words in says.items() if words in text} == {case["license"]}
    assert "The My Agent authors" in text


@pytest.mark.parametrize("case", [COMBINATIONS[0], COMBINATIONS[-1]], ids=identify, indirect=True)
def test_awkward_names_arrive_in_every_file_as_they_were_typed(
    template: Template, case: dict[str, str], tmp_path: Path
) -> None:
    project = template.copy(tmp_path / "project", **case, **AWKWARD_NAMES)
    assert {name: project.answers()[name] for name in AWKWARD_NAMES} == AWKWARD_NAMES
    files = parsed(project)
    about = files["pyproject.toml"]["project"]
    assert about["name"] == AWKWARD_NAMES["project_slug"]
    assert about["description"] == AWKWARD_NAMES["description"]
    assert about["authors"] == [{"name": AWKWARD_NAMES["author_name"]}]
    assert files["src/agent/defaults.toml"]["name"] == AWKWARD_NAMES["agent_name"]
    assert AWKWARD_NAMES["author_name"] in project.read("LICENSE")
    if "compose.yaml" in files:
        assert files["compose.yaml"][0]["name"] == AWKWARD_NAMES["project_slug"]
    for document in files.get("deploy/kubernetes.yaml", []):
        assert isinstance(document["metadata"]["name"], str)


def test_free_text_stays_out_of_files_that_would_interpret_it(
    template: Template, tmp_path: Path
) -> None:
    names = {
        "project_name": "Free Text One",
        "description": "Free Text Two",
        "author_name": "Free Text Three",
    }
    project = template.copy(tmp_path / "project", **names)
    reached = {name for name, (content, _) in project.files().items() if b"Free Text" in content}
    assert reached == set(FREE_TEXT_IN)


def test_copying_needs_neither_trust_nor_answers_nor_git(
    template: Template, tmp_path: Path
) -> None:
    for number, source in enumerate([str(template.path), template.url, str(ROOT)]):
        done = copy_by_hand(source, tmp_path / f"project {number}")
        assert done.returncode == 0, done.stderr
        for command in (
            f"cd '{tmp_path}/project {number}'",
            "uv sync && uv run pytest",
            "uv run agent chat",
        ):
            assert command in done.stderr
        assert (tmp_path / f"project {number}" / "pyproject.toml").is_file()


def test_copier_yml_uses_nothing_that_needs_trust_or_that_the_hooks_do_not_read() -> None:
    settings = {name for name in CONFIG if name.startswith("_")}
    assert settings == {
        "_envops",
        "_exclude",
        "_message_after_copy",
        "_message_after_update",
        "_min_copier_version",
        "_skip_if_exists",
        "_subdirectory",
    }
    for name, question in CONFIG.items():
        if not name.startswith("_"):
            assert question["type"] == "str"
            assert question.get("when", True) in (True, False)
            assert question.get("help") or question.get("when") is False, (
                f"{name} does not explain itself"
            )
            assert (
                "choices" in question or "validator" in question or question.get("when") is False
            ), name
            assert question["default"] is not None
            assert question.keys() <= {"type", "help", "default", "choices", "validator", "when"}


def test_no_python_file_of_the_template_is_rendered(template: Template) -> None:
    assert not list((template.path / "template").rglob("*.py.jinja"))


def test_a_project_cannot_be_named_like_what_it_installs(both_tools: BothTools) -> None:
    project = both_tools.copied(
        {"models": "providers", "knowledge": "pgvector", "memory": "redis", "license": "MIT"}
    )
    metadata = tomllib.loads(project.read("pyproject.toml"))
    required = metadata["project"]["dependencies"] + metadata["dependency-groups"]["dev"]
    taken = CONFIG["taken_names"]["default"].split()
    for requirement in required:
        name = requirement.split(">")[0].split("=")[0].split("~")[0].split("[")[0].strip().lower()
        assert name in taken, f"copier.yml's taken_names lacks {name}"


def test_every_shared_file_has_a_mark_below_which_owners_add_lines(both_tools: BothTools) -> None:
    project = both_tools.copied(COMBINATIONS[0])
    for name in project.ownership()["shared"]:
        assert MARK in project.read(name), f"{name} is shared and has no mark"
