"""The command line: ``python -m benchmarks NAME [--json FILE] [--quick]``."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.harness import ROUNDS, Options, say
from neuraverse.errors import MissingExtraError, NeuraverseError, UsageError

# Each is a module of this package with `measure(options) -> Report`.
NAMES = ("sim", "train", "policy", "weld", "registry", "fleet", "search")


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark; 0, or 1 and 2 as the other commands do, or 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure against peers.")
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for name in NAMES:
        doc = _doc(name)
        command = commands.add_parser(name, help=doc, description=doc)
        command.add_argument(
            "--json", type=Path, metavar="FILE", help="write machine, versions, rows and ratios"
        )
        command.add_argument("--quick", action="store_true", help="one short round: does it work")
        command.add_argument("--rounds", type=int, help=f"runs of each contender (default {ROUNDS})")
        if name == "train":
            command.add_argument(
                "--to-return",
                action="store_true",
                help="instead: wall time to a mean return of 3,000 (up to 1 h)",
            )
    given = vars(parser.parse_args(argv))
    name, file = given.pop("name"), given.pop("json")
    quick, rounds = given.pop("quick"), given.pop("rounds")
    try:
        options = Options(quick=quick, rounds=_rounds(rounds, quick), extra=given | {"json": file})
        if file is not None and not file.parent.is_dir():
            raise UsageError(f"--json {file}: there is no folder {file.parent}", remedy="make it first")
        report = importlib.import_module(f"benchmarks.{name}").measure(options)
        say("\n".join(["", *report.lines(), *(f"  note: {note}" for note in report.notes)]))
        if file is not None:
            report.save(file, name, options)
            say(f"written to {file}")
    except KeyboardInterrupt:
        print("\ninterrupted; nothing was written", file=sys.stderr)
        return 130
    except ModuleNotFoundError as error:
        missing = MissingExtraError(error.name or "?", "bench", f"python -m benchmarks {name}")
        print(f"error: {missing}", file=sys.stderr)
        return missing.exit_code
    except NeuraverseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _rounds(given: int | None, quick: bool) -> int:
    if given is not None and given < 1:
        raise UsageError(f"--rounds {given} is less than one")
    return given or (1 if quick else ROUNDS)


def _doc(name: str) -> str:
    """First sentence of a benchmark's module, read without importing it."""
    text = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return text.split('"""')[1].split("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
