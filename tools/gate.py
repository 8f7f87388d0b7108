"""Try the updates from every release to this checkout, and list the promises that would be broken.

    python tools/gate.py [DIR]      DIR: a history by tools/history.py; by default, of this checkout

Nothing may be lost by an update: no answer, no file, no name that an owner's code uses. Some of it
is read from every release's copier.yml and code; the rest is tried by `copier update` itself, with
a covering array of answers.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import string
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import griffe
import jinja2
import jinja2.meta
import yaml
from jinja2 import StrictUndefined
from jinja2.sandbox import SandboxedEnvironment
from packaging.version import Version

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.covering import covering
from tests.support.templates import (
    AWKWARD_NAMES,
    WORK_TREE,
    Project,
    Template,
    git,
    isolated_environment,
    make_template,
    parse_ownership,
    values_of,
)
from tools.history import stray_tags
from tools.ownership import GONE

# Copier refuses a template that has them, or that had them in any release.
TRUST = ("_tasks", "_migrations", "_jinja_extensions")
# One of so many sets of answers is also updated through every release in between.
STEP_BY_STEP = 3

# What an owner's code may use: docs/agent/ownership.md of a project promises it.
PUBLIC = {
    "agent.lifecycle.Call": (
        "caller",
        "called",
        "profile",
        "metadata",
        "room",
        "api",
        "settings",
        "resources",
        "memory",
        "knowledge",
        "open",
        "spawn",
        "hang_up",
    ),
    "agent.lifecycle.Reason": (
        *("CALLER_LEFT", "CALLER_DROPPED", "NO_SHOW", "AGENT_HUNG_UP", "TOO_LONG", "TOO_SILENT"),
        *("TOO_EXPENSIVE", "ROOM_CLOSED", "REMOVED", "WORKER_STOPPED", "error"),
    ),
    "agent.conversation.CallAgent": (
        *(
            "call",
            "patient_tools",
            "must_finish_tools",
            "must_have_tools",
            "greeting",
            "resuming",
            "goodbye",
            "still_there",
            "sorry",
            "cannot_hear",
            "is_caller",
            "remembered_as",
            "prewarm",
            "models",
            "session_options",
            "room_options",
            "before_start",
            "callee_speaks_first",
            "detects_voicemail",
            "is_voicemail",
            "on_voicemail",
            "on_keys",
            "tools",
        ),
        *("welcome", "on_exit", "llm_node", "tts_node"),
    ),
    "agent.conversation.CallTask": (),
    "agent.conversation.SessionOptions": (),
    "agent.conversation.per_call": (),
    "agent.conversation.ConfigError": (),
    "agent.models.Models": ("llm", "stt", "tts", "vad", "turn_handling"),
    "agent.models.models_of": (),
    "agent.models.ModelsUnavailable": (),
    "agent.models.turns.turn_handling_of": (),
    "agent.memory.Profile": ("name", "facts", "calls", "turns", "resumed"),
    "agent.knowledge.KnowledgeUnavailable": (),
    "agent.knowledge.evaluate.evaluate": (),
    "agent.knowledge.evaluate.questions_in": (),
    "agent.knowledge.ingest.ingest": (),
    "agent.settings.load_settings": (),
    "agent.telephony.ask.AskNumber": ("asking", "reading_back", "refusing"),
    "agent.telephony.transfers.bring_in": (),
    "agent.telephony.transfers.transfer": (),
    "agent.transport.Caller": ("identity", "name", "kind", "attributes", "can_publish"),
    "agent.web.NO_STORE": (),
    "agent.web.Refused": ("status", "json", "headers"),
    "agent.web.Tokens": ("answer",),
    "agent.web.app.PAGE": (),
    "agent.web.app.address_of": (),
    "agent.web.app.page_headers": (),
    "agent.web.app.web_app": (),
}

Config = dict[str, Any]
# Possible answers to the questions: an answer that one release accepts, the next one accepts.
ANSWERS = [
    *AWKWARD_NAMES.values(),
    *("a" * length for length in (1, 2, 57, 58, 60, 61, 63, 64, 80, 81, 100, 101, 200, 201)),
    *(f"x{char}y" for char in string.printable),
    *(
        "3",
        "Front Desk",
        "front-desk",
        "front.desk",
        "front_desk",
        "café",
        "🎙",
        "مكتب",
        "null",
        "1e3",
        "a-1-b",
    ),
]


def configuration(template: Template, version: str) -> Config:
    """The copier.yml of a release."""
    found: Config = yaml.safe_load(git(template.path, "show", f"{version}:copier.yml"))
    return found


def questions(config: Config) -> dict[str, Config]:
    """The questions of a release, asked or computed."""
    return {name: spec for name, spec in config.items() if not name.startswith("_")}


def cases_of(config: Config) -> list[dict[str, str]]:
    """Answers to every question that has choices; every pair of two choices is in one of them."""
    return covering(
        {name: values_of(spec) for name, spec in questions(config).items() if "choices" in spec}
    )


# ---------------------------------------------------------------------- checked by reading


def needs_trust(version: str, config: Config) -> Iterator[str]:
    """Features for which Copier would demand --trust, also on the update from such a release."""
    for name in TRUST:
        if name in config:
            yield f"{version} has {name}: `copier update` would demand --trust; do without"


def lost_answers(old: str, before: Config, after: Config) -> Iterator[str]:
    """Answers that an update would silently replace with a default, or that it lacks."""
    asked, asks = questions(before), questions(after)
    reads = {name for spec in asks.values() for name in read_by(str(spec.get("default", "")))}
    for name, spec in asked.items():
        if spec.get("when") is False:
            continue
        if name not in asks:
            if name not in reads:
                yield (
                    f"the question {name} of {old} is gone: let the default of the new one read"
                    f" `{name}`"
                )
            continue
        if asks[name].get("type") != spec.get("type"):
            yield f"{name} has another type than in {old}: give the question another name"
        elif "choices" in spec:
            choices = values_of(asks[name]) if "choices" in asks[name] else []
            default = str(asks[name].get("default", ""))
            for value in values_of(spec):
                if value not in choices and f"'{value}'" not in default:
                    yield (
                        f"{name}={value} of {old} is gone: keep it, or let the default turn"
                        f" '{value}' into another"
                    )
        else:
            for answer in ANSWERS:
                if not refusal(asked, name, answer) and (sentence := refusal(asks, name, answer)):
                    yield (
                        f"{name}={answer!r} was accepted by {old} and is refused now ({sentence}):"
                        " accept it"
                    )
    for name, spec in asks.items():
        if name not in asked and spec.get("default") is None:
            problem = f"the question {name} is new since {old} and has no default"
            yield f"{problem}: an update cannot ask it"


def read_by(expression: str) -> set[str]:
    """The answers that a default reads."""
    return jinja2.meta.find_undeclared_variables(environment().parse(expression))


def refusal(asked: dict[str, Config], name: str, answer: str) -> str:
    """The message of this question's validator; empty if the answer is accepted."""
    answers: dict[str, Any] = {}
    for question, spec in asked.items():
        answers[question] = (
            answer if question == name else compiled(str(spec.get("default", ""))).render(answers)
        )
    if answer in str(answers.get("taken_names", "")).split():
        # a project of that name could no longer be installed
        return ""
    return compiled(asked[name].get("validator", "")).render(answers).strip()


