#!/usr/bin/env bash
# One expects: when a judge could not judge, because the judging model's server is down or refuses the key, JudgeGroup
#   raises, or the result says that it is not complete; `assert result.all_passed` then fails.
# What happens: the judge that raised is left out of the result, with one warning in the log. all_passed speaks for
#   the rest; where all of them raised it is True of nothing, and so are none_failed and majority_passed, while score is
#   0.0 and any_passed False. Two judges of one name are one: the later verdict replaces the earlier one, so a pass
#   hides a fail.
# Why it matters: a CI gate on the quality of conversations is green on the day that no conversation was judged, and in
#   a job the call is tagged without a word of the judge that is missing. Compare len(result.judgments) with the number
#   of judges.
# Versions: livekit-agents and livekit-plugins-openai 1.8.9.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if ! command -v uv >/dev/null; then
  python3 -m venv "$work/uv" && "$work/uv/bin/pip" install -q --disable-pip-version-check uv==0.13.9
  PATH="$work/uv/bin:$PATH"
fi
uv venv -q --python '>=3.11' "$work/venv"
uv pip install -q --python "$work/venv/bin/python" livekit-agents==1.8.9 livekit-plugins-openai==1.8.9

cat > "$work/finding.py" <<'PY'
import asyncio
import io
import logging
from importlib.metadata import version

from aiohttp import web
from livekit.agents import ChatContext
from livekit.agents.evals import Judge, JudgeGroup, JudgmentResult, task_completion_judge
from livekit.plugins import openai

said = io.StringIO()
logging.basicConfig(stream=said, level=logging.INFO, format="%(levelname)s %(message)s")


class Fixed(Judge):
    def __init__(self, name, verdict):
        super().__init__(name=name)
        self._verdict = verdict

    async def evaluate(self, *, chat_ctx, reference=None, llm=None):
        return JudgmentResult(verdict=self._verdict, reasoning="so it is")


async def refused(request):
    error = {"error": {"message": "Incorrect API key provided.", "type": "invalid_request_error", "code": "invalid_api_key"}}
    return web.json_response(error, status=401)


async def main():
    print("livekit-agents", version("livekit-agents"), "livekit-plugins-openai", version("livekit-plugins-openai"))
    app = web.Application()
    app.router.add_post("/v1/chat/completions", refused)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    model = openai.LLM(model="m", base_url=f"http://127.0.0.1:{runner.addresses[0][1]}/v1", api_key="an-old-key")

    talk = ChatContext.empty()
    talk.add_message(role="user", content="Book me a table for two.")
    talk.add_message(role="assistant", content="No.")
    talk.add_message(role="assistant", content="Goodbye.")
    groups = {
        "the only judge's model refuses the key": [task_completion_judge()],
        "one of two judges cannot ask": [Fixed("polite", "pass"), task_completion_judge()],
        "the same, and the other fails": [Fixed("polite", "fail"), task_completion_judge()],
        "two of one name": [Fixed("polite", "fail"), Fixed("polite", "pass")],
    }
    seen = {}
    for how, judges in groups.items():
        said.seek(0)
        said.truncate()
        result = await JudgeGroup(llm=model, judges=judges).evaluate(talk)
        verdicts = {name: one.verdict for name, one in result.judgments.items()}
        marks = (result.all_passed, result.none_failed, result.majority_passed, result.any_passed, result.score)
        print(f"{how}: {len(judges)} judges, verdicts {verdicts}; all_passed {marks[0]}, none_failed {marks[1]}, "
              f"majority_passed {marks[2]}, any_passed {marks[3]}, score {marks[4]}")
        errors = [line for line in said.getvalue().splitlines() if line.startswith(("ERROR", "CRITICAL"))]
        assert not errors, f"CHANGED: {errors} is logged"
        seen[how] = (verdicts, marks)
    await runner.cleanup()
    alone, beside, failing, twins = seen.values()
    assert failing == ({"polite": "fail"}, (False, False, False, False, 0.0)), "a fail is a fail"
    assert alone == ({}, (True, True, True, False, 0.0)), f"CHANGED: {alone} of no judgment"
    assert beside == ({"polite": "pass"}, (True, True, True, True, 1.0)), f"CHANGED: {beside} with a judge missing"
    assert twins == ({"polite": "pass"}, (True, True, True, True, 1.0)), f"CHANGED: {twins} of two with one name"
    print("as described: all_passed where nothing was judged")


asyncio.run(main())
PY
timeout 150 "$work/venv/bin/python" "$work/finding.py"
