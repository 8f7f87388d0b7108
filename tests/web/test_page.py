"""The page in a real Chromium, with an agent who does what the test tells it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.support.browser import Browser, Looks, Page, chromium
from tests.support.npm import require_packages
from tests.support.server import LiveKit, livekit_server
from tests.web.served import Served, served
from tests.web.states import FAKE_MICROPHONE, click, connected, every_state, says, stand_in, state

pytestmark = pytest.mark.asyncio(loop_scope="session")

NARROWEST = 320


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with chromium(FAKE_MICROPHONE) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def bare() -> AsyncIterator[Browser]:
    """A browser without a microphone, which this machine has not, and without a flag for sound."""
    async with chromium("--autoplay-policy=user-gesture-required") as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def page_server(livekit: LiveKit) -> AsyncIterator[Served]:
    async with served(livekit) as page:
        yield page


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser, page_server: Served) -> AsyncIterator[Page]:
    async with browser.page(page_server.url) as page:
        yield page
        assert page.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_state_has_a_barrier_or_scrolls_sideways(browser: Browser, scheme: str) -> None:
    axe = (require_packages() / "axe-core" / "axe.min.js").read_text(encoding="utf-8")
    seen = []
    async with livekit_server() as livekit, served(livekit) as page_server:
        async for name, page in every_state(browser, page_server, Looks(scheme, NARROWEST)):
            await page.run(axe)
            # colours fade in and out: looked at when they are done
            await page.run("document.getAnimations().forEach((one) => one.pause())")
            found = await page.run("axe.run().then((found) => found.violations)")
            assert found == [], name
            wide = await page.run("document.documentElement.scrollWidth")
            assert wide == NARROWEST, name
            assert page.errors == [], name
            seen.append(name)
    assert len(seen) > 10


async def test_a_line_of_the_transcript_is_corrected_and_not_repeated(
    page: Page, page_server: Served
) -> None:
    room = await connected(page, page_server)
    async with stand_in(page_server.livekit, room) as agent:
        me = f"visitor of {room}"
        await agent.transcribe("1", "are you", of=me, final=False)
        await agent.transcribe("1", "Are you open?", of=me)
        await agent.transcribe("2", "We are ", "closed.")
        await agent.transcribe("3", " ")

        await page.until(says("We are closed."))

    lines = await page.run("[...transcript.children].map((line) => line.innerText)")
    assert lines == ["You\nAre you open?", "Agent\nWe are closed."]


async def test_what_is_typed_before_the_agent_comes_is_sent_when_it_is_here(
    page: Page, page_server: Served
) -> None:
    room = await connected(page, page_server)
    await page.run("text.focus()")
    await page.press(*"First", "Enter", *"Second", "Enter")
    async with stand_in(page_server.livekit, room) as agent:
        assert [await agent.text(), await agent.text()] == ["First", "Second"]

    assert await page.run("text.value") == ""


async def test_a_microphone_that_is_denied_can_be_allowed_later(
    browser: Browser, page_server: Served
) -> None:
    async with browser.page(page_server.url, microphone="denied") as page:
        await connected(page, page_server, "Unmute")
        assert await page.run(says("may not use the microphone"))

        await page.allow("granted")
        await page.run(click("mute"))

        await page.until("mute.textContent === 'Mute' && !troubles.textContent")


async def test_a_missing_microphone_is_a_sentence_and_one_can_write(
    bare: Browser, page_server: Served
) -> None:
    async with bare.page(page_server.url) as page:
        room = await connected(page, page_server, "Unmute")
        assert await page.run(says("There is no microphone"))

        async with stand_in(page_server.livekit, room) as agent:
            await page.run("text.focus()")
            await page.press(*"Hello", "Enter")

            assert await agent.text() == "Hello"


async def test_a_browser_that_plays_no_sound_unasked_is_asked_by_a_button(
    bare: Browser, page_server: Served
) -> None:
    page_server.rooms.append("left")
    async with (
        bare.page(page_server.url, before=left_from("left")) as page,
        stand_in(page_server.livekit, "left") as agent,
    ):
        await agent.play()
        await page.until("!sound.hidden")
        # what is not heard is read aloud
        assert await page.run("transcript.getAttribute('aria-live')") == "polite"

        await page.run("sound.focus()")
        await page.press("Enter")

        await page.until("sound.hidden && transcript.getAttribute('aria-live') === 'off'")


async def test_a_microphone_that_is_taken_away_can_be_given_again(
    page: Page, page_server: Served
) -> None:
    await connected(page, page_server)

    await page.allow("denied")

    await page.until(says("The microphone is gone"))
    assert await page.run("mute.textContent") == "Unmute"
    await page.allow("granted")
    await page.run(click("mute"))
    await page.until("mute.textContent === 'Mute' && !troubles.textContent")


async def test_a_microphone_that_is_given_after_the_end_is_switched_off(
    browser: Browser, page_server: Served
) -> None:
    late = """
      const give = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
      navigator.mediaDevices.getUserMedia = async (asked) => {
        await new Promise((allowed) => (window.allow = allowed));
        return (window.given = await give(asked));
      };
    """
    async with browser.page(page_server.url, before=late) as page:
        await page.run(click("talk"))
        await page.until(f"{state('joining')} && !!window.allow")
        await page.run(click("hang-up"))

        await page.run("allow()")

        await page.until("window.given?.getTracks().every((track) => track.readyState === 'ended')")
        await page.until("mute.ariaDisabled === 'false'")
        assert await page.run("troubles.textContent") == ""
        assert await page.run(says("Ended. You hung up."))


async def test_it_is_used_by_keyboard_alone(page: Page, page_server: Served) -> None:
    await page.press("Tab", "Enter")
    await page.until(f"{state('joining')} && mute.ariaDisabled === 'false'")
    # what was pressed is hidden; the focus is not lost, nor on a button that the same key presses
    assert await page.run("document.activeElement.id") == "state"

    await page.press("Tab", "Enter")
    await page.until("mute.textContent === 'Unmute'")
    assert await page.run("document.activeElement.id") == "mute"
    await page.press("Tab", "Enter")

    await page.until(state("ended"))
    assert await page.run("document.activeElement.id") == "state"
    await page.press("Tab", "Enter")
    await page.until(state("joining"))


async def test_a_screen_reader_is_not_talked_into_every_turn(
    page: Page, page_server: Served
) -> None:
    await page.run(
        "window.heard = []; new MutationObserver(() => heard.push(announcement.textContent))"
        ".observe(announcement, {childList: true})"
    )
    room = await connected(page, page_server)
    async with stand_in(page_server.livekit, room) as agent:
        for doing in ["listening", "thinking", "speaking", "listening", "thinking"]:
            await agent.does(doing)
            await page.until(state(doing))
        await agent.transcribe("1", "Hello!")
        await page.until(says("Hello!"))
    await page.until(state("left"))
    await page.run(click("hang-up"))

    heard = await page.run("heard")
    assert heard[0].startswith("Connecting")
    assert [said for said in heard if "agent" in said.lower()] == [
        "The agent is joining …",
        "The agent is here.",
        "Waiting for the agent …",
    ]
    assert heard[-1] == "Ended. You hung up."
    # it is heard, so it is not read aloud as well
    assert await page.run("transcript.getAttribute('aria-live')") == "off"


async def test_a_reloaded_page_goes_on_in_its_room(page: Page, page_server: Served) -> None:
    room = await connected(page, page_server)
    async with stand_in(page_server.livekit, room) as agent:
        await agent.does("listening")
        await agent.transcribe("1", "Hello!")
        await page.until(f"{state('listening')} && {says('Hello!')}")

        await page.reload()

        await page.until(
            f"{state('listening')} && mute.ariaDisabled === 'false' && {says('Hello!')}"
        )
        assert page_server.rooms == [room, room]
        assert len(agent.room.remote_participants) == 1


async def test_a_line_that_a_reload_breaks_off_says_so(page: Page, page_server: Served) -> None:
    room = await connected(page, page_server)
    async with stand_in(page_server.livekit, room) as agent:
        await agent.transcribe("1", "Hello!")
        await agent.transcribe("2", "It costs 14", ends=False)
        await page.until(f"{says('Hello!')} && {says('It costs 14')}")

        await page.reload()

        await page.until(says("It costs 14 …"))
        assert await page.run(says("Hello!"))


def left_from(room: str, seconds: float = 0, said: str = "") -> str:
    """A script: this tab's page has left the room so long ago."""
    lines = [["1", {"who": "agent", "text": said}]] if said else []
    kept = f"JSON.stringify([Date.now() - {1000 * seconds}, '{room}', {json.dumps(lines)}])"
    return f"location.href === 'about:blank' || sessionStorage.setItem('conversation', {kept})"


