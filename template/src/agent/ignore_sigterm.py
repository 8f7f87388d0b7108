"""Makes the SDK's fork server, and so every job that it forks, ignore SIGTERM; imported only there.

A supervisor that stops a whole process group, as systemd does, sends SIGTERM to the worker, the
fork server and every job. The worker drains; the others have to live for as long as their calls.
The SDK means its jobs to ignore SIGTERM (ipc/job_proc_lazy_main.py), but a fork server has imported
that module before there is a job.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
