"""`/v1/chat/completions`: whole, or streamed word by word as server-sent events; tool calls."""

from __future__ import annotations

import json
import re
import time
import uuid
from typing import Any

from livekit.agents import llm

from tests.support.openai_server.requests import Answer, Asked, as_json, required
from tests.support.openai_server.script import Script, of_messages


def completion(asked: Asked, script: Script) -> Answer:
    """What the script says to the messages of a request; raises Refusal."""
    required(asked, "model", "messages")
    body = asked.body
    tools = {tool["function"]["name"] for tool in body.get("tools") or ()}
    if body.get("tool_choice") == "none":
        tools = set()
    reply = script(of_messages(body["messages"]), tools)
    head = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": body["model"],
        "system_fingerprint": "fp_test",
    }
    if not body.get("stream"):
        return _whole(head, reply)
    wants_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    return _streamed(head, reply, wants_usage)


def _whole(head: dict[str, Any], reply: str | llm.FunctionToolCall) -> Answer:
    said = {"content": reply} if isinstance(reply, str) else {"tool_calls": [_call(reply)]}
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": None, "refusal": None, **said},
        "logprobs": None,
        "finish_reason": _finish(reply),
    }
    return as_json({**head, "object": "chat.completion", "choices": [choice], "usage": USAGE})


def _streamed(head: dict[str, Any], reply: str | llm.FunctionToolCall, wants_usage: bool) -> Answer:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None, "refusal": None}]
    if isinstance(reply, str):
        deltas[0]["content"] = ""
        deltas += [{"content": word} for word in re.findall(r"\S+\s*", reply)]
    else:
        # the name first, then the arguments in pieces, as OpenAI does
        call, arguments = {"index": 0, **_call(reply)}, reply.arguments
        call["function"] = {**call["function"], "arguments": ""}
        deltas[0]["tool_calls"] = [call]
        deltas += [
            {"tool_calls": [{"index": 0, "function": {"arguments": arguments[at : at + 8]}}]}
            for at in range(0, len(arguments), 8)
        ]
    # with usage, every chunk has the field
    nothing = {"usage": None} if wants_usage else {}
    chunks = [
        {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]}
        for delta, finish in [*((delta, None) for delta in deltas), ({}, _finish(reply))]
    ]
    events: list[dict[str, Any]] = [{**nothing, **chunk} for chunk in chunks]
    if wants_usage:
        events.append({"choices": [], "usage": USAGE})
    head = {**head, "object": "chat.completion.chunk"}
    lines = [json.dumps({**head, **event}) for event in events]
    parts = [f"data: {line}\n\n".encode() for line in [*lines, "[DONE]"]]
    return Answer(parts, "text/event-stream")


USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}


def _call(call: llm.FunctionToolCall) -> dict[str, Any]:
    return {
        "id": call.call_id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }


def _finish(reply: str | llm.FunctionToolCall) -> str:
    return "stop" if isinstance(reply, str) else "tool_calls"
