"""A real server of S3's protocol on loopback: versitygw, on PATH or built once by Go."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.server import CACHE, free_port

VERSION = "v1.8.0"
START_SECONDS = 30.0


def program() -> Path:
    """The server's binary; without it the test is skipped, and fails under CI."""
    if found := shutil.which("versitygw"):
        return Path(found)
    binary = CACHE / "bin" / f"versitygw-{VERSION}"
    binary.parent.mkdir(parents=True, exist_ok=True)
    with (binary.parent / "versitygw.lock").open("w") as lock:
        # one test process builds, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _build(binary)
    return binary


def _build(binary: Path) -> None:
    problem = "versitygw is not on PATH, and without Go it cannot be built"
    if shutil.which("go"):
        print(f"building versitygw {VERSION} (minutes, once) ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=binary.parent) as folder:
            done = subprocess.run(
                ["go", "install", f"github.com/versity/versitygw/cmd/versitygw@{VERSION}"],
                env={**os.environ, "GOBIN": folder, "CGO_ENABLED": "0"},
                capture_output=True,
                text=True,
            )
            if not done.returncode:
                os.replace(Path(folder) / "versitygw", binary)
                return
        problem = f"versitygw cannot be built: {' '.join(done.stderr.split())[-300:]}"
    if os.environ.get("CI"):
        pytest.fail(problem)
    pytest.skip(problem)


@dataclass
class S3Server:
    """A server with one bucket, whose objects are files."""

    folder: Path
    bucket: str = "calls"
    key: str = "somebody"
    secret: str = "a-secret-of-somebody"
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def environment(self) -> dict[str, str]:
        """AWS's variables for it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": self.key,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_REGION": "us-east-1",
        }

    @property
    def objects(self) -> dict[str, Path]:
        """What is in the bucket."""
        bucket = self.folder / "buckets" / self.bucket
        found = (file for file in bucket.rglob("*") if file.is_file())
        return {str(file.relative_to(bucket)): file for file in found}

    def start(self) -> None:
        """Start it, also after `stop`, at the same address; return when it answers."""
        (self.folder / "buckets" / self.bucket).mkdir(parents=True, exist_ok=True)
        (self.folder / "about").mkdir(exist_ok=True)
        with (self.folder / "versitygw.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *(str(program()), "--port", f"127.0.0.1:{self.port}"),
                    *("--access", self.key, "--secret", self.secret),
                    # not every file system keeps attributes of files
                    *("posix", "--sidecar", str(self.folder / "about")),
                    str(self.folder / "buckets"),
                ],
                stdout=log,
                stderr=log,
            )
        until = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "versitygw.log").read_text()
            assert time.monotonic() < until, "versitygw does not answer"
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/")
        except urllib.error.HTTPError:
            return True  # it refuses who does not sign
        except OSError:
            return False
        return True

    def stop(self) -> None:
        """Stop it; what it has stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None
