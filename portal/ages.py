"""How old a fact is, in words: one way for pages, reasons and what portal.js ticks on."""


def in_words(seconds: float) -> str:
    """ "3 s", "5 min", "2 h", "4 days", rounded down: what has not passed yet is not told. portal.js and `baton` say it the same way."""
    for limit, size, unit in ((60, 1, "s"), (3600, 60, "min"), (2 * 86400, 3600, "h")):
        if seconds < limit:
            return f"{max(0, int(seconds // size))} {unit}"
    return f"{int(seconds // 86400)} days"
