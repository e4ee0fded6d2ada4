# SPDX-License-Identifier: Apache-2.0
"""Results as JSON and as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from measure import Result

_FORMATS = {"ratio": "{:.2f}", "bytes": "{:,.0f}", "GiB": "{:.2f}", "ms": "{:.1f}", "ns": "{:.1f}", "": "{:,.0f}"}


def as_json(tag: str, machine: dict[str, object], results: list[Result]) -> dict[str, Any]:
    """Return the document of one run: all rounds, and what they were computed from."""
    return {
        "tag": tag,
        **machine,
        "results": [
            {
                "row": result.row,
                "what": result.what,
                "unit": result.unit,
                "limit": result.limit,
                "min": min(result.rounds, default=None),
                "median": result.median,
                "max": max(result.rounds, default=None),
                "within_limit": result.verdict,
                "note": result.note,
                "rounds": result.rounds,
                "figures": result.figures,
            }
            for result in results
        ],
    }


def render_table(document: dict[str, Any]) -> str:
    """Return one document as a Markdown table."""
    lines = ["| what | limit | median | min – max | rounds | within |", "| --- | --- | --- | --- | --- | --- |"]
    for entry in document["results"]:
        form = _FORMATS[entry["unit"]]
        unit = "" if entry["unit"] in ("", "ratio", "bytes") else " " + entry["unit"]

        def show(value: float | None, form: str = form, unit: str = unit) -> str:
            return "–" if value is None else form.format(value) + unit

        what = entry["what"] + (f" ({entry['note']})" if entry["note"] else "")
        lines.append(
            f"| {what} | {show(entry['limit'])} | {show(entry['median'])} | {show(entry['min'])} – {show(entry['max'])} "
            f"| {len(entry['rounds'])} | {entry['within_limit']} |"
        )
    return "\n".join(lines)


def render_folder(folder: Path) -> None:
    """Write README.md from every result in ``folder``."""
    parts = [
        "# Results\n\nWritten by `bench/run.py`; every round, and what it was computed from, is in the JSON files.\n"
    ]
    for path in sorted(folder.glob("cpython-*.json"), key=lambda path: (len(path.stem), path.stem)):
        document = json.loads(path.read_text(encoding="utf-8"))
        changed = " with uncommitted changes" if document["changed_files"] else ""
        parts.append(
            f"## {document['tag']}\n\nPython {document['python'].split()[0]}, commit {document['commit'][:10]}{changed}, "
            f"Linux {document['kernel']}, {document['cpu']} ({document['cpus']} CPUs, load average "
            f"{document['load_average']:.1f}), {document['compiler']}, {document['date'][:10]}.\n\n{render_table(document)}\n"
        )
    (folder / "README.md").write_text("\n".join(parts), encoding="utf-8")
