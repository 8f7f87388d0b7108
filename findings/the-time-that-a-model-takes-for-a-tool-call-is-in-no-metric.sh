#!/usr/bin/env bash
# One expects: `ChatMessage.metrics`, which livekit-agents names as the successor of the deprecated event `metrics_collected` for the
#   latency of each turn, tells how long the caller waited for the model: `llm_node_ttft` of an answer behind a tool call has both requests.
# What happens: it is the last request only, the one that puts the tool's result into words. The request that decided to call the tool is
#   no message, and its FunctionCall has no metrics. A model that takes a second for each of two tool calls and nothing for the sentence
#   behind them has a `llm_node_ttft` of next to nothing. The deprecated event has all three requests.
# Why it matters: answers with tools are the slow ones, and in what is built as the SDK advises (dashboards, alarms, a comparison of two
#   models) their model looks like the fastest, so seconds that it took are looked for in the voice or in the network.
# Versions: livekit-agents 1.8.9.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" livekit-agents==1.8.9

cat > "$work/finding.py" <<'PY'
import asyncio
import logging
from importlib.metadata import version

from livekit.agents import Agent, AgentSession, function_tool, llm

logging.basicConfig(level=logging.ERROR)
SLOW = 1.0  # seconds that the model takes for each tool call


@function_tool
async def look_up() -> str:
    """Look up the booking."""
    return "found"


class Model(llm.LLM):
    """Slow for as many tool calls as it is told to make, quick for the sentence behind them."""

    def __init__(self, calls):
        super().__init__()
        self.calls = calls

    def chat(self, *, chat_ctx, tools=None, conn_options=None, **_):
        return Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class Answer(llm.LLMStream):
    async def _run(self):
        done = sum(item.type == "function_call_output" for item in self._chat_ctx.items)
        if done < self._llm.calls:
            await asyncio.sleep(SLOW)
            call = llm.FunctionToolCall(name="look_up", arguments="{}", call_id=str(done))
            delta = llm.ChoiceDelta(role="assistant", tool_calls=[call])
        else:
            await asyncio.sleep(0 if done else SLOW)
            delta = llm.ChoiceDelta(role="assistant", content="It is booked.")
        self._event_ch.send_nowait(llm.ChatChunk(id="1", delta=delta))


async def turn(calls):
    """The seconds that the model took, by the deprecated event, and by the metrics of all items of the history."""
    by_event = []
    async with AgentSession(llm=Model(calls)) as session:
        session.on("metrics_collected", lambda event: by_event.append(event.metrics.ttft))
        await session.start(Agent(instructions="Help.", tools=[look_up]))
        await session.run(user_input="Is it booked?")
        items = [item for item in session.history.items if hasattr(item, "metrics")]
    kinds = {item.type for item in items}
    by_items = [item.metrics["llm_node_ttft"] for item in items if "llm_node_ttft" in item.metrics]
    rounded = [round(seconds, 1) for seconds in by_event], [round(seconds, 1) for seconds in by_items]
    print(f"{calls} tool calls: by metrics_collected {rounded[0]} s, by the metrics in the history {rounded[1]} s, which are in: {kinds}")
    return by_event, by_items, kinds


async def main():
    print("livekit-agents", version("livekit-agents"))
    event, items, _ = await turn(0)
    assert event[0] > 0.9 * SLOW and items[0] > 0.9 * SLOW, "without a tool call both tell the same"
    event, items, kinds = await turn(2)
    assert len(event) == 3 and sum(event) > 1.8 * SLOW, "the event has the requests of the tool calls"
    assert kinds == {"message"}, f"CHANGED: metrics are in {kinds}"
    assert len(items) == 1 and items[0] < SLOW, "CHANGED: the metrics have the time of the tool calls"
    print("as described: two seconds of the model are in no item of the history")


asyncio.run(asyncio.wait_for(main(), 60))
PY
timeout 90 "$work/venv/bin/python" "$work/finding.py"
