"""Reports as signed JSON at AGENT_WEBHOOK_URL, in the manner of standardwebhooks.com.

One call is one message: its `webhook-id` is the same however often it is sent.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit

import aiohttp
from standardwebhooks import Webhook

from agent.reports import NotDelivered, Report, ReportRefused
from agent.reports.delivery import Deliver, Waiting
from agent.settings import Settings

# for an answer; below what forgetting waits for a delivery
SECONDS = 8.0
EVENT = "call.ended"
# of the receiver as a whole, whatever it is sent
BUSY = {429, 502, 503, 504}


@asynccontextmanager
async def open_deliverer(settings: Settings) -> AsyncIterator[Deliver]:
    """Yield what sends a report; it has arrived when the receiver answers with a status of 2xx."""
    signature = Webhook(settings.webhook_secret.get_secret_value())
    url = settings.webhook_url.get_secret_value()
    timeout = aiohttp.ClientTimeout(total=SECONDS)
    # an address may hold a token: only the host is named
    where = f"the webhook at {urlsplit(url).hostname}"
    async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as http:

        async def deliver(waiting: Waiting) -> None:
            body, now = _body(waiting.report), datetime.now(UTC)
            message = f"call_{waiting.report.call}"
            headers = {
                "content-type": "application/json",
                "webhook-id": message,
                "webhook-timestamp": str(int(now.timestamp())),
                "webhook-signature": signature.sign(message, now, body),
            }
            try:
                asked = http.post(url, data=body, headers=headers, allow_redirects=False)
                async with asked as answer:
                    status = answer.status
            except TimeoutError as error:
                raise NotDelivered(f"{where} does not answer within {SECONDS:g} s") from error
            except (aiohttp.ClientError, OSError) as error:
                raise NotDelivered(f"{where} does not answer ({type(error).__name__})") from error
            if status in BUSY:
                raise NotDelivered(f"{where} answers with {status}")
            if not 200 <= status < 300:
                raise ReportRefused(f"{where} answers with {status} and not with 2xx")

        yield deliver


def _body(report: Report) -> str:
    ended = datetime.fromtimestamp(report.began + report.seconds, UTC).isoformat()
    return json.dumps({"type": EVENT, "timestamp": ended, "data": report.to_dict()})
