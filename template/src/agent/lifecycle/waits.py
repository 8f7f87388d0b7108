"""What a caller waits for: who worked when, cut to the time from their last word to the answer."""

from __future__ import annotations

# of one call; what was before the words that are answered now is dropped
MOST = 500


class Waits:
    """The intervals in which a part of a call made its caller wait, by stage; of time.time().

    The stages are those of `agent.reports.STAGES`.
    """

    def __init__(self) -> None:
        self._intervals: list[tuple[float, float, str]] = []

    def add(self, stage: str, began: float, ended: float) -> None:
        """A part has worked, or waited, from `began` until `ended`."""
        self._intervals.append((began, ended, stage))
        del self._intervals[:-MOST]

    def extend(self, stage: str, seconds: float) -> None:
        """The last interval of this stage was so much longer."""
        for number, (began, ended, known) in reversed([*enumerate(self._intervals)]):
            if known == stage:
                self._intervals[number] = began, ended + seconds, stage
                return

    def split(self, began: float, ended: float, *, rest: str) -> dict[str, int]:
        """What the time from `began` until `ended` was spent on, in milliseconds that add up to it.

        Of what runs side by side, the one that ends first counts, and then only the rest of the
        next. A model that has its answer before the turn is over has made nobody wait. What no part
        worked in belongs to `rest`.
        """
        over = max((end for _, end, stage in self._intervals if stage == "turn"), default=began)
        moment, spent = began, dict[str, float]()
        for begin, end, stage in sorted(self._intervals, key=lambda interval: interval[1]):
            if stage not in ("transcript", "turn"):
                begin = max(begin, over)
            begin, end = max(begin, moment), min(end, ended)
            if end <= begin:
                continue
            spent[rest] = spent.get(rest, 0.0) + begin - moment
            spent[stage] = spent.get(stage, 0.0) + end - begin
            moment = end
        spent[rest] = spent.get(rest, 0.0) + max(0.0, ended - moment)
        self._intervals = [one for one in self._intervals if one[1] > ended]
        return _whole(spent, round((ended - began) * 1000))


def _whole(spent: dict[str, float], total: int) -> dict[str, int]:
    """In milliseconds, without what takes none; what rounding loses is the longest one's."""
    rounded = {stage: round(seconds * 1000) for stage, seconds in spent.items()}
    longest = max(rounded, key=lambda stage: rounded[stage])
    rounded[longest] += total - sum(rounded.values())
    return {stage: ms for stage, ms in rounded.items() if ms > 0}
