"""`/v1/audio/transcriptions` and `/v1/audio/speech`: 16 bit mono samples, in WAV or plain."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Callable

from tests.support.openai_server.faults import Refusal
from tests.support.openai_server.requests import Answer, Asked, as_json, required

SAMPLE_RATE = 24_000
SHORTEST_SECONDS = 0.1  # OpenAI refuses less
PART = 9_600  # bytes of sound in one part: 0.2 s

# of a WAV file: what was said in it
Ears = Callable[[bytes], str]
# of a text: its samples at 24 kHz
Voice = Callable[[str], bytes]


def transcription(asked: Asked, ears: Ears) -> Answer:
    """What the ears hear in the file of a request; raises Refusal."""
    required(asked, "model", "file")
    seconds = seconds_of(asked.file)
    form = asked.body.get("response_format", "json")
    text = ears(asked.file)
    if form == "text":
        return Answer([text.encode()], "text/plain")
    if form == "verbose_json":
        segment = {"id": 0, "start": 0.0, "end": seconds, "text": text, "seek": 0, "tokens": []}
        segment |= dict.fromkeys(("avg_logprob", "no_speech_prob", "temperature"), 0.0)
        return as_json(
            {
                "task": "transcribe",
                "language": "english",
                "duration": seconds,
                "text": text,
                "segments": [{**segment, "compression_ratio": 1.0}],
            }
        )
    if form != "json":
        raise Refusal(400, f"response_format {form!r} is not known here", param="response_format")
    return as_json({"text": text, "usage": {"type": "duration", "seconds": round(seconds)}})


def speech(asked: Asked, voice: Voice, *, events: bool) -> Answer:
    """What the voice makes of the input of a request; raises Refusal.

    With `events`, `stream_format` "sse" is answered with server-sent events, as OpenAI does; other
    servers ignore it.
    """
    required(asked, "model", "input", "voice")
    form = asked.body.get("response_format", "mp3")
    samples = voice(asked.body["input"])
    if form == "wav":
        sound, content_type = wav_of(samples), "audio/wav"
    elif form == "pcm":
        sound, content_type = samples, "audio/pcm"
    else:
        message = f"response_format {form!r} is not known here: ask for wav or pcm"
        raise Refusal(400, message, param="response_format")
    parts = [sound[at : at + PART] for at in range(0, len(sound), PART)]
    if not (events and asked.body.get("stream_format") == "sse"):
        return Answer(parts, content_type)
    said = [
        {"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()} for part in parts
    ]
    usage = {"input_tokens": 5, "output_tokens": 50, "total_tokens": 55}
    done = {"type": "speech.audio.done", "usage": usage}
    return Answer(
        [f"data: {json.dumps(event)}\n\n".encode() for event in [*said, done]], "text/event-stream"
    )


def wav_of(samples: bytes, rate: int = SAMPLE_RATE) -> bytes:
    """A WAV file of 16 bit mono samples."""
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(rate)
        sound.writeframes(samples)
    return file.getvalue()


def seconds_of(file: bytes) -> float:
    """How long a WAV file is; raises Refusal if it is none, or shorter than OpenAI takes."""
    try:
        with wave.open(io.BytesIO(file)) as sound:
            seconds = float(sound.getnframes() / sound.getframerate())
    except (wave.Error, EOFError) as error:
        message = "Audio file might be corrupted or unsupported"
        raise Refusal(400, message, code="invalid_value", param="file") from error
    if seconds < SHORTEST_SECONDS:
        message = "Audio file is too short. Minimum audio length is 0.1 seconds."
        raise Refusal(400, message, code="audio_too_short", param="file")
    return seconds
