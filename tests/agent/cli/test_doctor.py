from __future__ import annotations

import asyncio
import hashlib
import io
import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest
from google.protobuf.message import Message
from livekit.protocol import agent_dispatch, room, sip

from agent.__main__ import main
from agent.cli.checks import PROVEN_SDKS, SDK_RANGE, Finding
from agent.cli.doctor import print_findings
from agent.memory import Note, spool
from agent.settings import load_settings
from template.tests.conftest import pytest_terminal_summary
from tests.agent.reports.made import leave, report
from tests.agent.reports.test_webhook import SECRET as WEBHOOK_SECRET
from tests.support.embeddings_server import EmbeddingsServer, embeddings_server
from tests.support.templates import ROOT

SECRET = "a-secret-of-more-than-thirty-two-bytes"
# the template's files
TEMPLATES = {
    "src/agent/lifecycle/call.py": "ctx.add_shutdown_callback(end)\n",
    "docs/agent/commands.md": "# Commands\n",
    ".github/workflows/update.yml": "name: Update\n",
}


class Examined(NamedTuple):
    code: int
    lines: list[str]

    def about(self, check: str) -> list[str]:
        """The lines of one check, without its name."""
        rows = [line.split(maxsplit=2) for line in self.lines]
        return [f"{level} {rest}" for level, name, rest in rows if name == check]


Doctor = Callable[..., Examined]


TRUNK = sip.SIPInboundTrunkInfo(
    sip_trunk_id="ST_1", numbers=["+493023125999"], allowed_addresses=["203.0.113.0/24"]
)
SENT = room.RoomConfiguration(agents=[agent_dispatch.RoomAgentDispatch(agent_name="desk")])
TELEPHONE: dict[str, Message] = {
    "ListSIPInboundTrunk": sip.ListSIPInboundTrunkResponse(items=[TRUNK]),
    "ListSIPDispatchRule": sip.ListSIPDispatchRuleResponse(
        items=[sip.SIPDispatchRuleInfo(room_config=SENT)]
    ),
}


class EmptyServer(BaseHTTPRequestHandler):
    """A LiveKit server without rooms; a telephone number reaches the agent."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        if answer := TELEPHONE.get(self.path.rpartition("/")[2]):
            self.wfile.write(answer.SerializeToString())

    def log_message(self, *arguments: object) -> None:
        return


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project without any problem."""
    home = tmp_path / "home"
    for folder in ("knowledge", "src/agent"):
        (home / folder).mkdir(parents=True)
    (home / "knowledge" / "hours.md").write_text(
        "# Opening hours\n\nOn Saturday we open at ten.\n", encoding="utf-8"
    )
    for name, text in TEMPLATES.items():
        write_own(home, text, name)
    answers = (
        "_commit: v1.2.0\n_src_path: https://ann:hunter2@example.com/template.git\nmemory: none\n"
        "agent_name: desk\n"
    )
    (home / ".copier-answers.yml").write_text(answers, encoding="utf-8")
    digests = "".join(
        f'"{name}" = "{hashlib.sha256(text.encode()).hexdigest()}"\n'
        for name, text in TEMPLATES.items()
    )
    (home / ".template.toml").write_text(
        f"template = {json.dumps([*TEMPLATES])}\n\n[sha256]\n{digests}", encoding="utf-8"
    )
    monkeypatch.setenv("AGENT_HOME", str(home))
    monkeypatch.setenv("AGENT_NAME", "desk")
    monkeypatch.setenv("AGENT_KNOWLEDGE", "none")
    monkeypatch.setenv("AGENT_MEMORY_URL", "none")
    monkeypatch.setenv("LIVEKIT_API_KEY", "devkey")
    monkeypatch.setenv("LIVEKIT_API_SECRET", SECRET)
    with HTTPServer(("127.0.0.1", 0), EmptyServer) as server:
        threading.Thread(
            target=lambda: server.serve_forever(poll_interval=0.01), daemon=True
        ).start()
        monkeypatch.setenv("LIVEKIT_URL", f"ws://127.0.0.1:{server.server_port}")
        yield home
        server.shutdown()


