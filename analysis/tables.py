"""Tables as text for the terminal, HTML for the report and CSV for other programs (standard library only)."""

import csv
import html
import math


def mean_of(values):
    """Mean of what is there; None when nothing is."""
    found = [v for v in values if v is not None]
    return sum(found) / len(found) if found else None


def spread_of(values):
    """Standard deviation over the seeds (n - 1); None below two values."""
    found = [v for v in values if v is not None]
    if len(found) < 2:
        return None
    mean = sum(found) / len(found)
    return math.sqrt(sum((v - mean) ** 2 for v in found) / (len(found) - 1))


def with_spread(values, form="{:.2f}"):
    """'177.00 +- 1.41', or one number, or '-'."""
    mean, spread = mean_of(values), spread_of(values)
    if mean is None:
        return "-"
    return form.format(mean) + (f" +- {form.format(spread)}" if spread is not None else "")


def by_auc(auc):
    """Names of the scores, best first."""
    return sorted(auc["scores"], key=lambda n: -(auc["scores"][n].get("all") or 0))


KNOWN_KINDS = ("words", "chars", "noise", "base64", "lines", "fragments", "html")


def damage_kinds(auc):
    """The kinds of damage of an auc.json: the demo's in their usual order, others behind in the file's."""
    found = [kind for kind in auc.get("counts", {}) if kind != "good"]
    return [kind for kind in KNOWN_KINDS if kind in found] + [
        kind for kind in found if kind not in KNOWN_KINDS
    ]


def decimals(value):
    """An AUC as '0.893'."""
    return "-" if value is None else f"{value:.3f}"


def percent(value):
    """A share as '89.1 %'."""
    return "-" if value is None else f"{100 * value:.1f} %"


def is_number(text):
    """Is a cell to be set to the right?"""
    return text[:1] in "-0123456789+" and text != ""


def as_text(header, rows):
    """Columns in line, numbers to the right, for a terminal."""
    table = [header] + rows
    widths = [max(len(row[i]) for row in table) for i in range(len(header))]
    right = [all(is_number(row[i]) for row in rows) and bool(rows) for i in range(len(header))]
    lines = [
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right)).rstrip()
        for row in table
    ]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths)] + lines[1:])


def as_html(header, rows):
    """An HTML table; every text is escaped."""
    right = [all(is_number(row[i]) for row in rows) for i in range(len(header))]
    head = "".join(f"<th{' class=n' if r else ''}>{html.escape(cell)}</th>" for cell, r in zip(header, right))
    body = "\n".join(
        "<tr>"
        + "".join(
            f"<td{' class=n' if r else ''}>{html.escape(cell).replace('+-', '&plusmn;')}</td>"
            for cell, r in zip(row, right)
        )
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def as_markdown(header, rows):
    """A table of Markdown, numbers to the right."""
    right = [all(is_number(row[i]) for row in rows) and bool(rows) for i in range(len(header))]

    def line(cells):
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join(
        [line(header), line("---:" if r else "---" for r in right)] + [line(row) for row in rows]
    )


def write_csv(path, header, rows):
    """The same table for a spreadsheet."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header] + rows)
