"""What the owner does after a call: `CallAgent.after_call(report)`, in a process of its own.

A worker starts it for a report that waits, and kills it when its time is over, so that not even
a thread that is stuck holds the worker or the next report. What failed is tried again later, also
by the next worker: see reports/delivery.py.
"""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from agent.conversation import CallAgent
from agent.entrypoint import build_persona, persona_class
from agent.outside import opened
from agent.reports import Report, ReportRefused
from agent.reports.delivery import Deliver, Waiting
from agent.settings import Settings, load_settings

PACKAGE = Path(__file__).parent


def is_wanted() -> bool:
    """Whether the owner's persona does something after a call; one that cannot be read does not."""
    try:
        return persona_class().after_call is not CallAgent.after_call
    except Exception:  # of the owner's code; the call has ended with it as the reason
        return False


@asynccontextmanager
async def open_deliverer(settings: Settings) -> AsyncIterator[Deliver]:
    """Yield what runs it for a report; done is what returns within its time."""

    async def deliver(waiting: Waiting) -> None:
        seconds = settings.after_call_seconds
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__),
            cwd=settings.home,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(seconds):
                said, _ = await process.communicate(waiting.report.to_json())
        except TimeoutError as error:
            raise ReportRefused(
                f"it took longer than AGENT_AFTER_CALL_SECONDS={seconds:g}"
            ) from error
        finally:
            # and all that it has started
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if process.returncode:
            why = said.decode(errors="replace")
            raise ReportRefused(why or f"its process ended with {process.returncode}")

    yield deliver


async def run(settings: Settings, report: Report) -> None:
    """Run it here; raises what the owner's code raises."""
    from livekit.agents.utils import http_context

    # models need it
    async with http_context.open(), opened(settings) as call:
        await build_persona(call).after_call(report)


def place_of(error: Exception, home: Path) -> str:
    """The last line of the project's own code, which called a library where one has raised."""
    frames = traceback.extract_tb(error.__traceback__)
    # an environment is in the project's folder, and in an image this package in the environment
    own = [frame for frame in frames if _is_own(Path(frame.filename), home)]
    where = (own or frames)[-1]
    return f"{Path(where.filename).name}, line {where.lineno}"


def _is_own(file: Path, home: Path) -> bool:
    installed = "site-packages" in file.parts
    return PACKAGE in file.parents or (home in file.parents and not installed)


def main() -> int:
    """Run it for the report on standard input; 1, and a line on standard output, if it fails."""
    # what the owner's code prints is for the log's reader, and may be the caller's words; and what
    # it starts may go on, with an output of its own
    ours = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    settings, report = load_settings(), Report.from_json(sys.stdin.buffer.read())
    # its worker may have died
    signal.alarm(math.ceil(settings.after_call_seconds) + 1)
    try:
        asyncio.run(run(settings, report))
    except Exception as error:
        # not what it says: that may be the caller's words
        os.write(ours, f"{type(error).__name__} in {place_of(error, settings.home)}".encode())
        return 1
    return 0


if __name__ == "__main__":
    done = main()
    sys.stdout.flush()
    # it is done, whatever its threads do
    os._exit(done)