@functools.cache
def compiled(expression: str) -> jinja2.Template:
    """An expression of copier.yml, as Copier reads it."""
    return environment().from_string(expression)


@functools.cache
def environment() -> jinja2.Environment:
    """Jinja as Copier sets it up."""
    ansible = "jinja2_ansible_filters.AnsibleCoreFiltersExtension"
    return SandboxedEnvironment(undefined=StrictUndefined, extensions=[ansible])


def lost_paths(template: Template, old: str, new: str) -> Iterator[str]:
    """Paths of a release that are gone; only the template's own files may move, as MOVED says."""
    was, now = ownership_of(template, old), ownership_of(template, new)
    updated = {*now["template"], *now["shared"]}
    for kind in ("owner", "shared"):
        for path in set(was[kind]) - set(now[kind]):
            yield f"{path} of {old} is no longer {kind}: owners have lines in it, so leave it"
    for path in set(was["template"]) - set(now["template"]):
        if now["moved"].get(path) not in updated and not any(fnmatch(path, glob) for glob in GONE):
            yield f"{path} of {old} is gone: put it into MOVED or GONE of tools/ownership.py"


def ownership_of(template: Template, version: str) -> dict[str, Any]:
    """The `.template.toml` of a release for all answers: its conditions are TOML comments."""
    return parse_ownership(git(template.path, "show", f"{version}:template/.template.toml.jinja"))


