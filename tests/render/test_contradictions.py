"""Files do not contradict each other: versions, ports, images, settings, commands, paths."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import livekit.agents
import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from packaging.specifiers import SpecifierSet
from typer.main import get_command

from agent.cli import build_app
from agent.reasons import Reason
from agent.settings import Settings
from tests.support import quick
from tests.support.ends import ENDS
from tests.support.templates import CONFIG, ROOT, Project
from tools import example

ENVIRONMENT = re.compile(r"(?<![.\w])(?:AGENT|LIVEKIT)_[A-Z_]*[A-Z]\b")
# Files that the agent makes, and folders for the owner, as the documents name them.
MADE = {
    "data/",
    "src/agent/tools/",
    "scripts/",
    "tests/yours/conftest.py",
    "knowledge.db",
    "memory.db",
    "calls.db",
    "prices.toml",  # the owner's
    "uv.lock",
    ".env.local",
    "provider/model",  # how models are named
}
COMMANDS: dict[str, click.Command] = get_command(build_app()).commands  # type: ignore[attr-defined]


def load(project: Project, name: str) -> Any:
    """A YAML file with one document."""
    return yaml.safe_load(project.read(name))


def manifests(project: Project) -> dict[str, Any]:
    """The objects of deploy/kubernetes.yaml by their kind."""
    return {
        thing["kind"]: thing for thing in yaml.safe_load_all(project.read("deploy/kubernetes.yaml"))
    }


def found_in(text: str, pattern: str) -> set[str]:
    """The matches of a pattern's group; there is at least one."""
    found = set(re.findall(pattern, text, re.MULTILINE))
    assert found, pattern
    return found


def documents(project: Project) -> dict[str, str]:
    """The pages for people who work in the project."""
    return {
        name: project.read(name)
        for name in project.files()
        if name.endswith(".md") and "knowledge/" not in name
    }


@cache
def tokens(text: str) -> list[Token]:
    """A page's blocks and their contents."""
    blocks = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    return [*blocks, *(child for block in blocks for child in block.children or [])]


def code_of(text: str) -> Iterator[str]:
    """Every line of code, in a block or in a sentence."""
    for token in tokens(text):
        if token.type in {"fence", "code_block", "code_inline"}:
            yield from token.content.splitlines()


def links_of(text: str) -> set[str]:
    """The targets of a page's links."""
    return {str(token.attrs["href"]) for token in tokens(text) if token.type == "link_open"}


# Pages that GitHub makes for this repository, by their links from a file at its root.
ON_GITHUB = {
    f"../../tree/example/{example.PROJECT}",
    f"../../tree/example/{example.PROJECT}/docs/agent",
    "../../issues/new/choose",
    "../../security/advisories/new",
}


def anchors_of(text: str) -> set[str]:
    """The anchors of a page's sections on GitHub."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def assert_links_lead_somewhere(page: Path) -> None:
    """Every link of a page leads to an existing file and section."""
    for link in links_of(page.read_text(encoding="utf-8")):
        if "://" not in link and link not in ON_GITHUB:
            name, _, section = link.partition("#")
            target = page.parent / name if name else page
            assert target.exists(), f"{page}: {link}"
            if section:
                assert section in anchors_of(target.read_text(encoding="utf-8")), f"{page}: {link}"


@cache
def variables_of_the_sdk() -> set[str]:
    """The environment variables that livekit-agents reads."""
    sources = Path(livekit.agents.__file__).parent.rglob("*.py")
    return {
        name for path in sources for name in ENVIRONMENT.findall(path.read_text(encoding="utf-8"))
    }


def words_of(name: str, content: bytes) -> str:
    """A file's text; of Python only the strings, because constants look like variables."""
    text = content.decode()
    if not name.endswith(".py"):
        return text
    strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    return "\n".join(value for value in strings if isinstance(value, str))


@cache
def variables_in(name: str, content: bytes) -> frozenset[str]:
    """The variables that a file names."""
    return frozenset(ENVIRONMENT.findall(words_of(name, content)))


def pythons(text: str) -> list[str]:
    """The versions that a pyproject.toml takes, such as 3.11."""
    required = tomllib.loads(text)["project"]["requires-python"]
    bounds = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", required)
    assert bounds, required
    return [f"3.{minor}" for minor in range(int(bounds[1]), int(bounds[2]))]


