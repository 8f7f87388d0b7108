#!/usr/bin/env bash
# One expects: the model is offered the methods that an Agent's class decorates with @function_tool and what was passed
#   as `tools=`. A tool that the agent merely keeps in a private attribute, to add with update_tools() after the caller
#   has proved who they are, is not one of them.
# What happens: Agent.__init__ goes through all attributes of the instance, private ones too, and takes every tool it
#   finds. With `self._refund = refund` before super().__init__() the model is offered it from the first turn, calls it,
#   and it runs. One line lower, after super().__init__(), it is not. A tool kept in a list or dict is never found. A
#   Toolset's constructor does the same.
# Why it matters: the order of two lines decides whether an anonymous caller reaches the tool that was held back.
#   Nothing is logged, and the code reads the same in a review.
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
from importlib.metadata import version

from livekit.agents import Agent, AgentSession, function_tool, llm

ran = []


@function_tool
async def refund(amount: int) -> str:
    """Pay money back. For callers who have proved who they are."""
    ran.append(amount)
    return "paid"


class Desk(Agent):
    @function_tool
    async def hours(self) -> str:
        """When the shop is open."""
        return "nine to five"


class KeptBefore(Desk):
    def __init__(self):
        self._refund = refund
        super().__init__(instructions="Help.")


class KeptAfter(Desk):
    def __init__(self):
        super().__init__(instructions="Help.")
        self._refund = refund


class KeptInAList(Desk):
    def __init__(self):
        self._for_later = [refund]
        super().__init__(instructions="Help.")


class Shop(llm.Toolset):
    def __init__(self):
        self._refund = refund
        super().__init__(id="shop")


class Model(llm.LLM):
    """Writes down the tools it is offered, and calls the refund where it is one of them."""

    def __init__(self):
        super().__init__()
        self.offered = None

    def chat(self, *, chat_ctx, tools=None, conn_options=None, **_):
        if self.offered is None:
            self.offered = sorted(tool.info.name for tool in tools or [])
        return Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class Answer(llm.LLMStream):
    async def _run(self):
        asked = any(item.type == "function_call_output" for item in self._chat_ctx.items)
        if not asked and any(tool.info.name == "refund" for tool in self._tools):
            call = llm.FunctionToolCall(name="refund", arguments='{"amount": 500}', call_id="1")
            delta = llm.ChoiceDelta(role="assistant", tool_calls=[call])
        else:
            delta = llm.ChoiceDelta(role="assistant", content="Done.")
        self._event_ch.send_nowait(llm.ChatChunk(id="1", delta=delta))


async def main():
    print("livekit-agents", version("livekit-agents"))
    seen = {}
    for kind in (KeptBefore, KeptAfter, KeptInAList):
        ran.clear()
        model = Model()
        async with AgentSession(llm=model) as session:
            await session.start(kind())
            await session.run(user_input="Pay me 500 back.")
        seen[kind] = (model.offered, list(ran))
        print(f"{kind.__name__}: the model is offered {model.offered}; refunds paid {ran}")
    toolset = [tool.info.name for tool in Shop().tools]
    print(f"a Toolset that keeps it aside: {toolset}")
    assert seen[KeptAfter] == seen[KeptInAList] == (["hours"], []), "kept aside as meant"
    assert seen[KeptBefore] == (["hours", "refund"], [500]), "CHANGED: a tool in a private attribute stays aside"
    assert toolset == ["refund"], "CHANGED: a tool in a Toolset's private attribute stays aside"
    print("as described: a tool in a private attribute is offered to the model, and runs")


asyncio.run(main())
PY
timeout 150 "$work/venv/bin/python" "$work/finding.py"