@pytest.fixture
def doctor(home: Path, capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Run `agent doctor` in this process."""

    def run(*arguments: str) -> Examined:
        load_settings.cache_clear()
        with pytest.raises(SystemExit) as ended:
            main(["doctor", *arguments])
        return Examined(int(ended.value.code or 0), capsys.readouterr().out.splitlines())

    return run


def write_own(home: Path, code: str, name: str = "src/agent/persona.py") -> None:
    path = home / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")


def test_where_everything_is_right_every_line_says_ok(doctor: Doctor) -> None:
    examined = doctor()

    assert examined.code == 0
    assert {line.split()[0] for line in examined.lines} == {"ok"}


def test_the_telephone_is_looked_at(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_NAME", "kitchen")

    (line,) = doctor().about("telephone")

    assert "+493023125999 reaches desk, and not kitchen" in line


def test_reports_that_wait_for_a_receiver_are_a_warning(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_WEBHOOK_URL", "https://example.com/calls")
    monkeypatch.setenv("AGENT_WEBHOOK_SECRET", WEBHOOK_SECRET)
    load_settings.cache_clear()
    leave(load_settings(), report("AJ_1"))

    examined = doctor()
    (warned,) = [line for line in examined.lines if line.startswith("warn")]
    assert "1 reports of calls wait for webhook" in warned
    assert "a worker (`agent start`) delivers them" in warned


def test_json_is_one_object(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIVEKIT_API_KEY")

    examined = doctor("--json")

    report = json.loads("\n".join(examined.lines))
    assert report["ok"] is False
    assert {
        "level": "fail",
        "check": "keys",
        "what": "LIVEKIT_API_KEY is missing",
    }.items() <= report["findings"][2].items()
    assert all(finding["cure"] for finding in report["findings"] if finding["level"] != "ok")


def test_the_memory_says_whom_it_knows_and_what_waits_for_it(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_MEMORY_URL", "sqlite")
    (answers,) = doctor().about("memory")
    assert answers.startswith("ok sqlite answers; other machines do not see ")

    settings = load_settings()
    spool.keep(spool.folder_of(settings), [("ann", Note("call", 1e10, "Ada"))])
    examined = doctor()
    assert examined.code == 0
    assert examined.about("memory")[1].startswith("warn 1 calls wait in ")


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_no_secret_is_shown(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    assert SECRET not in "\n".join(doctor(*arguments).lines)
    monkeypatch.setenv("LIVEKIT_API_SECRET", f'"{SECRET}"')
    assert SECRET not in "\n".join(doctor(*arguments).lines)


def test_a_wrong_setting_fails_and_the_rest_is_still_looked_at(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_PORT", "many")

    examined = doctor()

    assert examined.code == 1
    assert examined.about("settings")[0].startswith("fail AGENT_PORT")
    assert examined.about("files") == [
        "ok the template's files are there, and those without answers are as they came"
    ]


def test_a_server_that_does_not_answer_fails(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LIVEKIT_URL", "ws://127.0.0.1:1")

    examined = doctor()

    assert examined.code == 1
    assert examined.about("server") == [
        "fail ws://127.0.0.1:1 cannot be reached: start that server, or correct LIVEKIT_URL"
    ]


def test_a_short_secret_is_a_warning(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIVEKIT_API_SECRET", "secret")

    examined = doctor()

    assert examined.code == 0
    assert examined.about("keys")[0].startswith("warn LIVEKIT_API_SECRET has fewer than 32 bytes")


def test_inference_with_a_server_of_ones_own_is_a_warning_with_a_cure(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_MODELS", "livekit")

    examined = doctor()

    assert examined.code == 0
    assert examined.about("models")[0].startswith("warn AGENT_MODELS=livekit needs LiveKit Cloud")
    assert "AGENT_MODELS=scripted" in examined.about("models")[0]


def test_a_data_folder_that_cannot_be_written_fails(
    doctor: Doctor, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_DATA_DIR", str(home / ".template.toml"))

    assert doctor().about("data")[0].startswith("fail ")


def test_documents_and_their_index_are_looked_at(
    doctor: Doctor, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_KNOWLEDGE", "sqlite")
    (home / "knowledge" / "latin.md").write_bytes("Grüße".encode("latin-1"))

    before = doctor()
    with pytest.raises(SystemExit):
        main(["ingest"])
    after = doctor()

    assert before.about("documents")[0].startswith("warn latin.md is not UTF-8")
    assert before.about("documents")[1].startswith("ok 1 in ")
    assert before.about("index")[0].startswith("warn ")
    assert after.about("index") == ["ok up to date"]


@pytest.fixture
def embeddings() -> Iterator[EmbeddingsServer]:
    """A server beside the command, which has its own event loop."""
    ready, over = Future[EmbeddingsServer](), threading.Event()

    async def serve() -> None:
        async with embeddings_server() as server:
            ready.set_result(server)
            await asyncio.to_thread(over.wait)

    serving = threading.Thread(target=lambda: asyncio.run(serve()))
    serving.start()
    yield ready.result(10)
    over.set()
    serving.join()


def test_without_an_embedder_doctor_says_what_that_costs(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_KNOWLEDGE", "sqlite")
    [line] = doctor().about("embedder")
    assert line.startswith("ok documents are found by their words alone")
    assert "AGENT_EMBEDDINGS" in line


def test_an_embedder_is_asked_how_long_it_takes(
    doctor: Doctor, embeddings: EmbeddingsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_KNOWLEDGE", "sqlite")
    monkeypatch.setenv("AGENT_EMBEDDINGS", embeddings.url)
    monkeypatch.setenv("AGENT_KNOWLEDGE_SECONDS", "30")
    quick = doctor()
    monkeypatch.setenv("AGENT_KNOWLEDGE_SECONDS", "0.0001")
    slow = doctor()
    embeddings.status = 401
    refused = doctor()

    assert "answers with 4 numbers" in quick.about("embedder")[0]
    assert (slow.code, slow.about("embedder")[0][:4]) == (0, "warn")
    assert "raise AGENT_KNOWLEDGE_SECONDS" in slow.about("embedder")[0]
    assert (refused.code, refused.about("embedder")[0][:4]) == (1, "fail")
    assert "AGENT_EMBEDDINGS_KEY" in refused.about("embedder")[0]


def test_no_documents_fail(doctor: Doctor, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_KNOWLEDGE", "sqlite")
    (home / "knowledge" / "hours.md").unlink()

    examined = doctor()

    assert examined.code == 1
    assert examined.about("documents")[0].startswith("fail ")


def test_the_version_of_the_template_is_reported_without_the_password_of_its_address(
    doctor: Doctor,
) -> None:
    examined = doctor()

    (line,) = examined.about("template")
    assert line.startswith("ok at v1.2.0 of https://***@example.com/template.git: `agent update`")
    assert "hunter2" not in "\n".join(examined.lines)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_changed_file_of_the_templates_is_a_warning(
    doctor: Doctor, home: Path, name: str
) -> None:
    write_own(home, "# changed\n", name)

    examined = doctor()

    assert examined.code == 0
    (line,) = examined.about("files")
    assert line.startswith(f"warn {name} is the template's and was changed")
    assert ("a bot" if name.startswith(".github/") else "`agent update`") in line


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_missing_file_of_the_templates_fails(doctor: Doctor, home: Path, name: str) -> None:
    (home / name).unlink()

    examined = doctor()

    assert examined.code == 1
    assert examined.about("files")[0].startswith(f"fail {name} is missing")


def test_an_answer_that_was_changed_by_hand_fails(doctor: Doctor, home: Path) -> None:
    ownership = (home / ".template.toml").read_text(encoding="utf-8")
    made = '[answers]\nagent_name = "desk"\nlicense = "MIT"\nmemory = "redis"\n'
    (home / ".template.toml").write_text(f"{ownership}{made}", encoding="utf-8")

    examined = doctor()

    assert examined.code == 1
    _, line = examined.about("template")
    said = "fail .copier-answers.yml says memory: none, but the project was made with redis: "
    assert line.startswith(said)


def test_answers_may_have_another_name(doctor: Doctor, home: Path) -> None:
    ownership = (home / ".template.toml").read_text(encoding="utf-8")
    listed = ownership.replace("template = [", 'template = [".copier-answers.yml", ')
    (home / ".template.toml").write_text(listed, encoding="utf-8")
    (home / ".copier-answers.yml").rename(home / ".copier-answers.agent.yml")

    examined = doctor()

    assert examined.code == 0
    assert examined.about("template")[0].startswith("ok at v1.2.0")


@pytest.mark.parametrize("name", [".copier-answers.yml", "pyproject.toml", *TEMPLATES])
def test_a_conflict_that_was_committed_fails(doctor: Doctor, home: Path, name: str) -> None:
    ownership = (home / ".template.toml").read_text(encoding="utf-8")
    (home / ".template.toml").write_text(f'shared = ["pyproject.toml"]\n{ownership}', "utf-8")
    path = home / name
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    write_own(home, f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> main\n", name)

    examined = doctor()

    assert examined.code == 1
    said = [*examined.about("template"), *examined.about("files")]
    assert [line for line in said if line.startswith("fail")] == [
        line for line in said if line.startswith(f"fail {name} has conflict markers: finish that")
    ]
    assert name != ".copier-answers.yml" or not said[0].startswith("ok")


def test_a_file_with_windows_line_ends_is_as_it_came(doctor: Doctor, home: Path) -> None:
    for name, text in TEMPLATES.items():
        (home / name).write_bytes(text.replace("\n", "\r\n").encode())

    (line,) = doctor().about("files")
    assert line.startswith("ok the template's files are there")


def git(home: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=home, check=True, capture_output=True)


@pytest.fixture
def repository(home: Path) -> Path:
    """The project in a repository, with a file that has an umlaut in its name."""
    (home / "knowledge" / "Öffnungszeiten.md").touch()
    git(home, "init", "--quiet")
    git(home, "add", "--all")
    return home


def test_where_git_has_its_defaults_nothing_is_said_of_it(doctor: Doctor, repository: Path) -> None:
    assert doctor().about("git") == []


@pytest.mark.parametrize(
    ("name", "value", "effect"),
    [
        ("apply.whitespace", "error", "drops lines of yours"),
        ("apply.whitespace", "fix", "drops lines of yours"),
        ("status.showUntrackedFiles", "no", "hides its conflicts"),
        ("core.quotePath", "false", "stops half-way"),
        ("core.attributesFile", "*.md -diff", "drops lines of yours"),
        ("core.excludesFile", "docs/", "drops lines of yours"),
    ],
)
def test_a_setting_of_git_that_spoils_an_update_by_hand_is_a_warning(
    doctor: Doctor, repository: Path, tmp_path: Path, name: str, value: str, effect: str
) -> None:
    if name.endswith("File"):
        (tmp_path / "rules").write_text(f"{value}\n", encoding="utf-8")
        value = str(tmp_path / "rules")
    git(repository, "config", name, value)

    examined = doctor()

    assert examined.code == 0
    (line,) = examined.about("git")
    assert line.startswith("warn with ")
    assert f"`copier update` by hand {effect}: use `agent update`, which does not" in line


@pytest.mark.parametrize("mark", ["assume-unchanged", "skip-worktree"])
def test_an_edit_that_git_is_told_not_to_see_is_a_warning(
    doctor: Doctor, repository: Path, mark: str
) -> None:
    git(repository, "update-index", f"--{mark}", "docs/agent/commands.md")

    (line,) = doctor().about("git")
    assert line.startswith(f"warn docs/agent/commands.md is marked as {mark}")
    assert line.endswith(f"`git update-index --no-{mark} docs/agent/commands.md`")


def test_what_is_not_in_a_sparse_checkout_has_no_hidden_edit(
    doctor: Doctor, repository: Path
) -> None:
    git(repository, "update-index", "--skip-worktree", "knowledge/Öffnungszeiten.md")
    (repository / "knowledge/Öffnungszeiten.md").unlink()

    assert doctor().about("git") == []


def test_a_project_that_has_left_its_template_owns_every_file(doctor: Doctor, home: Path) -> None:
    (home / ".copier-answers.yml").unlink()
    write_own(home, "# changed\n", "src/agent/lifecycle/call.py")

    examined = doctor()

    assert examined.code == 0
    assert examined.about("template")[0].startswith("ok left: this project gets no updates")
    assert examined.about("files")[0].startswith("ok all of them are yours")


@pytest.mark.parametrize(
    ("code", "level", "mistake"),
    [
        ("await session.wait_for_completion()", "fail", "no wait_for_completion()"),
        ("ctx.delete_room()", "fail", "delete_room() is not awaited"),
        ("self.call.transport.ctx.add_shutdown_callback(end)", "warn", "a shutdown callback"),
        ("await self.session.aclose()", "warn", "session.aclose()"),
        ("time.sleep(1)", "warn", "time.sleep()"),
    ],
)
def test_a_known_mistake_in_own_code_is_found(
    doctor: Doctor, home: Path, code: str, level: str, mistake: str
) -> None:
    write_own(home, f"async def answer():\n    {code}\n")

    examined = doctor()

    assert len(examined.about("code")) == 1
    assert examined.about("code")[0].startswith(f"{level} src/agent/persona.py:2 ")
    assert mistake in examined.about("code")[0]
    assert examined.code == (1 if level == "fail" else 0)


@pytest.mark.parametrize(
    ("code", "better"),
    [
        ("from livekit.agents import Agent\nclass Orders(Agent): ...", "CallAgent"),
        ("from livekit.agents.voice import Agent as Base\nclass Orders(Base): ...", "CallAgent"),
        ("from livekit import agents\nclass Orders(agents.Agent): ...", "CallAgent"),
        ("from livekit.agents import AgentTask\nclass Orders(AgentTask[str]): ...", "CallTask"),
    ],
)
def test_an_agent_that_is_none_of_the_call_is_named_with_what_it_lacks(
    doctor: Doctor, home: Path, code: str, better: str
) -> None:
    write_own(home, code)

    examined = doctor()

    (line,) = examined.about("code")
    assert line.startswith("warn src/agent/persona.py:2 Orders lacks the caller, what was said")
    assert f"derive it from {better}" in line
    assert examined.code == 0


@pytest.mark.parametrize(
    "code",
    [
        "from agent.conversation import CallAgent\nclass Orders(CallAgent): ...\n",
        "from other.sdk import Agent\nclass Orders(Agent): ...\n",
        "async def answer():\n    await ctx.delete_room()\n",
        "def wait():\n    time.sleep(1)\n",
        "async def answer():\n    await asyncio.to_thread(lambda: time.sleep(1))\n",
        "async def answer():\n    await self.http.aclose()\n",
    ],
)
def test_what_only_looks_like_a_mistake_is_none(doctor: Doctor, home: Path, code: str) -> None:
    write_own(home, code)

    assert doctor().about("code") == ["ok no known mistakes in your own files"]


def test_own_code_is_found_wherever_it_is_except_where_it_is_not_own(
    doctor: Doctor, home: Path
) -> None:
    mistake = "session.wait_for_completion()\n"
    for name in ("tools/own.py", ".venv/lib/foreign.py", "data/foreign.py", "build/lib/foreign.py"):
        write_own(home, mistake, name)

    assert [line.split()[1] for line in doctor().about("code")] == ["tools/own.py:1"]


def test_own_code_that_is_no_python_fails_with_its_line(doctor: Doctor, home: Path) -> None:
    write_own(home, "hello = 1\ndef (\n")

    examined = doctor()

    assert examined.code == 1
    assert examined.about("code")[0].startswith("fail src/agent/persona.py:2 cannot be read")


@pytest.mark.parametrize(
    ("version", "level", "cure"),
    [
        (PROVEN_SDKS[-1], "ok", ""),
        ("1.8.99", "warn", f"uv lock --upgrade-package livekit-agents=={PROVEN_SDKS[-1]}"),
        ("1.8.8", "fail", "correct pyproject.toml"),
        ("1.9.0rc1", "fail", "correct pyproject.toml"),
    ],
)
def test_the_sdk_is_one_that_the_template_was_proven_with(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, version: str, level: str, cure: str
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)

    examined = doctor()

    (line,) = examined.about("versions")
    assert line.startswith(level)
    assert f"livekit-agents {version}" in line
    assert cure in line
    assert examined.code == (1 if level == "fail" else 0)


@pytest.mark.parametrize("version", [PROVEN_SDKS[-1], "1.8.99"])
def test_pytest_says_in_one_line_that_the_template_was_not_proven_with_this_sdk(
    monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config, version: str
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    shown = io.StringIO()

    pytest_terminal_summary(pytest.TerminalReporter(pytestconfig, shown))

    unproven = f"livekit-agents {version} is not a version that the template was proven with"
    assert [line[: len(unproven)] for line in shown.getvalue().splitlines()] == (
        [] if version in PROVEN_SDKS else [unproven]
    )


def test_the_sdk_of_these_tests_is_proven_and_within_what_a_project_takes() -> None:
    oldest, newest = (".".join(map(str, version)) for version in SDK_RANGE)
    pyproject = (ROOT / "template" / "pyproject.toml.jinja").read_text(encoding="utf-8")
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")

    assert f'"livekit-agents>={oldest},<{newest}"' in pyproject
    assert f"\nlivekit-agents=={PROVEN_SDKS[-1]} " in pins


def test_the_project_is_found_from_any_folder(
    doctor: Doctor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGENT_HOME")
    monkeypatch.chdir(tmp_path)

    assert doctor().about("settings")[0].endswith(f" in {ROOT}/template")


def test_every_check_stands_apart_from_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    # the longest name of all
    print_findings([Finding("fail", "recordings", "something is wrong", "mend it")])
    said = capsys.readouterr().out.split()
    assert said == ["fail", "recordings", "something", "is", "wrong:", "mend", "it"]


def test_a_bucket_for_recordings_that_nobody_makes_is_named(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AGENT_RECORDINGS_URL", "s3://calls/agent")
    examined = doctor()
    (line,) = examined.about("recordings")
    assert line.startswith("warn AGENT_RECORDINGS_URL is set, and no call is recorded")
