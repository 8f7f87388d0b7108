"""YOURS: how your agent behaves. Each test is a call without a server; `talk` is the caller."""

from __future__ import annotations

from tests.talk import talk


async def test_it_greets_a_stranger() -> None:
    async with talk() as call:
        assert "Hello" in call.said[0]


async def test_it_can_tell_the_time() -> None:
    async with talk() as call:
        await call.say("/tool current_time {}")
        assert ":" in call.tool_output("current_time")


async def test_it_hangs_up_when_the_caller_says_goodbye() -> None:
    async with talk() as call:
        await call.say("goodbye")
        await call.ended()
        assert call.reason == "agent hung up"
        assert "Goodbye" in call.said[-1]
