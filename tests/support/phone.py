"""A telephone: SIP over UDP on loopback, PCMU, keys by RFC 4733, and what it hears is measured."""

from __future__ import annotations

import asyncio
import random
import re
import struct
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from agent.models.scripted import SAMPLE_RATE, hum
from tests.support.sip import Network

Samples = npt.NDArray[np.int16]

PATIENCE = 60.0
RATE = 8000
# samples of 20 ms
FRAME = 160
LOUD = 500.0
# packets of silence, after which somebody has stopped speaking and does not only take a breath
QUIET_PACKETS = 40
KEYS = "0123456789*#ABCD"
PCMU, KEY = 0, 101
PHRASES = {
    100: "Trying",
    180: "Ringing",
    200: "OK",
    202: "Accepted",
    403: "Forbidden",
    404: "Not Found",
    480: "Temporarily Unavailable",
    486: "Busy Here",
    487: "Request Terminated",
    500: "Server Internal Error",
    503: "Service Unavailable",
    603: "Decline",
}


def _decode(codes: npt.NDArray[np.int32]) -> Samples:
    """G.711's μ-law; Python has lost its own."""
    sizes = (((codes & 15) << 3) + 132 << ((codes >> 4) & 7)) - 132
    return np.where(codes & 128, -sizes, sizes).astype(np.int16)


_DECODED = _decode(~np.arange(256, dtype=np.int32) & 255)


def _encoded(samples: Samples) -> bytes:
    sizes = np.minimum(np.abs(samples.astype(np.int32)), 32_635) + 132
    exponents = np.log2(sizes).astype(np.int32) - 7
    codes = np.where(samples < 0, 128, 0) | exponents << 4 | (sizes >> exponents + 3) & 15
    return bytes((~codes & 255).astype(np.uint8))


