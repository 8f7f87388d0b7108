"""What a call's models were used for, in few enough numbers to be kept with the call."""

from __future__ import annotations

from collections import Counter
from typing import Any

# the fields of the SDK's usage (livekit.agents.metrics) that bills are made of
COUNTED = {
    "input_tokens": "input_tokens",
    "input_cached_tokens": "cached_tokens",
    "output_tokens": "output_tokens",
    "characters_count": "characters",
    "audio_duration": "audio_seconds",
    "session_duration": "session_seconds",
    "total_requests": "requests",
}


def usage_of(session: Any) -> dict[str, int]:
    """A session's usage, all models of a kind together, such as `llm_input_tokens` and `tts_characters`.

    What is nothing is left out, and so is everything of a session that does not count.
    """
    total: Counter[str] = Counter()
    for usage in getattr(getattr(session, "usage", None), "model_usage", []):
        kind = str(getattr(usage, "type", "")).removesuffix("_usage")
        for field, name in COUNTED.items():
            total[f"{kind}_{name}"] += getattr(usage, field, 0) or 0
    return {name: rounded for name, value in total.items() if (rounded := round(value))}
