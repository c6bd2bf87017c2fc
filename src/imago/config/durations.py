"""Durations as `trainer.max_time` takes them: DD:HH:MM:SS."""

import re

DURATION = re.compile(r"(\d+):(\d\d):(\d\d):(\d\d)")
CLOCK = re.compile(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)")
"""HH:MM:SS, and D-HH:MM:SS as in Slurm."""
AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*(d|h|m|s)(?:ays?|ours?|rs?|inutes?|ins?|econds?|ecs?)?\s*", re.IGNORECASE)
"""1.5h, 90 min, and others in a row, as in 1h30m."""
SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def is_duration(text: str) -> bool:
    """Whether `text` is DD:HH:MM:SS."""
    return DURATION.fullmatch(text) is not None


def as_max_time(seconds: float) -> str:
    """Format seconds as DD:HH:MM:SS; parts of a second are rounded up."""
    minutes, second = divmod(int(-(-seconds // 1)), 60)
    hours, minute = divmod(minutes, 60)
    return ":".join(f"{part:02d}" for part in (*divmod(hours, 24), minute, second))


def read_duration(text: str) -> str | None:
    """A time that people write in another way, as DD:HH:MM:SS; None where its unit is not known."""
    seconds = read_seconds(text)
    return as_max_time(seconds) if seconds is not None else None


def read_seconds(text: str) -> float | None:
    """Seconds of a time as people write it: 10m, 1h30m, 01:30:00, 00:01:30:00; None where its unit is not known."""
    if (match := DURATION.fullmatch(text) or CLOCK.fullmatch(text)) is not None:
        return _seconds(*(int(part or 0) for part in match.groups()))
    amounts = AMOUNT.findall(text)
    if not amounts or AMOUNT.sub("", text).strip():
        return None
    return sum(float(number) * SECONDS[unit.lower()] for number, unit in amounts)


def twice(text: str) -> str:
    """Twice a DD:HH:MM:SS."""
    return as_max_time(2 * _seconds(*map(int, text.split(":"))))


def _seconds(days: int, hours: int, minutes: int, seconds: int) -> int:
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
