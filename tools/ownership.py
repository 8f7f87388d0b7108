"""Write template/.template.toml.jinja: who changes which file of a rendered project.

    python tools/ownership.py            write it
    python tools/ownership.py --check    exit 1 if it is not what would be written

An update brings fixes to the template's files, merges the shared ones, and never changes the
owner's. A file that is neither the owner's nor shared is the template's. A released path never
changes its class, and only the template's may move.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import yaml

OWNER = (
    "src/agent/persona.py",
    "src/agent/resources.py",
    "src/agent/callers.py",
    "tests/yours/**",
    "knowledge/**",
    "deploy/telephony/**",
    "README.md",
)
SHARED = (
    ".dockerignore",
    ".env.example",
    ".github/workflows/ci.yml",
    ".gitignore",
    ".pre-commit-config.yaml",
    "AGENTS.md",
    "Dockerfile",
    "compose.yaml",
    "deploy/kubernetes.yaml",
    "pyproject.toml",
)
# Where the template's files of earlier releases are now: `agent update` says it to an owner who has
# changed one. After v0.5.0 they are meant to rest. A path without a successor is in GONE; the gate
# wants each path that is gone in one of the two.
MOVED = {
    "deploy/livekit.yaml": "compose.yaml",
    "docs/agent/ends.md": "docs/agent/ending-calls.md",
    "docs/agent/faults.md": "docs/agent/memory.md",
    "src/agent/breaker.py": "src/agent/circuit_breaker.py",
    "src/agent/chat.py": "src/agent/cli/chat.py",
    "src/agent/conversation.py": "src/agent/conversation/agent.py",
    "src/agent/doctor.py": "src/agent/cli/doctor.py",
    "src/agent/early.py": "src/agent/transport/preconnect.py",
    "src/agent/failures.py": "src/agent/conversation/fallback.py",
    "src/agent/knowledge/beside.py": "src/agent/knowledge/embedder_process.py",
    "src/agent/knowledge/chunks.py": "src/agent/knowledge/passages.py",
    "src/agent/knowledge/commands.py": "src/agent/cli/documents.py",
    "src/agent/knowledge/formats.py": "src/agent/knowledge/passages.py",
    "src/agent/knowledge/hybrid.py": "src/agent/knowledge/ranking.py",
    "src/agent/knowledge/pgvector.py": "src/agent/knowledge/pgvector/__init__.py",
    "src/agent/knowledge/words.py": "src/agent/knowledge/bm25.py",
    "src/agent/lifecycle.py": "src/agent/lifecycle/call.py",
    "src/agent/line.py": "src/agent/transport/room.py",
    "src/agent/memory/call.py": "src/agent/memory/call_memory.py",
    "src/agent/memory/delivery.py": "src/agent/memory/spool.py",
    "src/agent/memory/store.py": "src/agent/memory/__init__.py",
    "src/agent/memory/thread.py": "src/agent/sqlite_thread.py",
    "src/agent/phone.py": "src/agent/cli/call.py",
    "src/agent/undisturbed.py": "src/agent/ignore_sigterm.py",
    "src/agent/update.py": "src/agent/cli/update.py",
    "src/agent/usage.py": "src/agent/lifecycle/journal.py",
    "src/agent/worker.py": "src/agent/cli/run.py",
    "tests/ends.py": "tests/test_contract.py",
    "tests/line.py": "tests/talk.py",
}
GONE = (
    # they prove the template, so they are run there
    "tests/test_*.py",
    "tests/embeddings_server.py",
)
MARK = "--- yours below: updates never touch what follows ---"
ITSELF = ".template.toml"
NAMES = {"{{ _copier_conf.answers_file }}": ".copier-answers.yml"}

HEAD = f"""\
# Who changes which file. Generated with the template: read it, do not edit it.
#   owner      you: updates never change these
#   shared     both: updates merge these; add your lines below the mark
#   template   updates: they bring fixes; `agent doctor` says which of them you have changed
#   answers    what the project was made with, as .copier-answers.yml should say
#   sha256     of those of the template that are the same in every project: without your answers
#   moved      where the template's files of earlier versions are now

