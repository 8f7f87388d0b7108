"""Imported by the SDK's fork server, and by nothing else: what the server ignores, the jobs that it forks ignore.

A supervisor that stops a whole process group, as systemd does, sends SIGTERM to the worker, the fork server and every
job. The worker drains; the others have to live for as long as their calls do. The SDK means its jobs to ignore it
(ipc/job_proc_lazy_main.py), but a fork server has imported that module before there is a job.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
