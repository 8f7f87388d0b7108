"""The commits that released get their tags, here and at the remote, and no tag is ever moved."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from copier._vcs import valid_version

from tests.support.templates import ROOT, Project, git
from tests.update.test_release import make_checkout
from tools.history import (
    BRANCH,
    VERSION,
    bundle_of,
    commit,
    open_releases,
    stray_tags,
    template_files,
)


@dataclass(frozen=True)
class Checkout:
    """A clone of `remote`, in which versions are released."""

    project: Project
    remote: Path

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.project.path

    def tags(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run tools/tags.py; it never prints a traceback."""
        command = [sys.executable, "-B", str(self.path / "tools" / "tags.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done

    def bundle(self, version: str) -> None:
        """Add the version to the bundle, as tools/release.py does after trying the updates."""
        with tempfile.TemporaryDirectory() as folder:
            history, bundle = Path(folder), bundle_of(self.path)
            open_releases(history, self.path)
            commit(
                history,
                self.path,
                template_files(self.path, untracked=False),
                f"v{version}",
                "2026-01-01",
            )
            bundle.parent.mkdir(exist_ok=True)
            git(history, "bundle", "create", "--quiet", str(bundle), BRANCH, "--tags")

    def release(self, version: str) -> str:
        """Release a version like a person; return the commit."""
        self.bundle(version)
        self.project.commit()
        return self.commit_of("HEAD")

    def work(self, line: str) -> str:
        """Change the template and commit; return the commit."""
        self.project.write(
            "hooks/pre_prompt.py", self.project.read("hooks/pre_prompt.py") + f"# {line}\n"
        )
        self.project.commit()
        return self.commit_of("HEAD")

    def commit_of(self, name: str) -> str:
        """The commit of a name, here."""
        return git(self.path, "rev-parse", f"{name}^{{commit}}").strip()

    def at_remote(self) -> dict[str, str]:
        """The remote's tags and their commits."""
        tags = git(self.remote, "tag").split()
        return {tag: git(self.remote, "rev-parse", f"{tag}^{{commit}}").strip() for tag in tags}

    def push(self) -> None:
        """Push the branch, and no tags."""
        git(self.path, "push", "--quiet", "origin", "main")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    """A clone in which nothing is released yet."""
    project = make_checkout(tmp_path / "checkout")
    remote = tmp_path / "remote.git"
    git(tmp_path, "clone", "--quiet", "--bare", str(project.path), str(remote))
    git(project.path, "remote", "add", "origin", str(remote))
    return Checkout(project, remote)


@pytest.fixture
def two(checkout: Checkout) -> tuple[Checkout, dict[str, str]]:
    """A clone with two releases, work between and after them, no tags; and their commits."""
    first = checkout.release("0.1.0")
    checkout.work("after 0.1.0")
    second = checkout.release("0.2.0")
    checkout.work("after 0.2.0")
    checkout.push()
    return checkout, {"v0.1.0": first, "v0.2.0": second}


def test_missing_tags_are_pushed_and_a_second_run_does_nothing(
    two: tuple[Checkout, dict[str, str]],
) -> None:
    checkout, released = two

    done = checkout.tags("--push", "origin")

    assert done.returncode == 0, done.stderr
    assert checkout.at_remote() == released
    for version in released:
        assert git(checkout.remote, "cat-file", "-t", version) == "tag\n"
        assert (
            git(checkout.remote, "tag", "--list", "--format=%(contents)", version).strip()
            == version
        )
    objects = git(checkout.remote, "for-each-ref")

    again = checkout.tags("--push", "origin")

    assert again.returncode == 0, again.stderr
    assert "pushing" not in again.stdout
    assert git(checkout.remote, "for-each-ref") == objects


def test_only_the_tags_of_releases_that_the_remote_lacks_are_pushed(
    two: tuple[Checkout, dict[str, str]],
) -> None:
    checkout, released = two
    git(checkout.path, "tag", "mine")
    # by hand, and not annotated
    git(checkout.path, "tag", "v0.1.0", released["v0.1.0"])
    git(checkout.path, "push", "--quiet", "origin", "v0.1.0")
    git(
        checkout.path,
        "tag",
        "--force",
        "--annotate",
        "--message=again",
        "v0.1.0",
        released["v0.1.0"],
    )

    done = checkout.tags("--push", "origin")

    assert done.returncode == 0, done.stderr
    assert "pushing v0.2.0 ..." in done.stdout
    assert checkout.at_remote() == released
    assert git(checkout.remote, "cat-file", "-t", "v0.1.0") == "commit\n"


@pytest.mark.parametrize("there", ["here", "at the remote"])
def test_a_tag_that_copier_would_take_for_the_newest_release_is_named(
    two: tuple[Checkout, dict[str, str]], there: str
) -> None:
    checkout, released = two
    where = checkout.path if there == "here" else checkout.remote
    for name in ("20261127", "nightly-20261127"):
        git(where, "tag", name, released["v0.1.0"])

    done = checkout.tags("--push", "origin")

    assert done.returncode == 1
    assert "the tag 20261127 is no release, but Copier reads it as a version" in done.stderr
    assert "nightly" not in done.stderr
    assert {name for name in checkout.at_remote() if name in released} == {*released}


def test_what_copier_reads_as_a_version_is_known() -> None:
    tags = ("20261127", "v1", "1.0", "v1.2.3rc1", "V1.2.3-rc.1", "2!1", "v1.2.3.post1", "1.0-5")
    none = ("nightly", "v", "v1.2.3-4-gabc1234", "release-1.0", "1.0-snapshot", "x/v2.0.0", "1..2")
    for tag in (*tags, *none, "1.0.dev", "v1.0a", "1.0+local.7", "1.0_rev2", "1.0+"):
        known = VERSION.fullmatch(tag) is not None
        assert known == valid_version(tag), tag
    strays = stray_tags(["v1.2.3", "v1.2.3rc1", "nightly", *tags])
    assert [line.split()[2] for line in strays] == [tag for tag in tags if tag != "v1.2.3rc1"]


def test_a_tag_that_the_remote_has_is_not_made_again(two: tuple[Checkout, dict[str, str]]) -> None:
    checkout, released = two
    git(checkout.remote, "tag", "v0.1.0", released["v0.1.0"])

    assert checkout.tags("--push", "origin").returncode == 0

    assert git(checkout.path, "tag") == "v0.2.0\n"
    git(checkout.path, "fetch", "--quiet", "--tags", "origin")
    assert checkout.commit_of("v0.1.0") == released["v0.1.0"]


def test_two_clones_make_the_same_tags(
    two: tuple[Checkout, dict[str, str]], tmp_path: Path
) -> None:
    checkout, _ = two
    git(tmp_path, "clone", "--quiet", "--no-tags", str(checkout.remote), "other")
    other = Checkout(Project(tmp_path / "other"), checkout.remote)

    for clone in (checkout, other):
        assert clone.tags().returncode == 0

    assert git(checkout.path, "show-ref", "--tags") == git(other.path, "show-ref", "--tags")
    assert checkout.at_remote() == {}, "nobody asked for a push"


def test_checking_says_what_is_missing_and_changes_nothing(
    two: tuple[Checkout, dict[str, str]],
) -> None:
    checkout, released = two

    done = checkout.tags("--check", "--push", "origin")

    assert done.returncode == 1
    for version, found in released.items():
        assert f"{version} belongs on {found}" in done.stdout
    assert git(checkout.path, "tag") == ""
    assert checkout.at_remote() == {}

    assert checkout.tags("--push", "origin").returncode == 0
    assert checkout.tags("--check", "--push", "origin").returncode == 0


def test_a_commit_without_the_released_template_is_not_tagged(checkout: Checkout) -> None:
    checkout.bundle("0.1.0")
    wrong = checkout.work("committed together with the bundle")
    checkout.push()

    done = checkout.tags("--push", "origin")

    assert done.returncode == 1
    assert (
        f"{wrong} added v0.1.0 to the bundle, but its template is not the released one"
        in done.stderr
    )
    assert git(checkout.path, "tag") == ""
    assert checkout.at_remote() == {}


def test_a_tag_here_on_another_template_is_not_pushed(two: tuple[Checkout, dict[str, str]]) -> None:
    checkout, released = two
    git(checkout.path, "tag", "--annotate", "--message=v0.1.0", "v0.1.0", "HEAD")

    done = checkout.tags("--push", "origin")

    assert done.returncode == 1
    assert checkout.commit_of("HEAD") in done.stderr
    assert released["v0.1.0"] in done.stderr
    assert checkout.at_remote() == {}


def test_a_tag_that_was_moved_at_the_remote_stays_and_both_commits_are_named(
    two: tuple[Checkout, dict[str, str]],
) -> None:
    checkout, released = two
    moved = checkout.commit_of("HEAD")
    git(checkout.remote, "tag", "--annotate", "--message=v0.1.0", "v0.1.0", moved)

    done = checkout.tags("--push", "origin")

    assert done.returncode == 1
    assert f"v0.1.0 of origin is on {moved}" in done.stderr
    assert released["v0.1.0"] in done.stderr
    assert checkout.at_remote() == {"v0.1.0": moved}


def test_a_release_that_was_made_again_is_tagged_where_it_was(checkout: Checkout) -> None:
    first = checkout.release("0.1.0")
    git(checkout.path, "rm", "--quiet", "-r", "releases")
    checkout.work("what reviewers found")
    again = checkout.release("0.1.0")

    assert checkout.tags().returncode == 0

    assert checkout.commit_of("v0.1.0") == again != first


def test_a_shallow_clone_is_refused_with_what_to_do(
    two: tuple[Checkout, dict[str, str]], tmp_path: Path
) -> None:
    checkout, released = two
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{checkout.remote}", "shallow")
    shallow = Checkout(Project(tmp_path / "shallow"), checkout.remote)

    done = shallow.tags("--push", "origin")

    assert done.returncode == 2
    assert "git fetch --unshallow --tags" in done.stderr
    git(shallow.path, "fetch", "--quiet", "--unshallow", "--tags")
    assert shallow.tags("--push", "origin").returncode == 0
    assert checkout.at_remote() == released


def test_a_remote_that_does_not_answer_is_refused_before_anything_is_tagged(
    two: tuple[Checkout, dict[str, str]],
) -> None:
    checkout, _ = two

    done = checkout.tags("--push", "nowhere")

    assert done.returncode == 2
    assert "'nowhere' does not appear to be a git repository" in done.stderr
    assert git(checkout.path, "tag") == ""


def test_the_tags_of_this_checkout_are_on_the_commits_that_released() -> None:
    if git(ROOT, "rev-parse", "--is-shallow-repository") == "true\n":
        pytest.skip("a shallow clone has no commits to compare with")
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "tags.py"), "--check"], capture_output=True, text=True
    )
    assert done.stderr == ""
