"""The command ``loopwatch``: run a program under watch, report on a journal, run the demo, check this machine."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from loopwatch._version import __version__
from loopwatch.core.text import shown
from loopwatch.errors import LoopwatchError

_EXAMPLES = """\
examples:
  loopwatch run app.py
  loopwatch run --threshold 0.05 --journal stalls.jsonl uvicorn app:app --workers 4
  loopwatch run -m myservice --port 8080
  loopwatch report stalls.jsonl
  loopwatch report --html stalls.html stalls.jsonl
  loopwatch doctor
  loopwatch dashboards export monitoring/
"""

_RUN_ABOUT = """\
Runs a program with every event loop in it watched, and those of the Python processes it starts. The program is not
changed; its exit code, signals and input are its own. Everything after MODULE, SCRIPT or COMMAND belongs to it.
"""

_RUN_MORE = """\
Each option is also an environment variable LOOPWATCH_<OPTION>, as is every other setting of loopwatch.Config;
LOOPWATCH_ENABLED=0 switches everything off.

examples:
  loopwatch run app.py --verbose
  loopwatch run --journal /var/log/app/ -m myservice
  loopwatch run --threshold 0.05 uvicorn app:app --workers 4
"""

_RUN_OPTIONS = (
    ("--threshold", "S", "seconds; what holds a loop longer is reported (default 0.1)"),
    ("--thresholds", "P=S", "the same for a route or task, such as 'GET /report/*=0.5'; may be repeated"),
    ("--hang-after", "S", "seconds; a block that still goes on is announced (default 2)"),
    ("--grace", "S", "seconds after the start in which nothing is reported (default 0)"),
    ("--journal", "PATH", "file or directory for the journal; each process writes NAME.<pid>.jsonl"),
    ("--prometheus-port", "PORT", "where Prometheus can scrape the program; its workers take the next free ports"),
    ("--otlp-endpoint", "URL", "receiver of OpenTelemetry, such as http://127.0.0.1:4318"),
    ("--log-level", "L", "level of the log line of a stall (default WARNING)"),
    ("--context", "NAME", "context variable, or pkg.mod:callable, that labels stalls; may be repeated"),
    ("--user-code", "P", "path or module prefix whose code is yours; may be repeated"),
    ("--library-code", "P", "path or module prefix whose code is not yours; may be repeated"),
)
_REPEATED = ("--thresholds", "--context", "--user-code", "--library-code")

_SIGPIPE_EXIT = 141
"""Exit code of a program whose output pipe was closed (128 + SIGPIPE)."""


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports errors in one line."""

    def error(self, message: str) -> NoReturn:
        """Print ``message`` in one line and exit with status 2."""
        line = " ".join(message.split())
        self.exit(2, f"loopwatch: {line}; see {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv``, default ``sys.argv[1:]``; return the exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _main(args)
        sys.stdout.flush()
        return code
    except LoopwatchError as exc:
        print(f"loopwatch: {shown(' '.join(str(exc).split()))}", file=sys.stderr)  # noqa: T201
        return 2
    except BrokenPipeError:
        _drop_output()
        return _SIGPIPE_EXIT
    except OSError as exc:  # such as stdout on a full disk, a removed working directory
        what = f"{exc.strerror or exc}{f': {exc.filename}' if exc.filename else ''}"
        print(f"loopwatch: {shown(what)}", file=sys.stderr)  # noqa: T201
        _drop_output()
        return 2
    except KeyboardInterrupt:
        return 130


def _drop_output() -> None:
    """Redirect standard output to the null device: the interpreter flushes it once more at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main(args: list[str]) -> int:
    own, target = _split_run(args) if args[:1] == ["run"] else (args, [])
    parsed, unknown = _parser().parse_known_args(own)
    if unknown:
        parsed.parser.error(f"unknown option or argument {unknown[0]}")
    command: Callable[[argparse.Namespace, list[str]], int] = parsed.call
    return command(parsed, target)


def _split_run(args: list[str]) -> tuple[list[str], list[str]]:
    """Split ``run ...`` into loopwatch's part and the program's, which begins at the first word that is no option.

    argparse cannot do it: it would parse options behind the program's name as well.
    """
    takes_value = {name for name, _, _ in _RUN_OPTIONS}
    at = 1
    while at < len(args):
        word = args[at]
        if word == "--":
            return args[:at], args[at + 1 :]
        if not word.startswith("-") or word == "-" or (word.startswith("-m") and not word.startswith("--")):
            return args[:at], args[at:]
        at += 2 if word in takes_value else 1
    return args, []


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="loopwatch",
        description="Says when an asyncio event loop is blocked, by which line, why, and what to do about it.",
        epilog=_EXAMPLES,
        formatter_class=raw,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"loopwatch {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    run = commands.add_parser(
        "run",
        help="run a program under watch",
        usage="loopwatch run [OPTIONS] (-m MODULE | SCRIPT | COMMAND) [ARGS ...]",
        description=_RUN_ABOUT,
        epilog=_RUN_MORE,
        formatter_class=raw,
        allow_abbrev=False,
    )
    for name, metavar, text in _RUN_OPTIONS:
        run.add_argument(name, metavar=metavar, help=text, action="append" if name in _REPEATED else "store")
    run.set_defaults(call=_run, parser=run)

    report = commands.add_parser(
        "report",
        help="summarize a journal",
        description="Summarizes journals: who held the loop, why, when, in which process, and what to do about it.",
        epilog="examples:\n  loopwatch report stalls.jsonl\n  loopwatch report --html stalls.html /var/log/app/\n"
        "  loopwatch report --collapsed stalls.jsonl | flamegraph.pl > stalls.svg\n"
        "  loopwatch report --suggest-threshold stalls.jsonl\n",
        formatter_class=raw,
        allow_abbrev=False,
    )
    report.add_argument(
        "journal", metavar="JOURNAL", help="file, directory, pattern, or the name configured as journal"
    )
    form = report.add_mutually_exclusive_group()
    form.add_argument("--html", metavar="FILE", help="write a page with timeline and flame graph, for any browser")
    form.add_argument("--collapsed", action="store_true", help="print collapsed stacks, for flame graph tools")
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument(
        "--suggest-threshold", action="store_true", help="print the thresholds that the recorded lag suggests"
    )
    report.add_argument(
        "--per-hour", metavar="N", type=_rate, default=1.0, help="stalls an hour to suggest a threshold for (default 1)"
    )
    report.add_argument("--width", metavar="N", type=_width, help="columns of the text (default: the terminal's)")
    report.set_defaults(call=_report, parser=report)

    demo = commands.add_parser(
        "demo",
        help="watch a small program that blocks in many ways",
        description="Runs a small program that blocks its loop in many ways, and shows what loopwatch says of it.",
        allow_abbrev=False,
    )
    demo.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio", help="kind of loop (default asyncio)")
    demo.add_argument("--seconds", metavar="S", type=_seconds, default=10.0, help="how long (default 10)")
    demo.add_argument("--journal", metavar="PATH", help="file or directory for the journal")
    demo.set_defaults(call=_demo, parser=demo)

    doctor = commands.add_parser(
        "doctor",
        help="check what works on this machine, in this environment",
        description="Checks what works here and says what to do about the rest. Exits with 1 if loopwatch cannot work.",
        allow_abbrev=False,
    )
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.set_defaults(call=_doctor, parser=doctor)
    _add_dashboards(commands)
    return parser


def _add_dashboards(commands: argparse._SubParsersAction[_Parser]) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    dashboards = commands.add_parser(
        "dashboards",
        help="write out dashboards and alerts, or save them in Grafana",
        description="Dashboards for Grafana, rules and alerts for Prometheus, and a compose file with all of it.",
        epilog="examples:\n  loopwatch dashboards export monitoring/\n"
        "  GRAFANA_TOKEN=... loopwatch dashboards push --url https://grafana.example.com\n",
        formatter_class=raw,
        allow_abbrev=False,
    )
    ways = dashboards.add_subparsers(title="commands", metavar="COMMAND", required=True)
    export = ways.add_parser(
        "export",
        help="write them into a folder",
        description="Writes dashboards (grafana/*.json), rules (prometheus/*.yml), what to do about each alert "
        "(docs/runbook.md), compose.yaml and what it needs.",
        epilog="examples:\n  loopwatch dashboards export monitoring/\n  docker compose -f monitoring/compose.yaml up\n",
        formatter_class=raw,
        allow_abbrev=False,
    )
    export.add_argument("directory", metavar="DIR", type=Path, help="folder to write into; it is made if needed")
    export.add_argument("--force", action="store_true", help="replace files in it that differ")
    export.set_defaults(call=_export_dashboards, parser=export)
    push = ways.add_parser(
        "push",
        help="save the dashboards in a Grafana",
        description="Saves the dashboards through Grafana's HTTP API, in place of those of an earlier version.",
        epilog="examples:\n  GRAFANA_TOKEN=... loopwatch dashboards push --url https://grafana.example.com\n"
        "  loopwatch dashboards push --url http://localhost:3000 --token TOKEN --folder Services\n",
        formatter_class=raw,
        allow_abbrev=False,
    )
    push.add_argument("--url", metavar="URL", required=True, help="address of Grafana, with its path if it has one")
    push.add_argument(
        "--token",
        metavar="TOKEN",
        help="of a service account with the role Editor (default: the variable GRAFANA_TOKEN, which is not seen in the "
        "list of processes)",
    )
    push.add_argument(
        "--folder", metavar="NAME", default="loopwatch", help='folder for them, "" for none (default loopwatch)'
    )
    push.set_defaults(call=_push_dashboards, parser=push)


def _width(text: str) -> int:
    if not text.isdecimal() or int(text) < 40:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a whole number, 40 or more")
    return int(text)


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number above 0, up to 3600")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 86400:
        raise argparse.ArgumentTypeError(f"{text!r}: must be a number of seconds above 0")
    return value


def _run(args: argparse.Namespace, target: list[str]) -> int:
    from loopwatch.cli import run

    options: dict[str, str] = {}
    for name, _, _ in _RUN_OPTIONS:
        field = name[2:].replace("-", "_")
        value = getattr(args, field)
        if value is not None:
            options[field] = ",".join(value) if name in _REPEATED else value
    variables = run.settings_for(options)
    program = run.find_program(target)
    run.execute(program, run.environment(os.environ, variables))


def _report(args: argparse.Namespace, _target: list[str]) -> int:
    from loopwatch.report.export import to_collapsed, to_json
    from loopwatch.report.reader import read_journals
    from loopwatch.report.tables import Report
    from loopwatch.report.text import headline, to_text

    contents = read_journals(args.journal)
    if args.collapsed:
        _print(to_collapsed(contents))
        return 0
    width = args.width or shutil.get_terminal_size((100, 24)).columns
    if args.suggest_threshold:
        from loopwatch.report.suggest import suggest, suggestion_text

        _print(suggestion_text(suggest(contents, args.per_hour), args.per_hour, width))
        return 0
    report = Report.of(contents)
    if args.html:
        from loopwatch.report import html

        _write_private(args.html, html.render(report))
        _print(f"{headline(report)}\nWritten to {args.html}\n")
    elif args.json:
        _print(to_json(report).rstrip("\n") + "\n")
    else:
        _print(to_text(report, width))
    return 0


def _demo(args: argparse.Namespace, _target: list[str]) -> int:
    from loopwatch import demo

    return demo.main(loop=args.loop, seconds=args.seconds, journal=args.journal)


def _doctor(args: argparse.Namespace, _target: list[str]) -> int:
    from loopwatch.cli import doctor

    checks = doctor.examine(os.environ)
    _print(doctor.to_json(checks) if args.json else doctor.to_text(checks))
    return 0 if doctor.usable(checks) else 1


def _export_dashboards(args: argparse.Namespace, _target: list[str]) -> int:
    from loopwatch.cli import dashboards

    written = dashboards.export(args.directory, overwrite=args.force)
    to_see = f"docker compose -f {args.directory / 'compose.yaml'} up"
    _print(f"{len(written)} files are in {args.directory}; to see it all at work: {to_see}\n")
    return 0


def _push_dashboards(args: argparse.Namespace, _target: list[str]) -> int:
    from loopwatch.cli import dashboards

    token = os.environ.get("GRAFANA_TOKEN", "") if args.token is None else args.token
    dashboards.push(args.url, token, args.folder, lambda title, url: _print(f"{title}: {url}\n"))
    return 0


def _write_private(name: str, text: str) -> None:
    """Write a file readable by its owner only, as the journal: it holds names and paths of the program."""
    try:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - pathlib takes no descriptor
            file.write(text)
    except OSError as exc:
        raise LoopwatchError(f"{name}: cannot be written: {exc.strerror}; give another --html FILE") from None


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "ascii"
    # Bars and ellipses are not in every encoding; a report with question marks is better than none.
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
