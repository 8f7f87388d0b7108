"""`/v1/realtime`: one conversation over WebSocket, spoken or written, as OpenAI's GA interface.

Also for transcription alone (`session.type` "transcription"), as speech to text asks for it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiohttp import WSMsgType, web
from livekit.agents import llm

from tests.support.openai_server.audio import PART, SAMPLE_RATE, SHORTEST_SECONDS, wav_of
from tests.support.openai_server.faults import GARBAGE, Fault, Refusal
from tests.support.openai_server.requests import MODELS, Asked
from tests.support.openai_server.script import of_items, quoted
from tests.support.openai_server.turns import Turns

if TYPE_CHECKING:
    from tests.support.openai_server.server import OpenAIServer

Event = dict[str, Any]

SPEED = 5  # times as fast as it is spoken, sound is sent
LONGEST_ID = 32
CONTENT = {
    "system": {"input_text"},
    "user": {"input_text", "input_audio", "input_image"},
    "assistant": {"output_text", "output_audio"},
}
USAGE = {
    "total_tokens": 15,
    "input_tokens": 10,
    "output_tokens": 5,
    "input_token_details": {"text_tokens": 10, "audio_tokens": 0, "cached_tokens": 0},
    "output_token_details": {"text_tokens": 5, "audio_tokens": 0},
}


class Realtime:
    """One connection: its session, the items of its conversation, the response in progress."""

    def __init__(
        self,
        server: OpenAIServer,
        socket: web.WebSocketResponse,
        transport: asyncio.Transport,
        first: Asked,
    ) -> None:
        self._server, self._socket, self._key = server, socket, first.key
        self._transport = transport
        model = first.body.get("model", MODELS["realtime"])
        self.session: dict[str, Any] = {
            "type": "realtime",
            "object": "realtime.session",
            "id": _new("sess"),
            "model": model,
            "output_modalities": ["audio"],
            "instructions": "",
            "tools": [],
            "tool_choice": "auto",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": SAMPLE_RATE},
                    "transcription": None,
                    "noise_reduction": None,
                    "turn_detection": {"type": "server_vad"},
                },
                "output": {
                    "format": {"type": "audio/pcm", "rate": SAMPLE_RATE},
                    "voice": "marin",
                    "speed": 1.0,
                },
            },
        }
        self.items: list[dict[str, Any]] = []
        self._turns = Turns()
        self._turn_item = ""
        self._response: asyncio.Task[None] | None = None
        self._work: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Answer events until the client leaves."""
        await self._send("session.created", session=self.session)
        try:
            async for message in self._socket:
                if message.type is not WSMsgType.TEXT:
                    continue
                event: Event = json.loads(message.data)
                if event.get("type") != "input_audio_buffer.append":
                    await self._server.note(Asked("realtime", self._key, event))
                try:
                    await self._on(event)
                except Refusal as refusal:
                    await self._send_error(refusal, event)
        finally:
            work = [*self._work, *([self._response] if self._response else [])]
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)

    async def _on(self, event: Event) -> None:
        match event.get("type"):
            case "session.update":
                await self._update(event["session"])
            case "conversation.item.create":
                await self._create(event["item"], event.get("previous_item_id"))
            case "conversation.item.delete":
                self.items.remove(self._item(event["item_id"], "delete"))
                await self._send("conversation.item.deleted", item_id=event["item_id"])
            case "conversation.item.retrieve":
                item = self._item(event["item_id"], "retrieve")
                await self._send("conversation.item.retrieved", item=item)
            case "conversation.item.truncate":
                self._item(event["item_id"], "truncate")
                where = {name: event[name] for name in ("item_id", "content_index", "audio_end_ms")}
                await self._send("conversation.item.truncated", **where)
            case "response.create":
                if self._responding:
                    message = "Conversation already has an active response in progress"
                    raise Refusal(400, message, code="conversation_already_has_active_response")
                self._respond(event.get("response") or {})
            case "response.cancel":
                if not self._responding:
                    message = "Cancellation failed: no active response found"
                    raise Refusal(400, message, code="response_cancel_not_active")
                await self._cancel("client_cancelled")
            case "input_audio_buffer.append":
                await self._hear(base64.b64decode(event["audio"]))
            case "input_audio_buffer.clear":
                self._turns.take()
                await self._send("input_audio_buffer.cleared")
            case "input_audio_buffer.commit":
                await self._commit(_new("item"))
            case other:
                raise Refusal(400, f"Invalid value: {other!r}.", code="invalid_value", param="type")

    # ------------------------------------------------------------------ session and items

    async def _update(self, changes: dict[str, Any]) -> None:
        if changes.get("type") not in ("realtime", "transcription"):
            message = "Missing required parameter: 'session.type'."
            raise Refusal(400, message, code="missing_required_parameter", param="session.type")
        audio = changes.get("audio") or {}
        for side in ("input", "output"):
            self.session["audio"][side].update(audio.get(side) or {})
        self.session.update({name: value for name, value in changes.items() if name != "audio"})
        await self._send("session.updated", session=self.session)

    async def _create(self, item: dict[str, Any], after: str | None) -> None:
        known = {one["id"]: number for number, one in enumerate(self.items)}
        id_ = item.get("id") or _new("item")
        _check(item, id_)
        if id_ in known:
            message = f"Error adding item: an item with ID '{id_}' already exists."
            raise Refusal(400, message, code="item_create_duplicate_item_id")
        if after not in (None, "root", *known):
            message = f"Error adding item: the previous item with ID '{after}' does not exist."
            raise Refusal(400, message, code="item_create_invalid_previous_item_id")
        calls = {one["call_id"] for one in self.items if one["type"] == "function_call"}
        if item["type"] == "function_call_output" and item["call_id"] not in calls:
            message = f"Tool call ID '{item['call_id']}' not found in conversation."
            raise Refusal(400, message, code="invalid_tool_call_id")
        at = len(self.items) if after is None else 0 if after == "root" else known[after] + 1
        item = {**item, "id": id_, "object": "realtime.item", "status": "completed"}
        await self._add(item, at)
        await self._done(item)

    async def _add(self, item: dict[str, Any], at: int | None = None) -> None:
        at = len(self.items) if at is None else at
        self.items.insert(at, item)
        await self._send("conversation.item.added", item=item, previous_item_id=self._before(item))

    async def _done(self, item: dict[str, Any]) -> None:
        await self._send("conversation.item.done", item=item, previous_item_id=self._before(item))

    def _before(self, item: dict[str, Any]) -> str | None:
        at = [one["id"] for one in self.items].index(item["id"])
        return self.items[at - 1]["id"] if at else None

    def _item(self, id_: str, verb: str) -> dict[str, Any]:
        for item in self.items:
            if item["id"] == id_:
                return item
        message = f"Error: the item with ID '{id_}' does not exist."
        raise Refusal(400, message, code=f"item_{verb}_invalid_item_id")

    # ------------------------------------------------------------------ what is heard

    async def _hear(self, samples: bytes) -> None:
        turn_detection = self.session["audio"]["input"]["turn_detection"]
        if turn_detection is None:
            self._turns.keep(samples)
            return
        padding = turn_detection.get("prefix_padding_ms") or 300
        silence = turn_detection.get("silence_duration_ms") or 500
        for edge, at in self._turns.push(samples, padding, silence):
            if edge == "started":
                self._turn_item = _new("item")
                where = {"audio_start_ms": at, "item_id": self._turn_item}
                await self._send("input_audio_buffer.speech_started", **where)
                if self._responding and turn_detection.get("interrupt_response") is not False:
                    await self._cancel("turn_detected")
            else:
                where = {"audio_end_ms": at, "item_id": self._turn_item}
                await self._send("input_audio_buffer.speech_stopped", **where)
                respond = turn_detection.get("create_response") is not False
                await self._commit(self._turn_item, respond=respond)

    async def _commit(self, id_: str, *, respond: bool = False) -> None:
        sound = self._turns.take()
        seconds = len(sound) / 2 / SAMPLE_RATE
        if seconds < SHORTEST_SECONDS:
            message = (
                "Error committing input audio buffer: buffer too small. Expected at least 100ms of"
                f" audio, but buffer only has {1000 * seconds:.2f}ms of audio."
            )
            raise Refusal(400, message, code="input_audio_buffer_commit_empty")
        before = self.items[-1]["id"] if self.items else None
        await self._send("input_audio_buffer.committed", item_id=id_, previous_item_id=before)
        content = [{"type": "input_audio", "transcript": None}]
        item = {**_message("user", content), "id": id_, "status": "completed"}
        await self._add(item)
        await self._done(item)
        hearing = asyncio.create_task(self._understand(item, sound, respond=respond))
        self._work.add(hearing)
        hearing.add_done_callback(self._work.discard)

    async def _understand(self, item: dict[str, Any], sound: bytes, *, respond: bool) -> None:
        text = await asyncio.to_thread(self._server.ears, wav_of(sound))
        # known to the script, as to a model that hears, whether it is transcribed or not
        item["content"][0]["transcript"] = text
        if self.session["audio"]["input"]["transcription"] is not None:
            where = {"item_id": item["id"], "content_index": 0}
            kind = "conversation.item.input_audio_transcription"
            await self._send(f"{kind}.delta", delta=text, **where)
            usage = {"type": "duration", "seconds": len(sound) / 2 / SAMPLE_RATE}
            await self._send(f"{kind}.completed", transcript=text, usage=usage, **where)
        if respond and self.session["type"] == "realtime":
            self._respond({})

    # ------------------------------------------------------------------ what is said

    @property
    def _responding(self) -> bool:
        return self._response is not None and not self._response.done()

    def _respond(self, wanted: dict[str, Any]) -> None:
        self._response = asyncio.create_task(Response(self, wanted).run())

    async def _cancel(self, reason: str) -> None:
        assert self._response is not None
        self._response.cancel(reason)
        with suppress(asyncio.CancelledError):
            await self._response

    def reply(self, wanted: dict[str, Any]) -> str | llm.FunctionToolCall:
        """What the script says; a sentence that instructions quote is said as it is."""
        if sentence := quoted(wanted.get("instructions") or ""):
            return sentence
        given = {**self.session, **wanted}
        tools = {tool["name"] for tool in given["tools"] if given["tool_choice"] != "none"}
        return self._server.script(of_items(self.items), tools)

    def fault(self) -> Fault | None:
        return self._server.next_fault("realtime")

    def voice(self, text: str) -> bytes:
        return self._server.voice(text)

    async def _send(self, type_: str, **rest: Any) -> None:
        if not self._socket.closed:
            event = {"type": type_, "event_id": _new("event"), **rest}
            with suppress(ConnectionError):
                await self._socket.send_str(json.dumps(event))

    async def _send_error(self, refusal: Refusal, event: Event) -> None:
        error = {**refusal.error, "event_id": event.get("event_id")}
        await self._send("error", error=error)

    async def refuse(self, refusal: Refusal) -> None:
        """Say why, and end the connection."""
        await self._send_error(refusal, {})
        await self._socket.close(code=3000, message=refusal.type.encode())

    async def send_garbage(self) -> None:
        await self._socket.send_str(GARBAGE)

    def cut(self) -> None:
        """End the connection as a broken network does, without a farewell."""
        self._transport.close()