def _resampled(samples: Samples, rate: int, wanted: int) -> Samples:
    if wanted < rate:
        # without what the slower rate cannot have
        taps = np.sinc(np.arange(-32, 33) * wanted / rate) * np.hamming(65)
        samples = np.convolve(samples, taps / taps.sum(), "same").clip(-32768, 32767)
    at = np.arange(len(samples) * wanted // rate) * rate / wanted
    return np.interp(at, np.arange(len(samples)), samples).astype(np.int16)


def _loudness(samples: Samples) -> float:
    return float(np.sqrt((samples.astype(float) ** 2).mean())) if len(samples) else 0.0


def loudness(text: str) -> list[float]:
    """How loud each packet of a phone is, of what the scripted voice hums."""
    samples = np.frombuffer(hum(text), np.int16)
    size = SAMPLE_RATE // 50
    packets = samples[: len(samples) // size * size].reshape(-1, size)
    return [_loudness(packet) for packet in packets]


def loud_seconds(text: str) -> float:
    """How much of what the scripted voice hums is not silence, in packets of a phone."""
    return 0.02 * sum(loud > LOUD for loud in loudness(text))


class Message:
    """A SIP message."""

    def __init__(self, data: bytes) -> None:
        head, _, self.body = data.decode("utf-8", "replace").partition("\r\n\r\n")
        self.first, *lines = head.split("\r\n")
        pairs = (line.partition(":") for line in lines)
        self.headers = [(name.strip().lower(), value.strip()) for name, _, value in pairs]
        self.status = int(self.first.split()[1]) if self.first.startswith("SIP/2.0") else 0
        self.method = "" if self.status else self.first.split()[0]

    def __getitem__(self, name: str) -> str:
        return next((value for known, value in self.headers if known == name), "")

    def all(self, name: str) -> list[str]:
        """Every value of a header."""
        return [value for known, value in self.headers if known == name]


class Sound(asyncio.DatagramProtocol):
    """The sound of one phone, both ways: RTP of 20 ms a packet."""

    def __init__(self) -> None:
        # the loudness (rms) of each packet that was heard
        self.heard: list[float] = []
        # something that is not silence was heard
        self.sound = asyncio.Event()
        self.first_sound_at: float | None = None
        self.keys: list[str] = []
        self.remote: tuple[str, int] | None = None
        self.pumping: asyncio.Task[None] | None = None
        self.transport: asyncio.DatagramTransport
        self._packets: list[Samples] = []
        self._packet = asyncio.Event()
        # still to be said; silence when there is nothing
        self._says: Samples = np.zeros(0, np.int16)
        self._keys_seen: set[int] = set()
        self._keys_to_send: list[tuple[int, bytes, bool]] = []
        self._sequence, self._timestamp = random.randrange(30_000), random.randrange(1 << 30)
        self._source = random.randrange(1 << 31)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if len(data) < 12:
            return
        kind, timestamp = data[1] & 0x7F, struct.unpack("!I", data[4:8])[0]
        if kind == KEY and timestamp not in self._keys_seen:
            self._keys_seen.add(timestamp)
            self.keys.append(KEYS[data[12] & 15])
        if kind == PCMU:
            samples = _DECODED[np.frombuffer(data[12:], np.uint8)]
            self._packets.append(samples)
            self.heard.append(_loudness(samples))
            if self.heard[-1] > LOUD:
                self.first_sound_at = self.first_sound_at or time.monotonic()
                self.sound.set()
        self._packet.set()

    @property
    def loud_seconds(self) -> float:
        """How much of what was heard was not silence."""
        return 0.02 * sum(loudness > LOUD for loudness in self.heard)

    def words_heard(self, rate: int, start: int = 0) -> Samples:
        """What was heard since packet number `start`, at this rate."""
        return _resampled(np.concatenate(self._packets[start:]), RATE, rate)

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait until it has happened; looks at every packet."""
        async with asyncio.timeout(PATIENCE):
            while not happened():
                self._packet.clear()
                await self._packet.wait()

    @property
    def is_quiet(self) -> bool:
        """Whether nobody has spoken for a while."""
        return not any(loudness > LOUD for loudness in self.heard[-QUIET_PACKETS:])

    async def hear_out(self) -> int:
        """Wait until somebody speaks, and then is quiet; the number of the first packet."""
        start = len(self.heard)
        await self.until(lambda: any(loudness > LOUD for loudness in self.heard[start:]))
        await self.until(lambda: self.is_quiet)
        return start

    def say(self, samples: Samples, rate: int) -> None:
        """Say this, after what is said already."""
        self._says = np.concatenate([self._says, _resampled(samples, rate, RATE)])

    def press(self, keys: str) -> None:
        """Press keys, one after another."""
        for key in keys:
            began = self._timestamp + len(self._keys_to_send) * FRAME
            for part in range(8):
                end = 0x80 if part >= 5 else 0
                payload = struct.pack("!BBH", KEYS.index(key), end | 10, min(part + 1, 6) * FRAME)
                self._keys_to_send.append((began, payload, part == 0))

    async def pump(self) -> None:
        """Send a packet every 20 ms: a key, what is to be said, or silence."""
        following = time.monotonic()
        while True:
            if self._keys_to_send:
                began, payload, mark = self._keys_to_send.pop(0)
                self._send(KEY, payload, began, mark=mark)
            else:
                said, self._says = self._says[:FRAME], self._says[FRAME:]
                said = np.pad(said, (0, FRAME - len(said)))
                self._send(PCMU, _encoded(said), self._timestamp)
            self._timestamp += FRAME
            following += 0.02
            await asyncio.sleep(max(0, following - time.monotonic()))

    def stop(self) -> None:
        """Send nothing more, as a phone whose network is gone."""
        if self.pumping is not None:
            self.pumping.cancel()

    def _send(self, kind: int, payload: bytes, timestamp: int, *, mark: bool = False) -> None:
        assert self.remote is not None
        head = struct.pack(
            "!BBHII",
            0x80,
            (0x80 if mark else 0) | kind,
            self._sequence & 0xFFFF,
            timestamp & 0xFFFFFFFF,
            self._source,
        )
        self._sequence += 1
        self.transport.sendto(head + payload, self.remote)


@dataclass
class Phone(asyncio.DatagramProtocol):
    """One phone with one number; `async with` plugs it in, and hangs up.

    `answer` is what it does when it is called: a status of SIP, or None to ring for ever.
    """

    network: Network
    number: str = "+4930555001"
    answer: int | None = 200
    # seconds from the first ring until it answers
    rings: float = 0.1
    # where it listens for calls: outbound trunks lead there
    port: int = 0
    # what becomes of a transfer; None to say nothing of it
    refer: str | None = "200 OK"
    refer_to: str = ""
    ringing: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    # refused, cancelled, or hung up by either side
    over: asyncio.Event = field(default_factory=asyncio.Event)
    referred: asyncio.Event = field(default_factory=asyncio.Event)
    # what ended it: "BYE" or "CANCEL" of the other side, a status, or "hung up" by itself
    how: str = ""
    # times of time.monotonic()
    called_at: float = 0.0
    answered_at: float = 0.0
    over_at: float = 0.0
    invited: int = 0

    def __post_init__(self) -> None:
        self._tag, self._sequence = f"{random.randrange(1 << 32):08x}", 1
        self._invite: Message | None = None
        self._peer = ("127.0.0.1", self.network.port)
        self._tasks: set[asyncio.Task[None]] = set()
        self._unplugged = asyncio.Event()
        self._dialog: tuple[str, str, str, str] | None = None
        self.sound: Sound

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        here = ("127.0.0.1", self.port)
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=here)
        self.port = self._transport.get_extra_info("sockname")[1]
        _, self.sound = await loop.create_datagram_endpoint(Sound, local_addr=("127.0.0.1", 0))
        self._sound_port = self.sound.transport.get_extra_info("sockname")[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.answered.is_set() and not self.over.is_set():
            self.hang_up()
        elif self.called_at and not self.over.is_set():
            # or it would ring for minutes
            self.cancel()
        self.sound.stop()
        for task in self._tasks:
            task.cancel()
        self._transport.close()
        self.sound.transport.close()
        # the next phone may want the port
        await self._unplugged.wait()

    async def wait(self, event: asyncio.Event) -> None:
        """Wait for one of its events."""
        async with asyncio.timeout(PATIENCE):
            await event.wait()

    # what it does

    def call(self, number: str) -> None:
        """Call a number of the agent's."""
        self._target = f"sip:{number}@127.0.0.1:{self.network.port}"
        self._call_id, self._branch = f"{random.randrange(1 << 48):x}", _branch()
        self._from = f"<sip:{self.number}@127.0.0.1:{self.port}>;tag={self._tag}"
        self.called_at = time.monotonic()
        self._request("INVITE", self._target, f"<{self._target}>", self._branch, self._sdp())

    def cancel(self) -> None:
        """Give up a call of its own that nobody answers."""
        self._request("CANCEL", self._target, f"<{self._target}>", self._branch)

    def hang_up(self) -> None:
        """Hang up."""
        self._in_dialog("BYE")
        self._end("hung up")

    def notify(self, result: str) -> None:
        """Tell what came of a transfer."""
        extra = (
            "Event: refer\r\nSubscription-State: terminated;reason=noresource\r\n"
            "Content-Type: message/sipfrag\r\n"
        )
        self._in_dialog("NOTIFY", f"SIP/2.0 {result}\r\n", extra)

    # SIP

    def connection_lost(self, error: Exception | None) -> None:
        # called when the socket is about to be closed, in the same turn of the loop
        self._unplugged.set()

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        # shorter ones keep a connection alive
        if len(data) < 20:
            return
        message = Message(data)
        if message.status:
            self._response(message)
            return
        match message.method:
            case "INVITE":
                # or one that is sent again
                if self._invite is None:
                    self._invite, self.invited = message, self.invited + 1
                    self._run(self._called(message))
            case "BYE":
                self._reply(message, 200)
                self._end("BYE")
            case "CANCEL":
                self._reply(message, 200)
                if self._invite is not None and not self.answered.is_set():
                    self._reply(self._invite, 487)
                    self._end("CANCEL")
            case "REFER":
                self.refer_to = message["refer-to"]
                self._reply(message, 202)
                self.referred.set()
                if self.refer is not None:
                    self._run(self._refer(self.refer))
            case "ACK":
                pass
            case _:
                self._reply(message, 200)

    async def _called(self, invite: Message) -> None:
        self._reply(invite, 100)
        self._reply(invite, 180)
        self.ringing.set()
        if self.answer is None:
            return
        await asyncio.sleep(self.rings)
        if self.over.is_set():
            return
        if self.answer != 200:
            self._reply(invite, self.answer)
            self._end(str(self.answer))
            return
        contact = re.search(r"<([^>]+)>", invite["contact"])
        assert contact is not None
        theirs, mine = invite["from"], f"{invite['to']};tag={self._tag}"
        self._dialog = contact[1], mine, theirs, invite["call-id"]
        self._reply(invite, 200, body=self._sdp())
        self._up(invite)

    async def _refer(self, result: str) -> None:
        # whoever is called elsewhere takes a moment to answer, too
        await asyncio.sleep(self.rings)
        if not self.over.is_set():
            self.notify(result)

    def _response(self, answer: Message) -> None:
        if answer["cseq"].split()[-1] != "INVITE":
            return
        if answer.status < 200:
            if answer.status == 180:
                self.ringing.set()
            return
        contact = re.search(r"<([^>]+)>", answer["contact"])
        good = answer.status == 200 and contact is not None
        uri = contact[1] if good and contact else self._target
        self._request("ACK", uri, answer["to"], _branch() if good else self._branch)
        # or one that is sent again
        if self.answered.is_set() or self.over.is_set():
            return
        if good:
            self._dialog = uri, self._from, answer["to"], self._call_id
            self._up(answer)
        else:
            self._end(str(answer.status))

    def _up(self, message: Message) -> None:
        host = re.search(r"^c=IN IP4 (\S+)", message.body, re.M)
        port = re.search(r"^m=audio (\d+)", message.body, re.M)
        assert host is not None
        assert port is not None
        self.sound.remote = host[1], int(port[1])
        self.sound.pumping = asyncio.create_task(self.sound.pump())
        self.answered_at = time.monotonic()
        self.answered.set()

    def _end(self, how: str) -> None:
        if not self.over.is_set():
            self.how, self.over_at = how, time.monotonic()
            self.over.set()
            self.sound.stop()

    def _in_dialog(self, method: str, body: str = "", extra: str = "") -> None:
        assert self._dialog is not None
        uri, self._from, to, self._call_id = self._dialog
        self._sequence += 1
        self._request(method, uri, to, _branch(), body, extra)

    def _request(
        self, method: str, uri: str, to: str, branch: str, body: str = "", extra: str = ""
    ) -> None:
        kind = "Content-Type: application/sdp\r\n" if method == "INVITE" else extra
        self._transport.sendto(
            (
                f"{method} {uri} SIP/2.0\r\n"
                f"Via: SIP/2.0/UDP 127.0.0.1:{self.port};branch={branch};rport\r\n"
                f"Max-Forwards: 70\r\nFrom: {self._from}\r\nTo: {to}\r\n"
                f"Call-ID: {self._call_id}\r\nCSeq: {self._sequence} {method}\r\n"
                f"Contact: <sip:{self.number}@127.0.0.1:{self.port}>\r\n{kind}"
                f"Content-Length: {len(body)}\r\n\r\n{body}"
            ).encode(),
            self._peer,
        )

    def _reply(self, message: Message, status: int, body: str = "") -> None:
        to = message["to"]
        if "tag=" not in to and status > 100:
            to += f";tag={self._tag}"
        routes = "".join(f"Record-Route: {one}\r\n" for one in message.all("record-route"))
        via = "".join(f"Via: {one}\r\n" for one in message.all("via"))
        contact = f"Contact: <sip:{self.number}@127.0.0.1:{self.port}>\r\n"
        kind = "Content-Type: application/sdp\r\n" if body else ""
        self._transport.sendto(
            (
                f"SIP/2.0 {status} {PHRASES.get(status, 'No')}\r\n{via}{routes}"
                f"From: {message['from']}\r\nTo: {to}\r\nCall-ID: {message['call-id']}\r\n"
                f"CSeq: {message['cseq']}\r\n{contact}{kind}"
                f"Content-Length: {len(body)}\r\n\r\n{body}"
            ).encode(),
            self._peer,
        )

    def _sdp(self) -> str:
        return (
            "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
            f"m=audio {self._sound_port} RTP/AVP {PCMU} {KEY}\r\na=rtpmap:{PCMU} PCMU/8000\r\n"
            f"a=rtpmap:{KEY} telephone-event/8000\r\na=fmtp:{KEY} 0-16\r\na=ptime:20\r\n"
            "a=sendrecv\r\n"
        )

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _branch() -> str:
    return f"z9hG4bK{random.randrange(1 << 48):x}"
