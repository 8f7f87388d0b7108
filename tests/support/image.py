"""Builds a rendered project's Dockerfile and runs the image as its user on a read-only root.

If Docker answers, it builds from the real base images. Otherwise, as root on a Debian, buildah and
podman build the same Dockerfile from stand-ins with the same names, made from Debian packages and
uv's wheel. A stand-in proves the Dockerfile, not the base images: their packages and patch levels
differ. The cache folder keeps packages, layers and downloads between runs, about 1.5 GB.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.support import debian
from tests.support.projects import UV
from tests.support.server import CACHE

TOOLS = ("buildah", "podman", "runc", "catatonit", "mmdebstrap")
# the Debian whose own Python is the one that a tag promises
DEBIAN_OF_PYTHON = {"3.11-slim-bookworm": "bookworm"}
CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# The engine's own defaults need systemd, cgroups v2 and the right to raise limits; a build machine
# may have none of them.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
log_driver = "k8s-file"
netns = "host"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"""
STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{state}/storage"
runroot = "{state}/run"
"""


class NoEngine(Exception):
    """No tool here can build an image; the text says what is missing."""


@dataclass(frozen=True)
class Engine:
    """Runs `docker` or `podman`; `state` is the folder of stand-ins, None for real base images."""

    command: str
    env: Mapping[str, str] = field(repr=False)
    state: Path | None = None

    def __call__(self, *arguments: str) -> str:
        return output(self.command, *arguments, env=self.env)


@dataclass(frozen=True)
class Container:
    """A running container; `run_image` removes it."""

    engine: Engine
    id: str

    def logs(self) -> str:
        """The output of its process so far."""
        logs = [self.engine.command, "logs", self.id]
        return subprocess.run(
            logs,
            env=self.engine.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        ).stdout

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Wait until its process prints `text`; raises AssertionError if it ends or is too late."""
        logs = [self.engine.command, "logs", "--follow", self.id]
        with subprocess.Popen(
            logs, env=self.engine.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as following:
            deadline = threading.Timer(seconds, following.kill)
            deadline.start()
            try:
                heard = any(text in line for line in following.stdout or ())
            finally:
                deadline.cancel()
                following.kill()
        assert heard, (
            f"the container did not say {text!r} within {seconds:g} s, but:\n{self.logs()}"
        )

    def execute(self, *command: str) -> str:
        """The output of a command inside; raises AssertionError if it fails."""
        return self.engine("exec", self.id, *command)

    def check_health(self) -> None:
        """Run the image's HEALTHCHECK inside; raises AssertionError if it fails."""
        kind, *command = json.loads(
            self.engine("inspect", "--format", "{{json .Config.Healthcheck.Test}}", self.id)
        )
        assert kind == "CMD", f"HEALTHCHECK is not a list of words: {kind} {command}"
        self.execute(*command)

    def stop(self, seconds: int = 60) -> int:
        """Send its STOPSIGNAL and, after `seconds`, SIGKILL; the exit code is 137 if killed."""
        self.engine("stop", "-t", str(seconds), self.id)
        return int(self.engine("inspect", "--format", "{{.State.ExitCode}}", self.id))


def build_image(context: Path, name: str = "rendered-agent", stage: str | None = None) -> str:
    """Build the Dockerfile in `context`, to its end or to a stage, and return the image's name.

    Raises NoEngine, and AssertionError if the build fails.
    """
    engine = find_engine()
    image = f"localhost/{name}:test"
    what = (f"--tag={image}", *([f"--target={stage}"] if stage else []), str(context))
    if engine.state is None:
        engine("build", *what)
        return image
    make_stand_ins(engine, engine.state, (context / "Dockerfile").read_text())
    # The machine's certificates: packages may come through a proxy that signs with its own.
    mounts = (
        f"--volume={CERTIFICATES}:{CERTIFICATES}:ro",
        f"--volume={engine.state}/uv.toml:/etc/uv/uv.toml:ro",
    )
    # The format "docker" keeps HEALTHCHECK; chroot shares the machine's network, without a runtime.
    how = ("--pull=never", "--isolation=chroot", "--format=docker")
    output("buildah", "build", *how, *mounts, *what, env=engine.env)
    # What earlier builds left behind; an image that a container still uses stays for the next time.
    subprocess.run(["buildah", "rmi", "--prune"], env=engine.env, capture_output=True, check=False)
    return image


@contextmanager
def run_image(image: str, env: Mapping[str, str]) -> Iterator[Container]:
    """Run an image with a read-only root, no capabilities and this network; removed on exit."""
    engine = find_engine()
    limits = (
        "--network=host",
        "--read-only",
        "--tmpfs=/tmp",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
    )
    variables = [f"--env={name}={value}" for name, value in env.items()]
    container = Container(engine, engine("run", "--detach", *limits, *variables, image).strip())
    try:
        yield container
    finally:
        engine("rm", "--force", "--volumes", container.id)


@cache
def find_engine() -> Engine:
    """Docker if it answers, else podman, installed on a Debian as root; raises NoEngine."""
    # Elsewhere an engine runs in a virtual machine: no loopback server, no host network.
    if sys.platform != "linux":
        raise NoEngine("images are built and run on Linux only")
    if (
        shutil.which("docker")
        and subprocess.run(["docker", "info"], capture_output=True).returncode == 0
    ):
        return Engine("docker", os.environ)
    tools = ("buildah", "podman", "runc", "mmdebstrap")
    if os.geteuid() != 0 or not (all(map(shutil.which, tools)) or debian.install(*TOOLS)):
        raise NoEngine(
            "images need a running Docker, or root on a Debian, where buildah and podman can be"
            " installed"
        )
    state = CACHE / "image"
    (state / "tmp").mkdir(parents=True, exist_ok=True)
    (state / "containers.conf").write_text(CONTAINERS_CONF)
    (state / "storage.conf").write_text(STORAGE_CONF.format(state=state))
    (state / "uv.toml").write_text("system-certs = true\n")
    env = {
        **os.environ,
        "CONTAINERS_CONF": f"{state}/containers.conf",
        "CONTAINERS_STORAGE_CONF": f"{state}/storage.conf",
        # buildah's folder for RUN --mount=type=cache
        "TMPDIR": f"{state}/tmp",
    }
    return Engine("podman", env, state)


def make_stand_ins(engine: Engine, state: Path, dockerfile: str) -> None:
    """Make the Dockerfile's base images, once, from Debian packages and uv's wheel."""
    for tag in set(re.findall(r"^FROM python:(\S+)", dockerfile, re.MULTILINE)):
        if not _exists(engine, f"localhost/python:{tag}"):
            assert tag in DEBIAN_OF_PYTHON, (
                f"no Debian has the Python of python:{tag}; add it to {__file__}"
            )
            _make_python(engine, state / "python.tar", tag, DEBIAN_OF_PYTHON[tag])
    for image, version in set(re.findall(r"--from=(\S+/uv):(\S+)", dockerfile)):
        if not _exists(engine, f"{image}:{version}"):
            with tempfile.TemporaryDirectory(dir=state / "tmp") as folder:
                output(str(UV), "pip", "install", "--quiet", f"--target={folder}", f"uv=={version}")
                output(
                    "tar",
                    f"--directory={folder}/bin",
                    "--create",
                    f"--file={folder}/uv.tar",
                    "uv",
                    "uvx",
                )
                engine("import", f"{folder}/uv.tar", f"{image}:{version}")


def _make_python(engine: Engine, tar: Path, tag: str, debian: str) -> None:
    """A Debian with its Python at the official image's path, and a file to mount uv.toml at."""
    hooks = (
        'ln -s /usr/bin/python3 "$1/usr/local/bin/python"',
        'mkdir "$1/etc/uv" && touch "$1/etc/uv/uv.toml"',
    )
    output(
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        "--include=ca-certificates,netbase,python3-venv",
        "--dpkgopt=force-unsafe-io",
        *(f"--customize-hook={hook}" for hook in hooks),
        debian,
        str(tar),
    )
    engine("import", f"--change=ENV PATH={PATH}", str(tar), f"localhost/python:{tag}")
    tar.unlink()


def _exists(engine: Engine, image: str) -> bool:
    return (
        subprocess.run([engine.command, "image", "exists", image], env=engine.env).returncode == 0
    )


def output(*command: str, env: Mapping[str, str] | None = None) -> str:
    """The output of a command; raises AssertionError with the end of its output if it fails."""
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    said = "\n".join((done.stdout + done.stderr).splitlines()[-40:])
    assert done.returncode == 0, f"{' '.join(command)} failed ({done.returncode}):\n{said}"
    return done.stdout
