"""Frame of the comparisons with peers: sides take turns in fresh processes, and a table shows medians and ratios.

No comparison by itself. A script adds its options to `make_parser` and passes two functions to `run`: `measure`, which
measures one side in a process of its own (the script calls itself with `--side`), and `report`, which prints the table.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Measurements = dict[str, list[dict[str, Any]]]
"""Side -> measurement of each round."""

_OWN_OPTIONS = {"help", "rounds", "sides", "json", "side", "profile"}
"""Options that are not passed on to the process of a side."""


def make_parser(doc: str, sides: Sequence[str], *, rounds: int, default: str | None = "") -> argparse.ArgumentParser:
    """Return a parser with the options that all comparisons share.

    Args:
        doc: Docstring of the script.
        sides: All sides.
        rounds: Default number of rounds.
        default: Sides that run by default, with commas; "" for all, None if the script chooses them.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds, help="number of measurements of each side")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--sides", default=",".join(sides) if default == "" else default, help=f"some of {', '.join(sides)}"
    )
    parser.add_argument("--json", help="output file for all measurements")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser


def run(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    report: Callable[[Measurements, argparse.Namespace], None],
    *,
    describe: Callable[[dict[str, Any]], str],
    prepare: Callable[[argparse.Namespace, Path], None] = lambda args, folder: None,
    per_round: Callable[[argparse.Namespace, int], Sequence[str]] = lambda args, number: (),
    environment: Mapping[str, str] | None = None,
    requires: str = "",
) -> None:
    """Parse the command line, then measure one side, or all sides in turns and report.

    Args:
        parser: From `make_parser`.
        measure: Measures `args.side` and returns numbers and texts.
        report: Prints the table.
        describe: Short result of a measurement, for the progress on stderr.
        prepare: Called once, with a temporary directory that all sides see as `args.folder`.
        per_round: Further options of the processes of a round, such as a seed.
        environment: Further environment variables of the processes.
        requires: Options without a default. Without any arguments, as `make bench` calls a script, nothing is run.
    """
    if requires and len(sys.argv) == 1:
        print(f"Skipped: needs {requires}", file=sys.stderr)
        return
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measure(args)))
        return
    with tempfile.TemporaryDirectory(prefix="stemformer-bench-") as folder:
        args.folder = folder
        prepare(args, Path(folder))
        found = take_turns(parser, args, describe=describe, per_round=per_round, environment=environment)
        if args.json:
            content = {"arguments": vars(args), "processor": processor(), "measurements": found}
            Path(args.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        report(found, args)
        print(f"\n{processor()}")


def take_turns(
    parser: argparse.ArgumentParser,
    args: argparse.Namespace,
    *,
    describe: Callable[[dict[str, Any]], str],
    per_round: Callable[[argparse.Namespace, int], Sequence[str]] = lambda args, number: (),
    environment: Mapping[str, str] | None = None,
) -> Measurements:
    """Measure all sides, round by round, in fresh processes; another side begins each round."""
    sides = args.sides.split(",")
    found: Measurements = {side: [] for side in sides}
    for number in range(args.rounds):
        first = number % len(sides)
        for side in sides[first:] + sides[:first]:
            options = [*options_of(parser, args), *per_round(args, number)]
            result = run_side(side, options, threads=args.threads, environment=environment)
            found[side].append(result)
            print(f"round {number + 1}, {side}: {describe(result)}", file=sys.stderr, flush=True)
    return found


def options_of(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[str]:
    """Return the command line that repeats the options of a comparison."""
    options: list[str] = []
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if action.dest in _OWN_OPTIONS or value is None or value is False:
            continue
        name = action.option_strings[0]
        if value is True:
            options.append(name)
        elif isinstance(value, list):
            options += [name, *map(str, value)]
        else:
            options.append(f"{name}={value}")
    return options


def run_side(
    side: str, options: Sequence[str], *, threads: int, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Run the script for one side in a fresh process and return its measurement, the last line of its output."""
    result: dict[str, Any] = run_python(
        [sys.argv[0], f"--side={side}", *options], threads=threads, environment=environment
    )
    return result


def run_python(
    arguments: Sequence[str] | str,
    *,
    threads: int,
    environment: Mapping[str, str] | None = None,
    watch: Callable[["subprocess.Popen[str]"], None] | None = None,
) -> Any:
    """Run Python in a fresh process and return the last line of its output, which is JSON.

    Args:
        arguments: Arguments of Python, or code that can import the scripts of this directory.
        threads: Number of threads of matrix products.
        environment: Further environment variables.
        watch: Called with the process in a thread while it runs.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONWARNINGS": "ignore", "PYTHONPATH": path}
    command = [sys.executable, *(["-c", arguments] if isinstance(arguments, str) else arguments)]
    process = subprocess.Popen(
        command, env=variables | dict(environment or {}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watcher = threading.Thread(target=watch, args=(process,), daemon=True) if watch else None
    if watcher:
        watcher.start()
    output, errors = process.communicate()
    if watcher:
        watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command[1:4])} failed:\n{errors[-3000:]}")
    return json.loads(output.splitlines()[-1])


# ------------------------------------------------------------------------------------------- Results


def median(runs: Iterable[Mapping[str, Any]], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def spread(runs: Iterable[Mapping[str, Any]], key: str, form: str) -> str:
    """Return minimum and maximum of a measurement as text."""
    values = [run[key] for run in runs]
    return f"{min(values):{form}} to {max(values):{form}}"


def speedup(first: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], key: str, *, is_rate: bool) -> float:
    """Return the median over rounds of how many times as fast the first side is.

    Args:
        is_rate: The measurement is a rate (higher is faster), not a time.
    """
    ratios = [a[key] / b[key] for a, b in zip(first, runs, strict=True)]
    return statistics.median(ratios if is_rate else [1 / ratio for ratio in ratios])


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def processor() -> str:
    """Return a sentence about the processor: its name, cores, vector units, and whether it multiplies bf16."""
    file = Path("/proc/cpuinfo")
    info = dict(
        line.split(":", 1) for line in (file.read_text().splitlines() if file.is_file() else []) if line.count(":")
    )
    fields = {key.strip(): value.strip() for key, value in info.items()}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    vectors = next((name for name, flag in (("AVX-512", "avx512f"), ("AVX2", "avx2")) if flag in flags), "other")
    has_bf16 = bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})
    name = fields.get("model name", "unknown")
    units = "with bf16 units" if has_bf16 else "without bf16 units"
    return f"Processor: {name}, {os.cpu_count()} cores, {vectors} vector units, {units}."
