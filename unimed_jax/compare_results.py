"""Puts results of `unimed-jax evaluate` beside each other and beside published scores.

    unimed-jax compare eval/mine eval/biomedclip
    unimed-jax compare eval/*/results.json --out=comparison

Arguments are results.json files or directories that hold one: all of suites, or all of a run's own
evaluators. Rows whose scores were made of other images, prompts or sets are marked. With --out,
writes comparison.csv and comparison.html, with a plot of scores and their intervals.
"""

import argparse
import html
import sys
from collections.abc import Sequence

from input_pipeline.io import cli, files
from input_pipeline.io.files import write_text_atomically
from unimed_jax.evals import comparison
from unimed_jax.evals.comparison import Comparison
from unimed_jax.reporting import charts, html_report


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status (2: the user's input is at fault)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="+", type=files.flag, help="files or directories")
    parser.add_argument("--out", type=files.flag, help="directory of the CSV and the HTML")
    parser.add_argument(
        "--no_published", action="store_true", help="leave the published scores out"
    )
    args = parser.parse_args(argv)
    return cli.run(lambda: _compare(args))


def _compare(args: argparse.Namespace) -> None:
    compared = comparison.compare(args.results, with_published=not args.no_published)
    print("\n".join([html_report.text_table(_table(compared)), "", *comparison.notes(compared)]))
    if args.out:
        _write(args.out, compared)


def _table(compared: Comparison) -> list[list[str]]:
    header = ["", *(column.name for column in compared.columns), ""]
    return [header, *([row, *comparison.cells(compared, row)] for row in compared.rows)]


def _write(directory: files.AnyPath, compared: Comparison) -> None:
    write_text_atomically(directory / "comparison.csv", comparison.as_csv(compared))
    names = list(dict.fromkeys(name for column in compared.columns for name in column.facts))
    about = [
        [column.name, *(column.facts.get(name, "—") for name in names)]
        for column in compared.columns
    ]
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in comparison.notes(compared))
    sections = [
        html_report.Section("Scores", _scores_html(compared) + f"<ul>{notes}</ul>"),
        html_report.Section(
            "What is compared", html_report.table(["", *names], about, compact=True)
        ),
    ]
    if compared.is_of_suites:
        sections.insert(1, html_report.Section("Plot", _plot(compared)))
    path = directory / "comparison.html"
    html_report.write_report(path, title="Results compared", sections=sections)
    print(f"\nwritten: {directory / 'comparison.csv'} and {path}")


def _scores_html(compared: Comparison) -> str:
    """One row per set or task, the best score in bold; the rest is folded."""
    main = [row for row in compared.rows if comparison.is_main(compared, row)]
    rest = [row for row in compared.rows if row not in main]
    page = _rows_html(compared, main)
    if rest:
        page += f"<details><summary>{len(rest)} more rows</summary>{_rows_html(compared, rest)}"
        page += "</details>"
    return page


def _rows_html(compared: Comparison, rows: Sequence[str]) -> str:
    names = [column.name for column in compared.columns]
    with_difference = any(comparison.difference(compared, row) for row in rows)
    header = ["", *names, *(["difference"] if with_difference else []), "differs in"]
    cells, bold = [], set()
    for number, row in enumerate(rows):
        *scores, differs = comparison.cells(compared, row)
        bold |= {(number, 1 + index) for index in comparison.best(compared, row)}
        difference = [comparison.difference(compared, row)] if with_difference else []
        cells.append([row, *scores, *difference, differs])
    return html_report.table(header, cells, compact=True, bold=bold)


def _plot(compared: Comparison) -> str:
    series = {
        column.name: [
            (score.value, *(score.interval or (score.value, score.value)))
            if (score := column.scores.get(row))
            else None
            for row in compared.rows
        ]
        for column in compared.columns
    }
    note = "Percent. Bars are bootstrap intervals (95 %), of measured scores only."
    return (
        charts.interval_chart(compared.rows, series)
        + html_report.legend(list(series))
        + f'<p class="note">{note}</p>'
    )


if __name__ == "__main__":
    sys.exit(main())
