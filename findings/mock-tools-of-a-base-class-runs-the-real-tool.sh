#!/usr/bin/env bash
# One expects: inside `with mock_tools(SupportAgent, {"charge": fake}):` no test can reach the real tool of a
#   SupportAgent; a subclass is a SupportAgent too, and a mock of a tool that does not exist is refused.
# What happens: mocks are looked up by the exact type of the agent and the exact name, and what is not found is
#   not mocked. With the base class given, or with a letter wrong in the name, the real tool runs: no error, no
#   warning, and the expectations of such a test (`is_function_call(name="charge")`) pass all the same.
# Why it matters: the tests of a project that derives its agents from a base class charge the card, write to the
#   calendar, call the customer. They are green, and nothing in their output says so.
# Versions: livekit-agents 1.8.9 (2.0.0b1 does the same).
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
import io
import json
import logging
from importlib.metadata import version

from livekit.agents import APIConnectOptions, Agent, AgentSession, function_tool, llm, mock_tools

said = io.StringIO()
logging.basicConfig(stream=said, level=logging.WARNING)
charged = []


class Model(llm.LLM):
    """Calls the tool once, then reads its result out."""

    def chat(self, *, chat_ctx, tools=None, conn_options=APIConnectOptions(), **_):
        return Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class Answer(llm.LLMStream):
    async def _run(self):
        last = self._chat_ctx.items[-1]
        if last.type == "function_call_output":
            delta = llm.ChoiceDelta(role="assistant", content=f"It says: {last.output}")
        else:
            call = llm.FunctionToolCall(name="charge", arguments=json.dumps({"cents": 500}), call_id="1")
            delta = llm.ChoiceDelta(role="assistant", tool_calls=[call])
        self._event_ch.send_nowait(llm.ChatChunk(id="1", delta=delta))


class SupportAgent(Agent):
    def __init__(self):
        super().__init__(instructions="Help.")

    @function_tool
    async def charge(self, cents: int) -> str:
        """Charge the caller's card."""
        charged.append(cents)
        return "really charged"


class GermanSupportAgent(SupportAgent):
    """The agent of one country: nothing of its own."""


async def tried(agent, mocked, name):
    """How often the real tool ran, and what the model was told."""
    charged.clear()
    async with AgentSession(llm=Model()) as session:
        await session.start(agent())
        with mock_tools(mocked, {name: lambda cents: "mocked"}):
            result = await session.run(user_input="I want to pay")
        result.expect.contains_function_call(name="charge")
        told = [item.output for item in session.history.items if item.type == "function_call_output"]
    print(f"agent {agent.__name__}, mock_tools({mocked.__name__}, {{{name!r}: ...}}): "
          f"real charges {charged}, the model was told {told}")
    return len(charged)


async def main():
    print("livekit-agents", version("livekit-agents"))
    assert await tried(SupportAgent, SupportAgent, "charge") == 0, "a mock of the very class works"
    assert await tried(GermanSupportAgent, SupportAgent, "charge") == 1, "CHANGED: the subclass is mocked too"
    assert await tried(SupportAgent, SupportAgent, "chagre") == 1, "CHANGED: a misspelled mock does not run the tool"
    print("warnings logged:", repr(said.getvalue()))
    assert not said.getvalue(), "CHANGED: something is said"
    print("as described: the real tool runs in the test, and nothing says so")


asyncio.run(main())
PY
timeout 60 "$work/venv/bin/python" "$work/finding.py"