async def test_after_the_end_a_reloaded_page_waits_for_a_click(
    page: Page, page_server: Served
) -> None:
    await connected(page, page_server)
    await page.run(click("hang-up"))
    await page.until(state("ended"))

    await page.reload()

    assert await page.run("document.body.dataset.state") == "idle"


async def test_a_page_that_was_left_long_ago_waits_for_a_click(
    browser: Browser, page_server: Served
) -> None:
    page_server.rooms.append("left")
    async with browser.page(page_server.url, before=left_from("left", seconds=61)) as page:
        assert await page.run(state("idle"))

        assert await connected(page, page_server) != "left"


async def test_a_conversation_that_is_over_meanwhile_is_begun_anew(
    browser: Browser, page_server: Served
) -> None:
    before = left_from("over", said="Hello!")
    async with browser.page(page_server.url, before=before) as page:
        await page.until(state("joining"))

        assert page_server.rooms != ["over"]
        await page.until("!transcript.textContent")


async def test_two_tabs_are_two_conversations(page: Page, page_server: Served) -> None:
    first = await connected(page, page_server)

    second = await connected(await page.tab(), page_server)

    assert first != second
    assert await page.run(state("joining"))


async def test_somebody_who_joins_as_the_same_caller_takes_the_conversation_over(
    browser: Browser, page: Page, page_server: Served
) -> None:
    room = await connected(page, page_server)
    async with browser.page(page_server.url, before=left_from(room)) as other:
        await other.until(state("joining"))

        await page.until(says("The conversation goes on in another tab or window."))
        assert await other.run(state("joining"))


