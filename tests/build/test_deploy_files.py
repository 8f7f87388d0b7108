"""The files that deploy an agent are valid, and give its calls the time that the code needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.projects import Answers, Project, render
from tests.support.sip import NEEDS
from tests.support.templates import ROOT, Template

CHOICES = [
    Answers("sqlite", "sqlite", telephony="yes"),
    Answers("pgvector", "redis"),
    Answers("none", "none"),
]
TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="module", params=CHOICES, ids=str)
def project(
    template: Template, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Project:
    """A project of every memory, rendered only."""
    return render(template, tmp_path_factory.mktemp("deploy") / "project", request.param)


def accepted(tool: str, *arguments: str | Path) -> None:
    """Have a linter accept a file; what it found is in the error."""
    command = [str(TOOLS / tool), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{tool}:\n{done.stdout}{done.stderr}"


def compose(project: Project) -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load(project.read("compose.yaml"))["services"]
    return services


def kubernetes(project: Project) -> dict[str, dict[str, Any]]:
    """The manifest's objects by kind."""
    return {
        found["kind"]: found for found in yaml.safe_load_all(project.read("deploy/kubernetes.yaml"))
    }


def seconds(duration: str) -> int:
    """A duration as Compose writes it, such as 11m or 1m30s."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


def test_the_dockerfile_passes_hadolint(project: Project) -> None:
    accepted("hadolint", project.path / "Dockerfile")


def test_compose_yaml_is_a_compose_file(project: Project) -> None:
    accepted(
        "check-jsonschema", "--builtin-schema=vendor.compose-spec", project.path / "compose.yaml"
    )


def test_the_manifest_is_one_that_kubernetes_knows(project: Project) -> None:
    accepted("kubernetes-validate", "--strict", project.path / "deploy/kubernetes.yaml")


@pytest.mark.parametrize("name", ["ci", "update"])
def test_the_workflow_is_valid_and_safe(project: Project, name: str) -> None:
    workflow = project.path / f".github/workflows/{name}.yml"
    accepted("check-jsonschema", "--builtin-schema=vendor.github-workflows", workflow)
    accepted("zizmor", "--offline", "--no-progress", workflow)
    secrets = set(re.findall(r"secrets\.\w+(?: \|\| [\w.]+| != '')?", workflow.read_text()))
    optional = {
        "secrets.TEMPLATE_UPDATE_TOKEN || github.token",
        "secrets.TEMPLATE_UPDATE_TOKEN != ''",
    }
    if name == "ci":
        optional = {
            "secrets.LIVEKIT_API_SECRET != ''",
            *("secrets.LIVEKIT_API_KEY", "secrets.LIVEKIT_API_SECRET"),
        }
    assert secrets == optional, "a fresh fork has none"


@pytest.mark.parametrize(
    "workflow", sorted((ROOT / ".github/workflows").iterdir()), ids=lambda path: path.name
)
def test_our_own_workflow_is_valid_and_safe(workflow: Path) -> None:
    accepted("check-jsonschema", "--builtin-schema=vendor.github-workflows", workflow)
    accepted("zizmor", "--offline", "--no-progress", workflow)


def test_the_weekly_workflow_installs_what_livekit_sip_is_built_with() -> None:
    workflow = (ROOT / ".github/workflows/telephone.yml").read_text(encoding="utf-8")
    assert set(NEEDS) <= set(workflow.split())


@pytest.mark.parametrize(
    "form", sorted((ROOT / ".github/ISSUE_TEMPLATE").iterdir()), ids=lambda path: path.name
)
def test_an_issue_form_is_one_that_github_shows(form: Path) -> None:
    accepted("check-jsonschema", "--builtin-schema=vendor.github-issue-forms", form)


def test_containers_may_stop_as_long_as_calls_may_take_to_end(default_project: Project) -> None:
    code = (
        "import json; from agent.lifecycle import timeouts as t;"
        "from agent.settings import Settings;"
        "s = Settings();"
        "calls_end = s.goodbye_seconds + s.close_seconds + t.END_ROOM_SECONDS + t.UNWIND_SECONDS;"
        "print(json.dumps([s.drain_seconds, calls_end + t.EXIT_SECONDS + t.SDK_KILL_SECONDS]))"
    )
    drain, end = json.loads(default_project.run("uv", "run", "python", "-c", code).stdout)

    agent, manifest = compose(default_project)["agent"], kubernetes(default_project)
    pod = manifest["Deployment"]["spec"]["template"]["spec"]
    assert int(agent["environment"]["AGENT_DRAIN_SECONDS"]) == drain
    assert int(manifest["ConfigMap"]["data"]["AGENT_DRAIN_SECONDS"]) == drain
    assert seconds(agent["stop_grace_period"]) >= drain + end
    assert pod["terminationGracePeriodSeconds"] >= drain + end


def test_containers_can_neither_be_root_nor_write_outside_their_volumes(project: Project) -> None:
    agent, pod = (
        compose(project)["agent"],
        kubernetes(project)["Deployment"]["spec"]["template"]["spec"],
    )
    (container,) = pod["containers"]

    assert "USER 10001:10001" in project.read("Dockerfile")
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["fsGroup"] == 10001
    assert agent["read_only"] is container["securityContext"]["readOnlyRootFilesystem"] is True
    assert agent["cap_drop"] == container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/data", "/tmp"}
    assert agent["volumes"] == ["data:/data"]
    assert agent["tmpfs"] == ["/tmp"]


def test_memory_in_a_file_outlives_its_pod_and_is_never_shared_by_two(project: Project) -> None:
    manifest = kubernetes(project)

    in_a_file = project.chosen.memory == "sqlite"
    assert ("PersistentVolumeClaim" in manifest) is in_a_file
    assert (manifest["Deployment"]["spec"]["replicas"] == 1) is in_a_file


def test_documents_in_postgresql_are_ingested_before_the_agent_starts(project: Project) -> None:
    services, manifest = compose(project), kubernetes(project)
    if project.chosen.knowledge != "pgvector":
        assert "ingest" not in services
        assert "Job" not in manifest
        return
    agent, ingest = services["agent"], services["ingest"]
    (pod,) = manifest["Job"]["spec"]["template"]["spec"]["containers"]

    assert ingest["command"] == pod["args"] == ["ingest"]
    assert agent["depends_on"]["ingest"] == {"condition": "service_started"}
    assert ingest["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert (
        agent["environment"]["AGENT_KNOWLEDGE_URL"] == ingest["environment"]["AGENT_KNOWLEDGE_URL"]
    )
    assert "ports" not in services["postgres"], "everybody knows its password"
    container = manifest["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert (pod["image"], pod["envFrom"]) == (container["image"], container["envFrom"])


def test_compose_agent_has_the_keys_of_its_server(project: Project) -> None:
    services = compose(project)
    environment = services["agent"]["environment"]
    server = yaml.safe_load(services["livekit"]["environment"]["LIVEKIT_CONFIG"])

    assert server["keys"] == {environment["LIVEKIT_API_KEY"]: environment["LIVEKIT_API_SECRET"]}
    assert environment["LIVEKIT_URL"] == f"ws://127.0.0.1:{server['port']}"
    published = {
        port.removesuffix("/udp").split(":")[-1] for port in compose(project)["livekit"]["ports"]
    }
    assert published >= {
        str(server["port"]),
        str(server["rtc"]["tcp_port"]),
        str(server["rtc"]["udp_port"]),
    }
