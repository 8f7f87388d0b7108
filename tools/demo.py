"""`make demo`: render a project, install it, ask it, call it on a real server, and talk to it.

It ends in the page of `agent talk`, which stays until Ctrl-C; without a terminal it is only opened.
A second run renders the project again if it is unchanged, and otherwise uses it as it is. The demo
needs no keys, listens on loopback only, and ends every process it starts.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.caller import Caller
from tests.support.projects import UV, clean_environment
from tests.support.server import CACHE, Unavailable, find_binary, livekit_server
from tests.support.worker import Worker, worker
from tools.history import ROOT, WORK_TREE, Trouble, git, make_history

DEMO = ROOT / "demo-agent"
# The committer of the rendered files: a newer commit by somebody else is work to keep.
RENDERER = "make demo"
CALLER = "ann"
QUESTIONS = (
    "When are you open on Saturday?",
    "What does the small service cost?",
    # knowledge/ has no answer
    "What is the capital of Peru?",
)
console = Console(highlight=False, soft_wrap=True)


@contextmanager
def doing(what: str) -> Iterator[None]:
    """Show what is being done, and at the end how long it took."""
    began = time.monotonic()
    if console.is_terminal:
        with console.status(f"{what} ..."):
            yield
    else:
        print(f"  {what} ...", flush=True)
        yield
    console.print(f"  {what}: {time.monotonic() - began:.1f} s", style="dim")


def run(*command: str, cwd: Path = ROOT, stdin: str = "", **environment: str) -> str:
    """Run a command and return its output; raises Trouble with its last lines."""
    environ = clean_environment(**environment)
    done = subprocess.run(
        command, cwd=cwd, env=environ, input=stdin, capture_output=True, encoding="utf-8"
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-15:]
        raise Trouble("\n".join([f"`{' '.join(command)}` failed in {cwd}:", *said]))
    return done.stdout


def is_untouched() -> bool:
    """Whether demo-agent is as it was rendered, except uv.lock and the files that git ignores."""
    if not (DEMO / ".git").exists():
        return False
    status = git(DEMO, "status", "--porcelain", "--untracked-files=all").splitlines()
    committer = git(DEMO, "log", "--max-count=1", "--format=%cn").strip()
    return committer == RENDERER and not [line for line in status if line != "?? uv.lock"]


def render() -> None:
    """Render demo-agent with `copier copy`, unless somebody has changed it; raises Trouble."""
    if DEMO.exists() and any(DEMO.iterdir()) and not is_untouched():
        if not (DEMO / "src" / "agent").is_dir():
            raise Trouble(
                f"{DEMO} exists and is not a rendered project: move it, then run this again"
            )
        console.print(
            "  demo-agent has your changes, so it is used as it is. Move it away to see a new one."
        )
        return
    # kept, for `copier update`
    template = CACHE / "demo" / uuid.uuid5(uuid.NAMESPACE_URL, ROOT.as_uri()).hex
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / DEMO.name
        with doing("copier copy --defaults --data project_name='Demo Agent' TEMPLATE demo-agent"):
            shutil.rmtree(template, ignore_errors=True)
            make_history(template)
            copier = (
                sys.executable,
                "-m",
                "copier",
                "copy",
                "--quiet",
                "--defaults",
                "--vcs-ref",
                WORK_TREE,
            )
            run(*copier, "--data", "project_name=Demo Agent", f"git+file://{template}", str(fresh))
            git(fresh, "init", "--quiet", "--initial-branch=main")
            git(fresh, "add", "--all", "--force")
            who = ("-c", f"user.name={RENDERER}", "-c", "user.email=", "-c", "commit.gpgsign=false")
            git(fresh, *who, "commit", "--quiet", "--message", "Rendered by the template")
        if (DEMO / ".git").exists():
            git(DEMO, "fetch", "--quiet", str(fresh), "main")
            git(DEMO, "reset", "--quiet", "--hard", "FETCH_HEAD")
        else:
            git(ROOT, "clone", "--quiet", str(fresh), str(DEMO))
            git(DEMO, "remote", "remove", "origin")
    count = len(git(DEMO, "ls-files").splitlines())
    console.print(f"  demo-agent: {count} files, in their own git repository")


def chat() -> None:
    """Pipe the questions into `agent chat` and show the answers, one a line; raises Trouble."""
    with doing("uv run agent chat, with three lines piped in"):
        said = run(
            *(str(UV), "run", "agent", "chat", "--as", CALLER),
            cwd=DEMO,
            stdin="".join(f"{question}\n" for question in QUESTIONS),
            AGENT_MODELS="scripted",
        )
    answers = said.splitlines()
    if len(answers) != len(QUESTIONS) or not all(answers):
        raise Trouble(f"`agent chat` answered {len(QUESTIONS)} questions with: {said!r}")
    for question, answer in zip(QUESTIONS, answers, strict=True):
        console.print(f"  you    {question}\n  agent  {answer}\n", markup=False)


async def call() -> None:
    """Make one call on its own livekit-server, and show its log."""
    name = tomllib.loads((DEMO / "src/agent/defaults.toml").read_text(encoding="utf-8"))["name"]
    async with AsyncExitStack() as stack:
        with doing("starting livekit-server, and the agent with `uv run agent start`"):
            livekit = await stack.enter_async_context(livekit_server())
            running = await stack.enter_async_context(
                worker(DEMO, [str(UV), "run", "agent"], livekit)
            )
        await talk_to(
            running, Caller(livekit, f"demo-{uuid.uuid4().hex[:8]}", name, identity=CALLER)
        )


async def talk_to(running: Worker, caller: Caller) -> None:
    """Hear the greeting, ask a question, hang up; then show the log of the call as a table."""
    async with caller:
        with console.status("listening ..."):
            greeting = await caller.hear_text()
            await caller.hear_sound()
        console.print(f"  agent  {greeting}\n  {CALLER}    {QUESTIONS[0]}", markup=False)
        with console.status("listening ..."):
            await caller.write(QUESTIONS[0])
            answer = await caller.hear_text()
        console.print(
            f"  agent  {answer}   (with {caller.loud_seconds:.1f} s of sound)", markup=False
        )
        console.print(f"  {CALLER} hangs up\n")
    end = await running.ended(caller.room_name)
    await running.free()
    table = Table("step", "", "done after", "outcome", box=None, padding=(0, 2))
    for record in running.of(caller.room_name):
        if "step" in record:
            table.add_row(
                str(record["step"]),
                record["name"],
                f"{record['ms'] / 1000:.3f} s",
                record["outcome"],
            )
    console.print(table)
    closed = ", ".join(
        f"{resource} {outcome}" for resource, outcome in running.closed(caller.room_name)
    )
    how = (
        f"{end['reason']}, after {end['seconds']:.1f} s and {end['turns']} turns; the slot is free"
    )
    console.print(f"\n  closed, in this order: {closed}\n  ended: {how}\n")


NEXT = """\
  cd demo-agent
  uv run agent chat              write to it yourself; it looks things up in knowledge/*.md
  uv run pytest                  its tests, without keys and without network
  uv run agent doctor            what real calls need: keys go into .env.local, see .env.example
  src/agent/persona.py           who it is: change a sentence, chat again
  uv run agent talk              the page below, again

  Your own project:  copier copy TEMPLATE my-agent   (README.md says where the template is)
"""


def talk() -> None:
    """Open the page of `agent talk`, at a terminal until Ctrl-C; raises Trouble."""
    with doing("uv sync --group speech (downloads ears and a voice the first time)"):
        run(str(UV), "sync", "--group", "speech", cwd=DEMO)
    stays = console.is_terminal
    if stays:
        console.print("  Your browser opens its page. Ctrl-C here ends it, and this demo.\n")
        # it goes to `agent talk` too, which ends by it
        signal.signal(signal.SIGINT, lambda *_: None)
    with subprocess.Popen(
        [str(UV), "run", "agent", "talk", "--port", "0", *([] if stays else ["--no-open"])],
        cwd=DEMO,
        env=clean_environment(),
        stdout=None if stays else subprocess.PIPE,
        encoding="utf-8",
    ) as page:
        if page.stdout is not None:
            try:
                look_at(page.stdout.readline().strip())
            finally:
                page.terminate()
        if page.wait() not in {0, 128 + signal.SIGINT}:
            raise Trouble(f"`agent talk` ended with exit code {page.returncode}: see above")


def look_at(address: str) -> None:
    """Load the page, if there is one."""
    if address:
        with urllib.request.urlopen(address) as answer:
            size = len(answer.read())
        console.print(f"  its page is at {address} ({size} bytes)")
        console.print("  this is no terminal, so nobody talks, and it is closed again")


def demonstrate() -> None:
    """Run every part, in order; raises Trouble."""
    console.print("[bold]1  Render a project[/]")
    render()
    console.print("[bold]2  Install it[/]")
    with doing("uv sync (downloads LiveKit's SDK the first time)"):
        run(str(UV), "sync", cwd=DEMO)
    console.print(
        "[bold]3  Ask it three questions[/]"
        "  (uv run agent chat; no keys, so a script answers from knowledge/)"
    )
    chat()
    console.print("[bold]4  Call it, on a real livekit-server[/]")
    try:
        with doing("looking for livekit-server"):
            find_binary()
        has_server = True
    except Unavailable as why:
        has_server = False
        console.print(
            f"  skipped: {why}. Put livekit-server or Go on PATH, and run this again.\n",
            markup=False,
        )
    if has_server:
        asyncio.run(call())
    console.print("[bold]5  What to type next[/]")
    console.print(NEXT, markup=False)
    if has_server:
        console.print("[bold]6  Talk to it, in your browser[/]  (uv run agent talk)")
        talk()


def main() -> int:
    """Return the exit status: 0 also where no server is available, which is printed."""
    # The Makefile sets it; the SDK would be compiled again at every start.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    try:
        demonstrate()
    except (Trouble, AssertionError, TimeoutError, OSError) as trouble:
        print(f"demo: {trouble or type(trouble).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
