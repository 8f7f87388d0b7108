#!/usr/bin/env bash
# One expects: `Webhook.sign(id, timestamp, body)` of standardwebhooks signs the moment that a datetime with a time zone stands for.
# What happens: it takes the clock's hands and calls them UTC: 14:00+02:00 is signed as 14:00 UTC, two hours later. Whoever sends
#   int(timestamp.timestamp()) in the header, which is the right time, is told "No matching signature found" by `verify` of the same
#   package. A datetime in UTC works; datetime.now() works on machines in UTC only.
# Why it matters: a sender of webhooks passes its tests in a container, whose zone is UTC, and fails on a laptop, or on the day when
#   the times of a call come with the caller's zone; the error speaks of the signature, so people look at the secret.
# Versions: standardwebhooks 1.1.0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" standardwebhooks==1.1.0

cat > "$work/finding.py" <<'PY'
import base64
import os
import time
from datetime import datetime, timedelta, timezone
from importlib.metadata import version

from standardwebhooks import Webhook, WebhookVerificationError

HOOK = Webhook("whsec_" + base64.b64encode(b"a secret of enough bytes").decode())
BODY = '{"type": "call.ended"}'


def verdict(moment):
    """What `verify` says of what `sign` has signed, with the right time in the header."""
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": HOOK.sign("msg_1", moment, BODY),
    }
    try:
        HOOK.verify(BODY, headers)
    except WebhookVerificationError as error:
        return str(error)
    return "accepted"


print("standardwebhooks", version("standardwebhooks"))
utc = datetime.now(timezone.utc)
berlin = utc.astimezone(timezone(timedelta(hours=2)))
assert utc == berlin, "the same moment"
seen = {"in UTC": verdict(utc), "the same moment, +02:00": verdict(berlin)}
for zone in ("UTC", "Asia/Tokyo"):
    os.environ["TZ"] = zone if zone == "UTC" else "JST-9"
    time.tzset()
    seen[f"datetime.now() on a machine in {zone}"] = verdict(datetime.now())
for which, said in seen.items():
    print(f"{which}: {said}")
same = HOOK.sign("msg_1", utc, BODY) == HOOK.sign("msg_1", berlin, BODY)
print("two equal datetimes have the same signature:", same)
bad = "No matching signature found"
assert list(seen.values()) == ["accepted", bad, "accepted", bad] and not same, f"CHANGED: {seen}"
print("as described")
PY
timeout 60 "$work/venv/bin/python" "$work/finding.py"