class Response:
    """One response, from `response.created` to `response.done`.

    What it says or calls it sends piece by piece; after each it yields the share that is sent.
    """

    def __init__(self, realtime: Realtime, wanted: dict[str, Any]) -> None:
        self._realtime, self._wanted = realtime, wanted
        self._send, self._add, self._done = realtime._send, realtime._add, realtime._done
        self._modalities = wanted.get("output_modalities") or realtime.session["output_modalities"]
        self._id = _new("resp")
        self._output: list[dict[str, Any]] = []
        self._where: dict[str, Any] = {"response_id": self._id, "output_index": 0}

    async def run(self) -> None:
        fault = self._realtime.fault()
        match fault.kind if fault else None:
            case "hang" | "silent":
                assert fault is not None
                await fault.over.wait()
                self._realtime.cut()
                return
            case "garbage":
                await self._realtime.send_garbage()
                return
        await self._send("response.created", response=self._as("in_progress"))
        if fault and (refusal := fault.refusal):
            error = {"type": refusal.type, "code": refusal.code, "message": refusal.message}
            await self._end("failed", {"type": "failed", "error": error})
            return
        try:
            reply = self._realtime.reply(self._wanted)
            parts = self._say(reply) if isinstance(reply, str) else self._call(reply)
            async for share in parts:
                if fault is not None and share >= 0.5:
                    self._realtime.cut()
                    return
            await self._end("completed", None)
        except asyncio.CancelledError as cancelled:
            for item in self._output:
                item["status"] = "incomplete"
                await self._send("response.output_item.done", item=item, **self._where)
            reason = cancelled.args[0] if cancelled.args else "client_cancelled"
            await self._end("cancelled", {"type": "cancelled", "reason": reason})

    def _as(self, status: str, details: dict[str, Any] | None = None) -> dict[str, Any]:
        return {
            "object": "realtime.response",
            "id": self._id,
            "status": status,
            "status_details": details,
            "output": self._output,
            "output_modalities": self._modalities,
            "metadata": self._wanted.get("metadata"),
            "usage": None if status == "in_progress" else USAGE,
        }

    async def _end(self, status: str, details: dict[str, Any] | None) -> None:
        await self._send("response.done", response=self._as(status, details))

    async def _begin(self, item: dict[str, Any]) -> dict[str, Any]:
        item |= {"id": _new("item"), "status": "in_progress"}
        self._output.append(item)
        await self._send("response.output_item.added", item=item, **self._where)
        await self._add(item)
        return item

    async def _finish(self, item: dict[str, Any]) -> None:
        item["status"] = "completed"
        await self._send("response.output_item.done", item=item, **self._where)
        await self._done(item)

    async def _call(self, call: llm.FunctionToolCall) -> AsyncIterator[float]:
        item: dict[str, Any] = {
            "type": "function_call",
            "object": "realtime.item",
            "call_id": call.call_id[:LONGEST_ID],
            "name": call.name,
            "arguments": "",
        }
        item = await self._begin(item)
        where = {**self._where, "item_id": item["id"], "call_id": item["call_id"]}
        kind, arguments = "response.function_call_arguments", call.arguments
        await self._send(f"{kind}.delta", delta=arguments, **where)
        yield 0.5
        await self._send(f"{kind}.done", arguments=arguments, name=call.name, **where)
        item["arguments"] = arguments
        await self._finish(item)

    async def _say(self, words: str) -> AsyncIterator[float]:
        item = await self._begin(_message("assistant", []))
        where = {**self._where, "item_id": item["id"], "content_index": 0}
        if "audio" not in self._modalities:
            async for share in self._write(words, item, where):
                yield share
            return
        part = {"type": "audio", "transcript": ""}
        await self._send("response.content_part.added", part=part, **where)
        samples = await asyncio.to_thread(self._realtime.voice, words)
        parts = [samples[at : at + PART] for at in range(0, len(samples), PART)]
        for number, (sound, text) in enumerate(_together(parts, words)):
            kind = "response.output_audio"
            if text:
                await self._send(f"{kind}_transcript.delta", delta=text, **where)
            await self._send(f"{kind}.delta", delta=base64.b64encode(sound).decode(), **where)
            yield (number + 1) / len(parts)
            await asyncio.sleep(len(sound) / 2 / SAMPLE_RATE / SPEED)
        await self._send("response.output_audio.done", **where)
        await self._send("response.output_audio_transcript.done", transcript=words, **where)
        part = {"type": "audio", "transcript": words}
        await self._send("response.content_part.done", part=part, **where)
        item["content"] = [{"type": "output_audio", "transcript": words}]
        await self._finish(item)

    async def _write(
        self, words: str, item: dict[str, Any], where: dict[str, Any]
    ) -> AsyncIterator[float]:
        part = {"type": "text", "text": ""}
        await self._send("response.content_part.added", part=part, **where)
        pieces = re.findall(r"\S+\s*", words)
        for number, word in enumerate(pieces):
            await self._send("response.output_text.delta", delta=word, **where)
            yield (number + 1) / len(pieces)
        await self._send("response.output_text.done", text=words, **where)
        part = {"type": "text", "text": words}
        await self._send("response.content_part.done", part=part, **where)
        item["content"] = [{"type": "output_text", "text": words}]
        await self._finish(item)