def lost_names(template: Template, old: str, new: str, *, minor: bool) -> Iterator[str]:
    """Names that an owner's code may use and that are gone.

    A name may go if the last release of an earlier minor version warned about it.
    """
    with tempfile.TemporaryDirectory() as folder:
        before, after = (
            sources(template, version, Path(folder, version)) for version in (old, new)
        )
        for path, members in PUBLIC.items():
            was, now = find(before, path), find(after, path)
            # newer than that release, or the release warned about it
            if was is None or (minor and is_deprecated(was)):
                continue
            if now is None:
                yield gone(path, old)
                continue
            names = [
                name
                for name in members
                if name in was.all_members and not (minor and is_deprecated(was.all_members[name]))
            ]
            yield from (
                gone(f"{path}.{name}", old) for name in names if name not in now.all_members
            )
            for breakage in breakages(was, now):
                of, name = breakage.obj.parent, breakage.obj.name
                what = breakage.kind.value.lower()
                problem = f"is not what it was in {old} ({what}): an owner's code would break"
                if breakage.kind in CHANGES and breakage.obj.path == now.path:
                    yield f"{path} {problem}"
                elif breakage.kind in CHANGES and name in names and of and of.name == now.name:
                    yield f"{path}.{name} {problem}"


def breakages(was: griffe.Object, now: griffe.Object) -> Iterator[griffe.Breakage]:
    """The changes that griffe finds, wherever the two are defined."""
    holders = [griffe.Module("holder") for _ in range(2)]
    for holder, held in zip(holders, (was, now), strict=True):
        holder.members["held"] = held
    return griffe.find_breaking_changes(*holders)


CHANGES = {
    griffe.BreakageKind.PARAMETER_MOVED,
    griffe.BreakageKind.PARAMETER_REMOVED,
    griffe.BreakageKind.PARAMETER_CHANGED_KIND,
    griffe.BreakageKind.PARAMETER_CHANGED_REQUIRED,
    griffe.BreakageKind.PARAMETER_ADDED_REQUIRED,
    griffe.BreakageKind.OBJECT_CHANGED_KIND,
}


def gone(path: str, old: str) -> str:
    """The complaint about a name that is gone."""
    cure = "keep it for a minor version, with @deprecated and what to use in its place"
    return f"{path} is gone since {old}: {cure}"


def sources(template: Template, version: str, folder: Path) -> griffe.Object | griffe.Alias:
    """The package `agent` of a release, parsed and not imported."""
    folder.mkdir()
    git(template.path, "archive", f"--output={folder}/sources.tar", version, "template/src")
    with tarfile.open(folder / "sources.tar") as archive:
        archive.extractall(folder, filter="data")
    return griffe.load("agent", search_paths=[folder / "template" / "src"], allow_inspection=False)


def find(package: griffe.Object | griffe.Alias, path: str) -> griffe.Object | None:
    """The object that an owner imports by this path, wherever it is defined, or None."""
    try:
        found: griffe.Object | griffe.Alias = package[path.removeprefix("agent.")]
        return found.final_target if isinstance(found, griffe.Alias) else found
    except (KeyError, griffe.AliasResolutionError, griffe.CyclicAliasError):
        return None


def is_deprecated(known: griffe.Object | griffe.Alias) -> bool:
    """Whether its use already gives a warning."""
    decorators = getattr(known, "decorators", None) or []
    return any(
        str(decorator.value).split("(")[0].endswith("deprecated") for decorator in decorators
    )


# ---------------------------------------------------------------------- checked by updating


def owner_of(path: str, ownership: dict[str, Any]) -> str:
    """The class of a path: owner, shared or template."""
    if any(fnmatch(path, glob) for glob in ownership["owner"]):
        return "owner"
    return "shared" if path in ownership["shared"] else "template"


def broken_updates(
    template: Template, old: str, answers: dict[str, str], folder: Path, *, by_steps: bool = True
) -> list[str]:
    """The problems when an unchanged project of a release is updated to the newest version."""
    newest, *between = reversed(versions_since(template, old))
    config, case = configuration(template, newest), "-".join(answers.values())
    project = template.copy(folder / "project", old, **answers)
    project.commit()
    before, owners = project.files(), project.ownership()
    recorded = {
        name: answer for name, answer in project.answers().items() if not name.startswith("_")
    }

    project.update(newest)
    if conflicts := project.conflicts():
        return [f"{old} ({case}): the update of an untouched project conflicts: {conflicts}"]
    found, updated = [], project.files()
    kept = {name: answer for name, answer in project.answers().items() if not name.startswith("_")}
    for name, answer in recorded.items():
        if kept.get(name) != answer:
            found.append(f"{name}={answer!r} has become {kept.get(name)!r}")

    fresh = template.copy(folder / "fresh", newest, **kept)
    expected, owners_now = fresh.files(), fresh.ownership()
    for name in sorted(before):
        was = owner_of(name, owners)
        if name not in expected:
            if was != "template" and not comes_once(config, name):
                found.append(
                    f"{name} is {was} and is gone: an owner's lines would go with it;"
                    " leave it where it is"
                )
        elif (now := owner_of(name, owners_now)) != was:
            found.append(f"{name} was {was} and is {now}: leave it to whom it was")
    for name in sorted(updated.keys() | expected.keys()):
        whose = owner_of(name, owners_now)
        if whose == "owner":
            if name in before and updated.get(name) != before[name]:
                found.append(f"{name} is the owner's and was changed")
        elif updated.get(name) != expected.get(name):
            found.append(f"{name} is not what a fresh copy has")

    project.commit()
    project.update(newest)
    if changes := project.changes():
        found.append(f"a second update changes {changes}")
    if by_steps and between:
        steps = through(template, old, [*reversed(between), newest], answers, folder / "steps")
        found += differences(project, steps, config)
    return [f"{old} ({case}): {complaint}" for complaint in found]