def test_the_same_pythons_are_named_everywhere(project: Project) -> None:
    metadata = tomllib.loads(project.read("pyproject.toml"))
    oldest, *_ = supported = pythons(project.read("pyproject.toml"))
    assert metadata["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert found_in(project.read("Dockerfile"), r"^FROM python:([\d.]+)-") == {oldest}
    assert found_in(project.read("Dockerfile"), r"^# ([\d.]+) is the oldest Python") == {oldest}
    tested = load(project, ".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"][
        "python"
    ]
    assert tested == supported
    for name, text in documents(project).items():
        for version in re.findall(r"Python (3\.\d+)", text):
            assert version in tested, f"{name}: Python {version}"


def test_the_newest_python_is_the_newest_that_the_sdk_is_for() -> None:
    # uv installs it on newer ones without a word
    takes = SpecifierSet(importlib.metadata.metadata("livekit-agents")["Requires-Python"])
    newest = int(pythons(quick.render("pyproject.toml")["pyproject.toml"])[-1].removeprefix("3."))
    assert (f"3.{newest}" in takes, f"3.{newest + 1}" in takes) == (True, False)


def test_one_port_is_the_health_endpoint_everywhere(project: Project) -> None:
    port = str(Settings.model_fields["port"].default)
    dockerfile = project.read("Dockerfile")
    assert found_in(project.read(".env.example"), r"^# AGENT_PORT=(\d+)$") == {port}
    assert found_in(dockerfile, r"AGENT_PORT=(\d+)") == {port}
    assert found_in(dockerfile, r"^EXPOSE (\d+)$") == {port}
    assert (
        f"127.0.0.1:{port}:{port}" in load(project, "compose.yaml")["services"]["livekit"]["ports"]
    )
    container = manifests(project)["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert container["ports"] == [{"name": "health", "containerPort": int(port)}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["port"] == "health"
    for name, text in documents(project).items():
        assert set(re.findall(r"\b808\d\b", text)) <= {port}, name


def test_one_image_of_each_store_is_named_everywhere(
    project: Project, case: dict[str, str]
) -> None:
    composed = load(project, "compose.yaml")["services"]
    stores = {"postgres"} if case["knowledge"] == "pgvector" else set()
    if case["memory"] == "redis" or case["telephony"] == "yes":
        stores |= {"redis"}
    assert composed.keys() - {"livekit", "agent", "ingest", "sip"} == stores
    # a project's own tests need no server
    assert "services" not in load(project, ".github/workflows/ci.yml")["jobs"]["test"]
    images = {service["image"] for service in composed.values() if "image" in service}
    for name, text in documents(project).items():
        named = set(
            re.findall(r"\b(?:pgvector/pgvector|redis|livekit/livekit-server):[\w.-]+", text)
        )
        assert named <= images, f"{name}: {named - images}"


def test_one_uv_installs_everywhere(project: Project) -> None:
    image = found_in(project.read("Dockerfile"), r"astral-sh/uv:([\d.]+)")
    for workflow in ("ci.yml", "update.yml"):
        jobs = load(project, f".github/workflows/{workflow}")["jobs"].values()
        steps = [step for job in jobs for step in job["steps"]]
        assert image == {
            step["with"]["version"] for step in steps if "setup-uv" in step.get("uses", "")
        }, workflow


def test_an_action_has_one_version_in_all_workflows(project: Project) -> None:
    text = "".join(project.read(f".github/workflows/{name}.yml") for name in ("ci", "update"))
    pins = set(re.findall(r"uses: (\S+)@(\w{40} # v.+)", text))
    assert len(pins) == len({action for action, _ in pins})


def test_the_servers_keys_and_ports_are_the_same_everywhere(project: Project) -> None:
    services = load(project, "compose.yaml")["services"]
    server = yaml.safe_load(services["livekit"]["environment"]["LIVEKIT_CONFIG"])
    ((key, secret),) = server["keys"].items()
    environment = services["agent"]["environment"]
    assert (environment["LIVEKIT_API_KEY"], environment["LIVEKIT_API_SECRET"]) == (key, secret)
    assert environment["LIVEKIT_URL"] == f"ws://127.0.0.1:{server['port']}"
    if "sip" in services:
        telephone = yaml.safe_load(services["sip"]["environment"]["SIP_CONFIG_BODY"])
        assert (telephone["api_key"], telephone["api_secret"]) == (key, secret)
        assert telephone["ws_url"] == environment["LIVEKIT_URL"]
        assert telephone["redis"] == server["redis"]
    published = {str(port).split(":")[1].split("/")[0] for port in services["livekit"]["ports"]}
    assert published >= {
        str(server["port"]),
        str(server["rtc"]["tcp_port"]),
        str(server["rtc"]["udp_port"]),
    }
    typed = found_in(project.read("compose.yaml"), r"^#   (LIVEKIT_URL=.*) uv run agent call$")
    assert typed == {
        f"LIVEKIT_URL={environment['LIVEKIT_URL']} LIVEKIT_API_KEY={key}"
        f" LIVEKIT_API_SECRET={secret}"
    }


def test_a_stopping_agent_has_a_minute_more_than_its_calls_everywhere(project: Project) -> None:
    drain = int(Settings.model_fields["drain_seconds"].default)
    services = load(project, "compose.yaml")["services"]
    agent = services["agent"]
    objects = manifests(project)
    graces = {one["stop_grace_period"] for one in services.values() if "stop_grace_period" in one}
    assert graces == {agent["stop_grace_period"]}, "a telephone hangs nobody up either"
    assert agent["environment"]["AGENT_DRAIN_SECONDS"] == str(drain)
    assert objects["ConfigMap"]["data"]["AGENT_DRAIN_SECONDS"] == str(drain)
    assert found_in(project.read(".env.example"), r"^# AGENT_DRAIN_SECONDS=(\d+)$") == {str(drain)}
    assert agent["stop_grace_period"] == f"{drain // 60 + 1}m"
    assert (
        objects["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
        == drain + 60
    )


def test_every_variable_that_a_file_names_is_read_by_something(project: Project) -> None:
    fields = {
        field.alias or f"AGENT_{name.upper()}" for name, field in Settings.model_fields.items()
    }
    files = {name: content for name, (content, _) in project.files().items()}
    tests = {
        name
        for path in files
        if path.startswith("tests/")
        for name in variables_in(path, files[path])
    }
    elsewhere = {name for name in tests if name.startswith("AGENT_TEST_")}
    # livekit-server's, in compose.yaml
    elsewhere.add("LIVEKIT_CONFIG")
    for path, content in files.items():
        if path.startswith("src/agent/web/page/"):
            continue  # a browser has no environment
        for variable in variables_in(path, content) - fields - elsewhere - variables_of_the_sdk():
            # or the beginning of several
            assert any(name.startswith(f"{variable}_") for name in variables_of_the_sdk()), (
                f"{path}: {variable}"
            )


def test_every_command_of_the_agent_that_a_page_names_exists(project: Project) -> None:
    seen = set()
    for name, text in documents(project).items():
        for line in code_of(text):
            for found, rest in re.findall(r"\buv run agent(?: (\S+))?([^;&|#]*)", line):
                assert found in COMMANDS, f"{name}: {line}"
                options = {
                    option for parameter in COMMANDS[found].params for option in parameter.opts
                }
                assert set(re.findall(r"(?<=\s)-{1,2}[a-z-]+", rest)) <= options | {"--help"}, (
                    f"{name}: {line}"
                )
                seen.add(found)
        table = text if name == "docs/agent/commands.md" else ""
        for found in re.findall(r"^\| `agent ([\w-]+)", table, re.MULTILINE):
            assert found in COMMANDS, f"{name}: agent {found}"
            seen.add(found)
    assert seen == set(COMMANDS), "a command that no page names"


def test_the_page_of_ends_explains_every_reason(project: Project) -> None:
    text = project.read("docs/agent/ending-calls.md")
    (table,) = re.findall(r"^\| reason .*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    explained = set(re.findall(r"^\| (.*?) \|", table, re.MULTILINE))
    reasons = {value for name, value in vars(Reason).items() if name.isupper()}
    assert explained == {*reasons, "error in step N (…)"}
    ended = {re.sub(r"step \d \(.*\)", "step N (…)", end.reason) for end in ENDS.values()}
    assert ended == explained, "each reason ends some call of the table"


def test_no_page_asks_for_make_or_for_a_module_that_is_not_there(project: Project) -> None:
    for name, text in documents(project).items():
        for line in code_of(text):
            assert not re.match(r"make [a-z]", line), f"{name}: {line}"
            for module in re.findall(r"python -m ([\w.]+)", line):
                assert (project.path / "src" / Path(*module.split("."))).exists(), f"{name}: {line}"


def test_every_link_leads_somewhere(project: Project) -> None:
    for name in documents(project):
        assert_links_lead_somewhere(project.path / name)


def test_every_path_that_a_page_names_exists(project: Project, case: dict[str, str]) -> None:
    places = [project.path, project.path / "src" / "agent", project.path / "docs" / "agent"]
    for name, text in documents(project).items():
        for token in tokens(text):
            path = token.content
            if token.type != "code_inline" or not re.fullmatch(r"\.?\w[\w.-]*(/[\w.-]+)*/?", path):
                continue
            if "/" not in path and not re.search(
                r"\.(py|md|toml|ya?ml|jsonl|db|lock|local|example)$", path
            ):
                continue
            if path in MADE or path.startswith("AGENT_DATA_DIR/"):
                continue
            # documents are the same in every project, also without knowledge
            if (
                name.startswith("docs/")
                and path.startswith("knowledge/")
                and case["knowledge"] == "none"
            ):
                continue
            if name.startswith("docs/") and path == "callers.py" and case["web"] == "no":
                continue
            if path == "deploy/telephony/" and case["telephony"] == "no":
                continue
            assert any((place / path).exists() for place in places), f"{name}: {path}"


PAGES = [
    *("README.md", "AGENTS.md", "CONTRIBUTING.md", "SECURITY.md"),
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))),
    "tests/agent/lifecycle/README.md",
]


@pytest.mark.parametrize("name", PAGES)
def test_what_the_pages_of_this_repository_name_exists(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    targets = set(
        re.findall(
            r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    for line in code_of(text):
        for target in re.findall(r"(?:^|&& )make ([a-z-]+)", line):
            assert target in targets, f"{name}: {line}"
    assert_links_lead_somewhere(ROOT / name)
    roots = ("template/", "tests/", "tools/", "hooks/", "benchmarks/", "docs/", "releases/")
    for path in {
        line for line in code_of(text) if line.startswith(roots) and re.fullmatch(r"[\w./-]+", line)
    }:
        assert any((place / path).exists() for place in (ROOT, ROOT / "template")), (
            f"{name}: {path}"
        )


def test_the_readme_names_the_versions_that_are_supported() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    said = dict(
        re.findall(r"^\| (Python|livekit-agents|Copier|Cookiecutter) \| (.+) \|$", text, re.M)
    )
    files = quick.render("pyproject.toml", ".github/workflows/ci.yml")
    project = tomllib.loads(files["pyproject.toml"])["project"]
    tested = yaml.safe_load(files[".github/workflows/ci.yml"])["jobs"]["test"]
    oldest, *_, newest = supported = tested["strategy"]["matrix"]["python"]
    assert said["Python"].startswith(
        f"{oldest} to {newest}, as livekit-agents; a project's CI runs"
    )
    ours = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert ours["jobs"]["python"]["strategy"]["matrix"]["python"] == supported
    (sdk,) = (name for name in project["dependencies"] if name.startswith("livekit-agents"))
    assert said["livekit-agents"].startswith(f"{sdk.removeprefix('livekit-agents')}; ")
    copier = re.sub(r"\.0$", "", CONFIG["_min_copier_version"])
    own = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert own["project"]["requires-python"] == project["requires-python"]
    assert f"copier>={copier},<10" in own["dependency-groups"]["dev"]
    assert said["Copier"] == f"{copier} or newer, below 10"
    (needs,) = ROOT.glob("needs_cookiecutter_*_or_newer_with_its_hooks__or_copier.py")
    cookiecutter = ".".join(re.findall(r"\d+", needs.name))
    assert said["Cookiecutter"] == f"{cookiecutter} or newer, with its hooks"


def test_the_readme_counts_what_is_tested() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    on_a_server = [end for end in ENDS.values() if "server" in end.proven]
    assert f"[{len(ENDS)} ways a call can end]" in text
    assert f"{len(on_a_server)} of them [on a real livekit-server]" in text
    by_telephone = [end for end in ENDS.values() if "phone" in end.proven]
    assert f"{len(by_telephone)} with [a telephone]" in " ".join(text.split())
    pages = [(ROOT / f"template/docs/agent/{name}.md") for name in ("memory", "knowledge")]
    tables = [page.read_text(encoding="utf-8").partition("| fault |")[2] for page in pages]
    faults = re.findall(r"^[|] `", "".join(tables), re.M)
    assert f"{len(faults)} faults of [memory]" in text