def _together(parts: list[bytes], words: str) -> Iterator[tuple[bytes, str]]:
    """Each part of a sound with its share of the words, which come a little earlier, if at all."""
    pieces = re.findall(r"\S+\s*", words)
    share = -(-len(pieces) // max(1, len(parts) // 2))
    for number, part in enumerate(parts):
        yield part, "".join(pieces[number * share : (number + 1) * share])


def _check(item: dict[str, Any], id_: str) -> None:
    """Raises Refusal for an item that the protocol does not have."""
    if len(id_) > LONGEST_ID:
        message = f"Invalid 'item.id': string too long. Expected at most {LONGEST_ID} characters."
        raise Refusal(400, message, code="string_above_max_length", param="item.id")
    if item["type"] not in ("message", "function_call", "function_call_output"):
        message = f"Invalid value: {item['type']!r}."
        raise Refusal(400, message, code="invalid_value", param="item.type")
    if item["type"] == "message":
        allowed = CONTENT.get(item["role"], set())
        for number, part in enumerate(item["content"]):
            if part["type"] not in allowed:
                message = f"Invalid value: {part['type']!r}. Supported are {sorted(allowed)}."
                param = f"item.content[{number}].type"
                raise Refusal(400, message, code="invalid_value", param=param)


def _message(role: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "message", "object": "realtime.item", "role": role, "content": content}


def _new(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:20]}"