mark = "{MARK}"
"""


def template_files(root: Path) -> dict[str, Path]:
    """Each file of the template: its path in a project that has it, and where it is here."""
    listing = [
        "git",
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
        "--",
        "template",
    ]
    listed = subprocess.run(listing, cwd=root, capture_output=True, text=True, check=True).stdout
    sources = [root / name for name in listed.split("\0") if name]
    files = {}
    for source in filter(Path.is_file, sources):
        path = source.relative_to(root / "template").as_posix().removesuffix(".jinja")
        files[NAMES.get(path, path)] = source
    return files


def is_templates(path: str) -> bool:
    """Whether updates replace this file."""
    return path not in SHARED and not any(fnmatch(path, glob) for glob in OWNER)


def conditions(root: Path) -> dict[str, str]:
    """The files and folders that copier.yml leaves out, and under which condition."""
    entries = yaml.safe_load((root / "copier.yml").read_text(encoding="utf-8"))["_exclude"]
    found = (re.fullmatch(r"\{% if (.+) %\}/(.+)\{% endif %\}", entry) for entry in entries)
    return {match[2]: match[1] for match in found if match and "_copier_operation" not in match[1]}


def plain_answers(root: Path) -> list[str]:
    """The questions whose answers are plain words: in TOML they need no escaping."""
    asked = yaml.safe_load((root / "copier.yml").read_text(encoding="utf-8"))
    return ["project_slug", "agent_name", *(name for name in asked if "choices" in asked[name])]


def generate(root: Path) -> str:
    """The template of `.template.toml`."""
    left_out = conditions(root)

    def entry(path: str, line: str) -> str:
        folders = path.split("/")
        names = ["/".join(folders[: depth + 1]) for depth in range(len(folders))]
        reasons = " or ".join(left_out[name] for name in names if name in left_out)
        return f"# % if not ({reasons})\n{line}\n# % endif\n" if reasons else f"{line}\n"

    files = template_files(root)
    brought = sorted({path for path in files if is_templates(path)} | {ITSELF})
    text = HEAD
    for name, paths in (("owner", OWNER), ("shared", SHARED)):
        text += f"{name} = [\n" + "".join(f"    {json.dumps(path)},\n" for path in paths) + "]\n"
    text += "template = [\n"
    text += "".join(entry(path, f"    {json.dumps(path)},") for path in brought) + "]\n"
    text += "\n[answers]\n"
    text += "".join(f'{name} = "{{{{ {name} }}}}"\n' for name in plain_answers(root))
    text += "\n[sha256]\n"
    for path in brought:
        if path != ITSELF and files[path].suffix != ".jinja":
            digest = hashlib.sha256(files[path].read_bytes()).hexdigest()
            text += entry(path, f'{json.dumps(path)} = "{digest}"')
    text += "\n[moved]\n"
    for path, now in sorted(MOVED.items()):
        text += entry(now, f"{json.dumps(path)} = {json.dumps(now)}")
    return text


def main() -> int:
    """Write or check; return the exit status."""
    parser = argparse.ArgumentParser(description="Write template/.template.toml.jinja.")
    parser.add_argument(
        "--check", action="store_true", help="change nothing; exit 1 if it would change"
    )
    parser.add_argument(
        "--root", type=Path, default=Path(__file__).parent.parent, help="the repository"
    )
    options = parser.parse_args()
    target: Path = options.root / "template" / f"{ITSELF}.jinja"
    text = generate(options.root)
    if target.is_file() and target.read_text(encoding="utf-8") == text:
        return 0
    if options.check:
        print(f"{target} is not up to date: run `make ownership`", file=sys.stderr)
        return 1
    target.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