async def test_the_agents_hanging_up_is_told_from_the_callers(
    page: Page, page_server: Served
) -> None:
    room = await connected(page, page_server)

    await page_server.delete(room)

    await page.until(says("Ended. The agent has ended the conversation."))


async def test_an_agent_that_is_gone_and_comes_back(page: Page, page_server: Served) -> None:
    room = await connected(page, page_server)
    async with stand_in(page_server.livekit, room) as agent:
        await agent.does("listening")
        await page.until(state("listening"))
    await page.until(says("The agent is gone."))

    async with stand_in(page_server.livekit, room) as agent:
        await agent.does("listening")

        await page.until(f"{state('listening')} && !troubles.textContent")


async def test_an_agent_that_does_not_come_is_a_sentence(page: Page, page_server: Served) -> None:
    await connected(page, page_server)

    await page.until(says("No agent has come yet."))

    assert await page.run(state("joining"))


async def test_a_token_that_has_run_out_is_replaced_by_talking_again(
    page: Page, page_server: Served
) -> None:
    page_server.seconds = -60
    await page.run(click("talk"))
    await page.until(says("The permission for this conversation has run out"))

    page_server.seconds = 600

    await connected(page, page_server)


async def test_what_the_server_of_tokens_says_is_what_the_page_says(
    page: Page, page_server: Served
) -> None:
    page_server.refusal = 403, "This page is not allowed to call. Ask Front Desk."

    await page.run(click("talk"))

    await page.until(says("Ended. This page is not allowed to call. Ask Front Desk."))


async def test_a_server_of_the_page_that_is_gone_is_a_sentence(
    browser: Browser, livekit: LiveKit
) -> None:
    async with served(livekit) as page_server:
        page = Page(browser, "", page_server.url)
        context = await browser.ask("Target.createBrowserContext")
        page.context = context["browserContextId"]
        await page.open()

    await page.run(click("talk"))

    await page.until(says("The server of this page does not answer."))


async def test_a_voice_server_that_is_gone_is_a_sentence(browser: Browser) -> None:
    async with (
        livekit_server() as livekit,
        served(livekit) as page_server,
        browser.page(page_server.url) as page,
    ):
        await connected(page, page_server)
        await livekit.kill()
        await page.until(says("The connection is broken. Trying again"))

        # livekit-client gives up after about 45 s
        await page.until(says("Ended. The connection to the voice server is lost."))
        await page.run(click("talk"))
        await page.until(says("Ended. The voice server does not answer."))

        await livekit.start()
        await connected(page, page_server)
