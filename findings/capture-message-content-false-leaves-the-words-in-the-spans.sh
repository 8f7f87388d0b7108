#!/usr/bin/env bash
# One expects: OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=false, OpenTelemetry's switch for it, which
#   livekit-agents reads, keeps what is said out of the spans; by the convention it is out unless one asks for it.
# What happens: unset, everything is in the spans: instructions, the caller's words, the answers, what tools were given
#   and what they returned. With false the attributes of the convention (gen_ai.*) go, and the same words stay in the
#   SDK's own, lk.pii.*, on three kinds of spans. set_tracer_provider(..., allow_pii=False) takes both away.
# Why it matters: who has the switch in the deployment, looks for gen_ai.input.messages and does not find it, goes on
#   sending card numbers and addresses to the tracing service, which keeps them.
# Versions: livekit-agents 1.8.9, opentelemetry-sdk 1.45.2.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" livekit-agents==1.8.9 opentelemetry-sdk==1.45.2

cat > "$work/finding.py" <<'PY'
import asyncio
import json
import sys

from livekit.agents import APIConnectOptions, Agent, AgentSession, function_tool, llm
from livekit.agents.telemetry import set_tracer_provider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

WORDS = ("4711-said-by-the-caller", "4712-said-by-the-agent", "4713-returned-by-the-tool")


class Model(llm.LLM):
    def chat(self, *, chat_ctx, tools=None, conn_options=APIConnectOptions(), **_):
        return Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class Answer(llm.LLMStream):
    async def _run(self):
        if self._chat_ctx.items[-1].type == "function_call_output":
            delta = llm.ChoiceDelta(role="assistant", content=WORDS[1])
        else:
            call = llm.FunctionToolCall(name="look_up", arguments=json.dumps({"card": WORDS[0]}), call_id="1")
            delta = llm.ChoiceDelta(role="assistant", tool_calls=[call])
        self._event_ch.send_nowait(llm.ChatChunk(id="1", delta=delta))


@function_tool
async def look_up(card: str) -> str:
    """Look up a card."""
    return WORDS[2]


async def main():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    options = {"allow_pii": False} if sys.argv[1:] == ["allow_pii=False"] else {}
    set_tracer_provider(provider, **options)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with AgentSession(llm=Model()) as session:
        await session.start(Agent(instructions="Help.", tools=[look_up]))
        await session.run(user_input=f"My card is {WORDS[0]}")
    found = {}
    for span in exporter.get_finished_spans():
        for key, value in (span.attributes or {}).items():
            for word in WORDS:
                if word in str(value):
                    found.setdefault(word, set()).add(f"{span.name}: {key}")
    print(json.dumps({word: sorted(places) for word, places in sorted(found.items())}))


asyncio.run(main())
PY
uv pip list -q --python "$work/venv/bin/python" | grep -E '^(livekit-agents|opentelemetry-sdk) '
run() { timeout 30 "$work/venv/bin/python" "$work/finding.py" "$@"; }
export -n OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT LIVEKIT_TELEMETRY_ALLOW_PII
unset=$(run)
off=$(OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT=false run)
none=$(run allow_pii=False)

"$work/venv/bin/python" - "$unset" "$off" "$none" <<'PY'
import json
import sys

unset, off, none = (json.loads(text) for text in sys.argv[1:])
for title, found in (("unset", unset), ("CAPTURE_MESSAGE_CONTENT=false", off), ("allow_pii=False", none)):
    print(f"--- {title}: {len(found)} of 3 secrets are in the spans")
    for word, places in found.items():
        print(f"  {word}: {'; '.join(places)}")
kept = {place.split(": ")[1] for places in off.values() for place in places}
assert len(unset) == 3 and any("gen_ai." in place for places in unset.values() for place in places), \
    "CHANGED: by default the words are not in the spans"
assert not any(key.startswith("gen_ai.") for key in kept), "the switch is read: gen_ai.* is gone"
assert len(off) == 3 and all(key.startswith("lk.pii.") for key in kept), \
    "CHANGED: the switch takes the words out of the SDK's own attributes too"
assert not none, "allow_pii=False takes them all away"
print("as described: with the switch off every word is still exported, under other names")
PY
