"""What the benchmarks share: options, the state of the machine, Markdown tables, JSON files.

Imports nothing heavy, so that a benchmark may time its own imports.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
from importlib.metadata import version
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
LIBRARIES = ("jax", "numpyro", "blackjax", "arviz-base", "numpy")


def parser(description):
    """Options of every benchmark."""
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--quick", action="store_true", help="tiny repetitions; writes no result")
    options.add_argument("--results", type=Path, help="folder of the JSON file")
    return options


def machine():
    """Say on what the numbers were measured."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "processor": _processor(),
        "load_at_start": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def quartiles(values):
    """Lower quartile, median, upper quartile."""
    values = list(values)
    if len(values) == 1:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")


def spread(values):
    """Median and quartiles as one cell of a table."""
    low, middle, high = quartiles(values)
    return f"{middle:.3g} ({low:.3g} to {high:.3g})"


def goal(what, measured, limit):
    """One line of the table of goals; met where the measured number is at most the limit."""
    return {"goal": what, "limit": limit, "measured": measured, "met": bool(measured <= limit)}


def cell(value):
    """One cell of a table."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def table(rows):
    """Markdown table of dicts with the same keys."""
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([cell(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def markdown(result):
    """All tables of a result, and what they were measured on."""
    host = result["machine"]
    libraries = ", ".join(f"{name} {number}" for name, number in host["libraries"].items())
    blocks = [f"**{title}**\n\n{table(rows)}" for title, rows in result["tables"].items() if rows]
    blocks += result["notes"]
    blocks.append(
        f"Measured on {host['date']}: {host['cores']} cores ({host['processor']}), load "
        f"{host['load_at_start']} at the start, {result['precision']}, Python {host['python']}, "
        f"{libraries}." + (" Quick run: the numbers mean nothing." if result["quick"] else "")
    )
    return "\n\n".join(blocks)


def finish(name, options, host, *, precision, tables, goals=(), notes=(), data=None):
    """Print the tables, write the JSON file, and return what is in it.

    ``data`` are numbers for other benchmarks, which are in the file and not on the page.
    """
    tables = {**tables, "Goals": list(goals)}
    result = {
        "name": name,
        "quick": options.quick,
        "machine": host,
        "precision": precision,
        "tables": tables,
        "notes": list(notes),
    }
    if data is not None:
        result["data"] = data
    print(markdown(result), flush=True)
    folder = options.results or (None if options.quick else RESULTS)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return result
