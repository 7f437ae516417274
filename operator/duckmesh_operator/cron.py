"""Times of a schedule in cron form and in its time zone; on days that clocks change as Debian's cron does. Pure.

A time in the hour that clocks skip comes right after it; one in the hour that they repeat comes once. Lines with a `*`
for minute or hour follow the time that passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_NAMED: Final = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
}


@dataclass(frozen=True, slots=True)
class Schedule:
    """When something is to be done; made by `parse`.

    Attributes:
        line: Five fields in cron form.
        zone: IANA name of the time zone.
    """

    line: str
    zone: str

    def following(self, moment: datetime) -> datetime:
        """The first time after a moment, in UTC."""
        return _following(self.line, self.zone, moment.replace(microsecond=0))


def parse(text: str, zone: str) -> Schedule:
    """Read a schedule.

    Raises:
        ValueError: It is no cron line, it never comes, or the time zone is not known; the text says which.
    """
    try:
        ZoneInfo(zone)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{zone} is not a time zone; want an IANA name such as Europe/Berlin"
        ) from error
    line = _NAMED.get(text, text)
    try:
        _following(line, zone, datetime(2026, 1, 1, tzinfo=UTC))
    except RuntimeError as error:
        raise ValueError(f"{text!r} never comes") from error
    except CronSimError as error:
        raise ValueError(f"{text!r} is not a schedule in cron form ({error})") from error
    return Schedule(line, zone)


@lru_cache(maxsize=4096)
def _following(line: str, zone: str, moment: datetime) -> datetime:
    """See `Schedule.following`.

    Raises:
        RuntimeError: There is none within 50 years.
        CronSimError: It is no cron line.
    """
    for found in CronSim(line, moment.astimezone(ZoneInfo(zone))):
        # In the hour that clocks repeat it counts by the clock on the wall, and finds what was there before.
        if found > moment:
            return found.astimezone(UTC)
    raise RuntimeError(f"{line} never comes")
