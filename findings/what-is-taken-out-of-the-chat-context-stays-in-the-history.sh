#!/usr/bin/env bash
# One expects: after `agent.update_chat_ctx(…)` without a line of the conversation, or with another text in its place,
#   that line is gone from the session: `session.history` is what the model is shown, and what is recorded.
# What happens: these are two lists. The model is shown the new one; `session.history`, its to_dict() and the report made
#   at the end of a job keep the line as it was said, and lack what was put in. No event, no log line.
# Why it matters: a card number that is struck out so that no model sees it again is in the record of the call all the
#   same; and a summary that replaced the first half of a long call is in no record.
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

from livekit.agents import APIConnectOptions, Agent, AgentSession, llm

NUMBER, STRUCK, SUMMARY = "4111 1111 1111 1111", "[struck out]", "Summary: the caller paid."
shown = []  # what the model is shown, at each turn


class Model(llm.LLM):
    def chat(self, *, chat_ctx, tools=None, conn_options=APIConnectOptions(), **_):
        shown.append(json.dumps([one.text_content for one in chat_ctx.messages()]))
        return Answer(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)


class Answer(llm.LLMStream):
    async def _run(self):
        self._event_ch.send_nowait(llm.ChatChunk(id="1", delta=llm.ChoiceDelta(role="assistant", content="Thank you.")))


async def main():
    print("livekit-agents", version("livekit-agents"))
    async with AgentSession(llm=Model()) as session:
        agent = Agent(instructions="Help.")
        await session.start(agent)
        await session.run(user_input=f"My card is {NUMBER}")

        context = agent.chat_ctx.copy()
        for one in context.messages():
            if one.role == "user":
                context.items[context.items.index(one)] = llm.ChatMessage(id=one.id, role="user", content=[STRUCK])
        context.add_message(role="system", content=SUMMARY)
        await agent.update_chat_ctx(context)

        await session.run(user_input="Is that all?")
        history = json.dumps(session.history.to_dict())
    print("the model is shown:", shown[-1])
    kept = [one.text_content for one in session.history.messages()]
    print("session.history has:", kept)
    assert NUMBER in shown[0], "the model was shown the number once"
    assert NUMBER not in shown[-1] and STRUCK in shown[-1] and SUMMARY in shown[-1], "the model is shown the new context"
    assert NUMBER in history, "CHANGED: the history follows the chat context"
    assert SUMMARY not in history, "CHANGED: the history has what was put into the chat context"
    print("as described: struck out for the model, kept in the history")


asyncio.run(main())
PY
timeout 120 "$work/venv/bin/python" "$work/finding.py"
