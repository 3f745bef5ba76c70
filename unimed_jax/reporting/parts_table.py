"""The thirteen UniMed parts as a table: what is there, what is missing, and where to get it."""

import html
from collections.abc import Sequence

from input_pipeline.conversion.part_status import TARS, PartStatus
from unimed_jax.reporting.html_report import Section, table, text_table

_HEADER = ("part", "found as", "rows", "images", "converted", "published")
_NOTHING = "-"


def text(statuses: Sequence[PartStatus]) -> str:
    """Plain text: the table, then what is wrong with parts, then where to get the missing ones."""
    lines = [text_table([_HEADER, *map(_cells, statuses)]), "", summary(statuses)]
    lines += [f"{s.key}: {s.problem}" for s in statuses if s.problem]
    if missing := [s for s in statuses if not s.found]:
        lines += ["", "missing, and where to get them:"]
        lines += [f"  {s.key}: {s.access}; {s.licence}" for s in missing]
    return "\n".join(lines)


def section(statuses: Sequence[PartStatus], title: str = "The thirteen parts") -> Section:
    """The table of a report, with terms and sources of all parts."""
    rows = [(*_cells(s), s.licence, s.access) for s in statuses]
    problems = "".join(
        f"<p>{html.escape(s.key)}: {html.escape(s.problem)}</p>" for s in statuses if s.problem
    )
    content = table((*_HEADER, "terms", "where to get it"), rows, compact=True)
    return Section(title, f"<p>{html.escape(summary(statuses))}</p>{problems}{content}")


def summary(statuses: Sequence[PartStatus]) -> str:
    """One sentence on how many parts there are, which names the missing ones."""
    converted = sum(s.samples is not None for s in statuses)
    found = sum(s.raw is not None for s in statuses)
    missing = [s.key for s in statuses if not s.found]
    sentence = f"{len(statuses)} parts: {converted} converted, source data of {found} found"
    return f"{sentence}; missing: {', '.join(missing)}" if missing else f"{sentence}; none missing"


def _cells(status: PartStatus) -> tuple[str, ...]:
    published = status.expected
    low = f"{published.low:,} to " if published.low else "at most "
    of = "" if published.of == "samples" else f" {published.of}"
    return (
        status.key,
        _found_as(status),
        _NOTHING if status.rows is None else f"{status.rows:,}",
        _images(status),
        _NOTHING if status.samples is None else f"{status.samples:,}",
        f"{low}{published.high:,}{of}",
    )


def _found_as(status: PartStatus) -> str:
    if status.problem:
        return "cannot be read"
    if not status.found:
        return "missing"
    kinds = [status.layout] if status.raw is not None else []
    if status.corpus is not None:
        layout = "" if kinds or not status.layout else f" from {status.layout}"
        kinds.append(f"corpus{layout}")
    return " + ".join(kinds)


def _images(status: PartStatus) -> str:
    if status.images is None:
        return _NOTHING
    if status.layout == TARS and status.rows is None:
        return f"{status.images:,} tars"
    return f"{'' if status.images_exact else 'over '}{status.images:,}"
