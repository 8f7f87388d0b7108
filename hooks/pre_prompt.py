"""Turn this throw-away copy of the repository into the tree that Cookiecutter expects.

Runs in the copy's root, before the first question. Afterwards every question of copier.yml is one of cookiecutter.json,
and the templates lie in a folder named by the answers, which are checked in the course (see copier_yml.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, "hooks")
from copier_yml import ASKED, CONFIG

MODULE = "livekit_agent_template_copier_yml"  # a name of its own: `hooks` could be anybody's


def described_commit() -> str | None:
    """The commit as Copier records it, None where there is no git repository or no git."""
    if not Path(".git").exists() or not shutil.which("git"):
        return None
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "describe", "--tags", "--always"]
    described = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    return described.stdout.strip() or None


def form() -> dict[str, Any]:
    """The questions, as cookiecutter.json has them: a list is a choice, its default first."""
    fields: dict[str, Any] = {}
    prompts: dict[str, Any] = {}
    for name, spec in ASKED.items():
        choices = spec.get("choices", [])
        labels = {value: label for label, value in choices.items()} if isinstance(choices, dict) else {}
        values = sorted(labels or choices, key=lambda value: value != spec["default"])
        fields[name] = values or spec["default"]
        prompts[name] = {"__prompt__": spec["help"], **labels} if labels else spec["help"]
    return fields | {"__prompts__": prompts}


def reshape(root: Path) -> list[str]:
    """Name each file as the project has it; return those to copy as they are."""
    for pattern in CONFIG["_exclude"]:
        if "{%" not in pattern:
            for path in list(root.glob(pattern[1:]) if pattern.startswith("/") else root.rglob(pattern)):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    answers_file = root / "{{ _copier_conf.answers_file }}.jinja"
    answers_file.rename(root / ".copier-answers.yml.jinja")
    plain = []
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        if path.suffix == ".jinja":
            path.rename(path.with_suffix(""))
        else:
            plain.append(path.relative_to(root).as_posix())
    root.rename("{{accepted(cookiecutter).project_slug}}")
    return plain


def main() -> None:
    """Reshape the copy."""
    commit = described_commit()
    config = form() | ({"_commit": commit} if commit else {})
    config["_copy_without_render"] = reshape(Path("template"))
    config["_extensions"] = [f"{MODULE}.copier_yml.CopierTemplate"]
    config["_jinja2_env_vars"] = {"line_statement_prefix": CONFIG["_envops"]["line_statement_prefix"]}
    Path("cookiecutter.json").write_text(json.dumps(config), encoding="utf-8")
    Path(MODULE).mkdir()
    shutil.copy("hooks/copier_yml.py", MODULE)


if __name__ == "__main__":
    main()
