"""How a report writes numbers and texts. Minus is U+2212; a missing value is n/a."""

import math
import re

from danet.tools.report.intervals import Interval

MISSING, NONE = "n/a", "–"


def percent(value: float, digits: int = 2) -> str:
    """A fraction in percent: 71.23 for 0.7123."""
    return MISSING if math.isnan(value) else f"{100 * value:.{digits}f}"


def points(value: float, digits: int = 2) -> str:
    """A difference in percentage points with its sign."""
    if math.isnan(value):
        return MISSING
    text = f"{100 * value:+.{digits}f}".replace("-", "−")
    return text[1:] if float(f"{100 * value:.{digits}f}") == 0 else text


def limits(interval: Interval, digits: int = 2) -> str:
    """The ends of an interval, in percentage points."""
    return f"[{points(interval.low, digits)}, {points(interval.high, digits)}]"


def with_limits(interval: Interval, digits: int = 2) -> str:
    """A difference with its interval where it has one."""
    text = points(interval.mean, digits)
    return text if math.isnan(interval.low) else f"{text} {limits(interval, digits)}"


def p_value(p: float) -> str:
    """Two significant digits, so that it stays on its side of 0.05."""
    if math.isnan(p):
        return MISSING
    return "<0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def duration(seconds: float) -> str:
    """Of a training."""
    if math.isnan(seconds):
        return MISSING
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.1f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def without_places(text: str) -> str:
    """`text` with absolute paths cut to their last part: a report must not depend on the machine."""
    return re.sub(r"(?<![\w./…)\]])(?:~|[A-Za-z]:)?/(?:[^\s/:;,'\"()\[\]]+/)+([^\s/:;,'\"()\[\]]*)", r"…/\1", text)
