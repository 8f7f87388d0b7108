"""Write template/.template.toml.jinja: which files of a rendered project are the owner's, shared, and ours.

    python tools/ownership.py            write it
    python tools/ownership.py --check    exit 1 if it is not what would be written

An update brings fixes to what is ours, merges what is shared, and leaves alone what is the owner's. What is neither the
owner's nor shared is ours. A path never changes its class after a release.
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

YOURS = (
    "src/agent/persona.py",
    "src/agent/resources.py",
    "tests/yours/**",
    "knowledge/**",
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
MARK = "--- yours below: updates never touch what follows ---"
ITSELF = ".template.toml"
NAMES = {"{{ _copier_conf.answers_file }}": ".copier-answers.yml"}

HEAD = f"""\
# Whose each file is. Generated with the template: read it, do not edit it.
#   yours    updates never touch these
#   shared   updates merge these; add your lines below the mark
#   ours     updates bring fixes; `agent doctor` says which of them differ
#   sha256   of those of ours that are the same in every project; the others hold your answers

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


def is_ours(path: str) -> bool:
    """Whether updates replace this file."""
    return path not in SHARED and not any(fnmatch(path, glob) for glob in YOURS)


def conditions(root: Path) -> dict[str, str]:
    """What copier.yml leaves out under a condition: path to condition."""
    entries = yaml.safe_load((root / "copier.yml").read_text(encoding="utf-8"))["_exclude"]
    found = (re.fullmatch(r"\{% if (.+) %\}/(.+)\{% endif %\}", entry) for entry in entries)
    return {match[2]: match[1] for match in found if match and "_copier_operation" not in match[1]}


def generate(root: Path) -> str:
    """The template of `.template.toml`."""
    left_out = conditions(root)

    def entry(path: str, line: str) -> str:
        return (
            f"# % if not ({left_out[path]})\n{line}\n# % endif\n"
            if path in left_out
            else f"{line}\n"
        )

    files = template_files(root)
    ours = sorted({path for path in files if is_ours(path)} | {ITSELF})
    verbatim = [path for path in ours if path != ITSELF and files[path].suffix != ".jinja"]
    text = HEAD
    for name, paths in (("yours", YOURS), ("shared", SHARED)):
        text += f"{name} = [\n" + "".join(f"    {json.dumps(path)},\n" for path in paths) + "]\n"
    text += (
        "ours = [\n"
        + "".join(entry(path, f"    {json.dumps(path)},") for path in ours)
        + "]\n\n[sha256]\n"
    )
    for path in verbatim:
        digest = hashlib.sha256(files[path].read_bytes()).hexdigest()
        text += entry(path, f'{json.dumps(path)} = "{digest}"')
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
