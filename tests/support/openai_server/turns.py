"""When somebody speaks, by loudness: the server's own turn detection, on the clock of the sound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from tests.support.openai_server.audio import SAMPLE_RATE

FRAME_MS = 20
FRAME = 2 * SAMPLE_RATE * FRAME_MS // 1000
LOUD = 300  # root mean square of 16 bit samples
BEGINS_MS = 60  # a click is no word

Edge = Literal["started", "stopped"]


class Turns:
    """Cuts what is heard into turns, and keeps the sound of the one that is going on."""

    def __init__(self) -> None:
        self.sound = bytearray()
        self.heard_ms = 0
        self._rest = b""
        self._loud_ms = self._quiet_ms = 0
        self._speaking = False

    def push(self, samples: bytes, padding_ms: int, silence_ms: int) -> Iterator[tuple[Edge, int]]:
        """Hear more; each edge and its time in milliseconds since the first sample."""
        samples = self._rest + samples
        whole = len(samples) // FRAME * FRAME
        self._rest = samples[whole:]
        for at in range(0, whole, FRAME):
            frame = samples[at : at + FRAME]
            self.sound += frame
            self.heard_ms += FRAME_MS
            loud = float(np.sqrt(np.mean(np.frombuffer(frame, "<i2").astype(float) ** 2))) > LOUD
            self._loud_ms = self._loud_ms + FRAME_MS if loud else 0
            self._quiet_ms = 0 if loud else self._quiet_ms + FRAME_MS
            if not self._speaking:
                self._forget_all_but(padding_ms + BEGINS_MS)
                if self._loud_ms >= BEGINS_MS:
                    self._speaking = True
                    yield "started", max(0, self.heard_ms - BEGINS_MS - padding_ms)
            elif self._quiet_ms >= silence_ms:
                self._speaking = False
                yield "stopped", self.heard_ms

    def keep(self, samples: bytes) -> None:
        """Hear more, without looking for turns: the client commits them."""
        self.sound += samples

    def take(self) -> bytes:
        """The sound of the turn, which is over."""
        sound, self.sound = bytes(self.sound), bytearray()
        return sound

    def _forget_all_but(self, milliseconds: int) -> None:
        del self.sound[: -FRAME * (milliseconds // FRAME_MS)]