def comes_once(config: Config, name: str) -> bool:
    """Whether only the first copy brings a file, so that no update removes it."""
    prefix, suffix = "{% if _copier_operation == 'update' %}/", "{% endif %}"
    once = [entry.removeprefix(prefix) for entry in config["_exclude"] if entry.startswith(prefix)]
    return name in [path.removesuffix(suffix) for path in once]


def versions_since(template: Template, old: str) -> list[str]:
    """The versions of the history that are newer, oldest first."""
    tags = sorted(git(template.path, "tag").split(), key=Version)
    return tags[tags.index(old) + 1 :]


def through(
    template: Template, old: str, versions: list[str], answers: dict[str, str], folder: Path
) -> Project:
    """A project of a release, updated to each of these versions in turn."""
    project = template.copy(folder, old, **answers)
    for version in versions:
        project.commit()
        project.update(version)
    return project


def differences(direct: Project, by_steps: Project, config: Config) -> list[str]:
    """The files that depend on the path of the updates, except those of the first copy alone."""
    one, other = direct.files(), by_steps.files()
    return [
        f"{name} depends on whether one updates step by step"
        for name in sorted(one.keys() | other.keys())
        if one.get(name) != other.get(name) and not comes_once(config, name)
    ]


# ---------------------------------------------------------------------- the gate


def promises_broken(template: Template, version: str = WORK_TREE) -> Iterator[str]:
    """The complaints found by reading every release and the newest one, which will be `version`."""
    if strays := stray_tags(git(template.path, "tag").split()):
        yield from strays
        return
    *old, newest = sorted(git(template.path, "tag").split(), key=Version)
    now = configuration(template, newest)
    for release in [*old, newest]:
        yield from needs_trust(release, configuration(template, release))
    for release in old:
        yield from lost_answers(release, configuration(template, release), now)
        yield from lost_paths(template, release, newest)
    if old:
        minor = Version(version).release[:2] > Version(old[-1]).release[:2]
        yield from lost_names(template, old[-1], newest, minor=minor)


def tries(template: Template) -> list[tuple[str, dict[str, str], bool]]:
    """Every release with each of its sets of answers, and whether to also try step by step."""
    old = sorted(git(template.path, "tag").split(), key=Version)[:-1]
    return [
        (version, answers, number % STEP_BY_STEP == 0)
        for version in old
        for number, answers in enumerate(cases_of(configuration(template, version)))
    ]


def try_one(path: Path, version: str, answers: dict[str, str], by_steps: bool) -> list[str]:
    """`broken_updates` in its own process and with its own cache: Copier's is for one process."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        os.environ["COPIER_CACHE_DIR"] = cache
        return broken_updates(Template(path), version, answers, Path(folder), by_steps=by_steps)


def gate(template: Template, version: str = WORK_TREE) -> list[str]:
    """Every complaint; updates are tried only if reading finds nothing."""
    if found := list(promises_broken(template, version)):
        return found
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update(isolated_environment(Path(folder)))
        with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
            for old, group in itertools.groupby(tries(template), key=lambda one: one[0]):
                began, cases = time.monotonic(), list(group)
                for complaints in pool.map(
                    try_one, *zip(*((template.path, *one) for one in cases), strict=True)
                ):
                    found += complaints
                took = f"{time.monotonic() - began:.0f} s"
                print(
                    f"gate: updated projects of {old} with {len(cases)} sets of answers ({took})",
                    file=sys.stderr,
                )
    return found


def main() -> int:
    """Run the gate; return the exit status."""
    parser = argparse.ArgumentParser(
        description="Try the updates from every release to this checkout."
    )
    parser.add_argument(
        "history", type=Path, nargs="?", metavar="DIR", help="what tools/history.py has made"
    )
    given = parser.parse_args().history
    with tempfile.TemporaryDirectory() as folder:
        template = Template(given.resolve()) if given else make_template(Path(folder, "history"))
        complaints = gate(template)
    for complaint in complaints:
        print(f"gate: {complaint}", file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
