"""A real Prometheus on loopback, and promtool: from PATH, or from Debian's package, unpacked."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.server import CACHE, free_port

START_SECONDS = 30.0


@functools.cache
def program(name: str) -> Path:
    """`prometheus` or `promtool`; without it the test is skipped, and fails under CI."""
    if found := shutil.which(name):
        return Path(found)
    unpacked = CACHE / "prometheus"
    if not (unpacked / "usr/bin" / name).exists() and shutil.which("apt-get"):
        unpacked.mkdir(parents=True, exist_ok=True)
        # installed, it would run as a service
        with tempfile.TemporaryDirectory() as folder:
            for command in (
                ["apt-get", "-qq", "update"],
                ["apt-get", "-qq", "download", "prometheus"],
            ):
                subprocess.run(command, cwd=folder, capture_output=True)
            for package in Path(folder).glob("*.deb"):
                subprocess.run(["dpkg", "-x", str(package), str(unpacked)], check=True)
    if not (unpacked / "usr/bin" / name).exists():
        missing = f"there is no {name}: install Prometheus"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return unpacked / "usr/bin" / name


def promtool(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What promtool says."""
    return subprocess.run(
        [str(program("promtool")), *arguments], cwd=cwd, capture_output=True, text=True
    )


class Prometheus:
    """A server that scrapes one target every second."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API; raises if the query is none."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self._port}/api/v1/{path}?{query}"
        ) as answer:
            return json.load(answer)["data"]

    def rules(self) -> dict[str, dict[str, Any]]:
        """The alert rules, by name, as they were last evaluated."""
        groups = self.ask("rules")["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    def wait_for(self, condition: Callable[[], object]) -> None:
        """Wait until the condition holds; Prometheus tells nobody."""
        until = time.monotonic() + START_SECONDS
        while not condition():
            assert time.monotonic() < until, "it did not come to hold"
            time.sleep(0.2)


@contextmanager
def prometheus(target: int, rules: Path, folder: Path) -> Iterator[Prometheus]:
    """A server that scrapes the metrics at a port, with alert rules."""
    port = free_port()
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {"job_name": "agent", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
        ],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(program("prometheus")),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    server, until = Prometheus(port), time.monotonic() + START_SECONDS
    try:
        while True:
            try:
                server.ask("status/runtimeinfo")
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise AssertionError((folder / "prometheus.log").read_text()) from None
                time.sleep(0.1)
        yield server
    finally:
        process.terminate()
        process.wait()
