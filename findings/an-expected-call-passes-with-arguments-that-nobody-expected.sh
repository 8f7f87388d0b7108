#!/usr/bin/env bash
# One expects: in a test of livekit-agents, `is_function_call(name="transfer", arguments={"amount": 5})` passes for a call with these
#   arguments and no others, as assert_called_with() does; with `arguments={}` only for a call without any.
# What happens: only the arguments that are named are compared. A model that adds `"express": true` passes, and `arguments={}` passes for
#   every call. `contains_function_call` is the same. The docstring says "Expected call arguments".
# Why it matters: what an agent must not do is what such tests are for: a model that begins to fill in an optional argument (a discount, a
#   second recipient, a date it made up) keeps the suite green. What helps is to compare json.loads(event.item.arguments) with ==.
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
import json
from importlib.metadata import version

from livekit.agents import Agent, AgentSession, function_tool, llm

SENT = {"amount": 5, "express": True}


@function_tool
async def transfer(amount: int, express: bool = False) -> str:
    """Send money. Express costs twenty euros and is for those who ask for it."""
    return "sent"


class Model(llm.LLM):
    """Calls the tool with an argument that nobody asked for."""

    def chat(self, *, chat_ctx, tools=None, conn_options=None, **_):
        return Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class Answer(llm.LLMStream):
    async def _run(self):
        if any(item.type == "function_call_output" for item in self._chat_ctx.items):
            delta = llm.ChoiceDelta(role="assistant", content="It is sent.")
        else:
            call = llm.FunctionToolCall(name="transfer", arguments=json.dumps(SENT), call_id="1")
            delta = llm.ChoiceDelta(role="assistant", tool_calls=[call])
        self._event_ch.send_nowait(llm.ChatChunk(id="1", delta=delta))


async def main():
    print("livekit-agents", version("livekit-agents"))
    async with AgentSession(llm=Model()) as session:
        await session.start(Agent(instructions="Help.", tools=[transfer]))
        result = await session.run(user_input="Send five euros.")

    def passes(arguments):
        """Whether each way of expecting the call takes these arguments for those of the call."""
        ways = (
            lambda: result.expect[0].is_function_call(name="transfer", arguments=arguments),
            lambda: result.expect.contains_function_call(name="transfer", arguments=arguments),
        )
        taken = []
        for way in ways:
            try:
                way()
                taken.append(True)
            except AssertionError:
                taken.append(False)
        print(f"called with {SENT}, expected {arguments}: {'passes' if all(taken) else 'fails' if not any(taken) else taken}")
        return taken

    for wrong in ({"amount": 6}, {"amount": 5, "express": False}, {"amount": 5, "to": "you"}):
        assert passes(wrong) == [False, False], "what is expected and is not so fails"
    assert passes(SENT) == [True, True], "what is so passes"
    for less in ({"amount": 5}, {}):
        assert passes(less) == [True, True], "CHANGED: arguments that nobody expected fail the test"
    print("as described: arguments that nobody expected pass")


asyncio.run(asyncio.wait_for(main(), 60))
PY
timeout 90 "$work/venv/bin/python" "$work/finding.py"
