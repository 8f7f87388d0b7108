"""What is answered to a conversation: what the agent's own scripted model would say.

Chat completions and realtime tell the same conversation in two forms; both are read into the SDK's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from livekit.agents import llm

from agent.models.scripted import respond
from tests.support.openai_server.faults import Refusal

Message = Mapping[str, Any]
# of a conversation and the names of tools: what is said, or the tool that is called
Script = Callable[[llm.ChatContext, set[str]], str | llm.FunctionToolCall]

scripted: Script = respond


def of_messages(messages: Sequence[Message]) -> llm.ChatContext:
    """The conversation of a chat completion; raises Refusal, as OpenAI, where calls lack results.

    A history that was cut between a call and its result is the typical mistake.
    """
    conversation, open_calls = llm.ChatContext.empty(), dict[str, str]()
    for number, message in enumerate(messages):
        role = message.get("role")
        if role == "tool":
            name = open_calls.pop(message["tool_call_id"], None)
            if name is None:
                raise _out_of_order(
                    "messages with role 'tool' must be a response to a preceding message with"
                    " 'tool_calls'",
                    number,
                )
            _add_result(conversation, message["tool_call_id"], name, text_of(message))
            continue
        if open_calls:
            raise _out_of_order(
                "An assistant message with 'tool_calls' must be followed by tool messages"
                " responding to each 'tool_call_id'. The following tool_call_ids did not have"
                f" response messages: {', '.join(open_calls)}",
                number,
            )
        if role not in ("system", "developer", "user", "assistant"):
            raise _out_of_order(f"Invalid value: {role!r}", number)
        if text := text_of(message):
            conversation.add_message(role=role, content=text)
        for call in message.get("tool_calls") or ():
            function = call["function"]
            open_calls[call["id"]] = function["name"]
            _add_call(conversation, call["id"], function["name"], function["arguments"])
    if open_calls:
        raise _out_of_order("the last tool calls have no results", len(messages))
    return conversation


def of_items(items: Sequence[Message]) -> llm.ChatContext:
    """The conversation of a realtime session."""
    conversation, names = llm.ChatContext.empty(), dict[str, str]()
    for item in items:
        if item["type"] == "function_call":
            names[item["call_id"]] = item["name"]
            _add_call(conversation, item["call_id"], item["name"], item["arguments"])
        elif item["type"] == "function_call_output":
            name = names.get(item["call_id"], "")
            _add_result(conversation, item["call_id"], name, item["output"])
        elif text := text_of(item):
            conversation.add_message(role=item["role"], content=text)
    return conversation


def text_of(message: Message) -> str:
    """The words of a message, in either protocol."""
    content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or part.get("transcript") or "" for part in content)


def quoted(instructions: str) -> str | None:
    """The sentence that a model is told to say, in quotation marks; None if there is none."""
    said: list[tuple[str, str]] = re.findall(r'"([^"]+)"|“([^”]+)”', instructions)
    return "".join(said[-1]) if said else None


def _add_call(conversation: llm.ChatContext, call: str, name: str, arguments: str) -> None:
    conversation.insert(llm.FunctionCall(call_id=call, name=name, arguments=arguments or "{}"))


def _add_result(conversation: llm.ChatContext, call: str, name: str, output: str) -> None:
    conversation.insert(
        llm.FunctionCallOutput(call_id=call, name=name, output=output, is_error=False)
    )


def _out_of_order(message: str, number: int) -> Refusal:
    return Refusal(400, message, param=f"messages.[{number}].role")
