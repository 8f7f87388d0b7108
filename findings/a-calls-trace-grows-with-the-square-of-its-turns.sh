#!/usr/bin/env bash
# One expects: the trace of a call with ten times as many turns is about ten times as large.
# What happens: livekit-agents puts the whole conversation so far on two spans of each answer (`lk.pii.chat_ctx` on llm_node and
#   `gen_ai.input.messages` on llm_request), so the trace grows with the square: 10 turns are 40 kB, 100 turns 2.9 MB, 70 times as much,
#   for 10 kB that were said. It is so as soon as a tracer provider is set. `session.start(record={…, "input_delta": True})`, which is off
#   by default, makes 0.16 MB of the 100 turns; keys that are left out of that dict mean True, the recording of sound too.
# Why it matters: a tracing service is paid by what is sent, and what is tried out is a call of three turns. One long call is megabytes of
#   the same words, and each copy is one more place that holds what the caller said.
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
from collections import Counter
from importlib.metadata import version

from livekit.agents import Agent, AgentSession, llm
from livekit.agents.telemetry import set_tracer_provider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

DELTA = {"audio": False, "traces": True, "logs": False, "transcript": False, "input_delta": True}


class Model(llm.LLM):
    def chat(self, *, chat_ctx, tools=None, conn_options=None, **_):
        return Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class Answer(llm.LLMStream):
    async def _run(self):
        delta = llm.ChoiceDelta(role="assistant", content="We are open from nine to five on every day of the week.")
        self._event_ch.send_nowait(llm.ChatChunk(id="1", delta=delta))


async def trace_of(turns, exporter, **options):
    """The characters of a call's trace, of what was said, and those of each kind of span."""
    exporter.clear()
    async with AgentSession(llm=Model()) as session:
        await session.start(Agent(instructions="Help."), **options)
        for number in range(turns):
            await session.run(user_input=f"When are you open on day {number} of the year?")
        said = sum(len(item.text_content) for item in session.history.items if item.type == "message")
    sizes = Counter()
    for span in exporter.get_finished_spans():
        sizes[span.name] += sum(len(str(value)) for value in span.attributes.values())
    largest = ", ".join(f"{name} {size / 1000:,.0f} kB" for name, size in sizes.most_common(2))
    print(f"{turns} turns{' with ' + str(options) if options else ''}: said {said / 1000:,.1f} kB, trace {sizes.total() / 1000:,.0f} kB ({largest})")
    return sizes.total(), said


async def main():
    print("livekit-agents", version("livekit-agents"), "opentelemetry-sdk", version("opentelemetry-sdk"))
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    set_tracer_provider(provider)
    short, said_short = await trace_of(10, exporter)
    long, said_long = await trace_of(100, exporter)
    delta, _ = await trace_of(100, exporter, record=DELTA)
    print(f"ten times the turns: {said_long / said_short:.0f} times the words, {long / short:.0f} times the trace")
    assert 9 < said_long / said_short < 12, "ten times as much was said"
    assert long / short > 40, "CHANGED: the trace does not grow with the square"
    assert delta / short < 12, "the way out"
    print("as described: the trace grows with the square of the turns")


asyncio.run(asyncio.wait_for(main(), 140))
PY
timeout 150 "$work/venv/bin/python" "$work/finding.py"
