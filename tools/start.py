"""One command from a bare clone to a running AEGIS: `python tools/start.py demo` (or test, setup).

Standard library only. This file must parse on Python 3.8, so that an old Python gets a sentence instead of a
SyntaxError; everything that needs 3.11 is in the package `startup` beside it and imported after the check.
The set-up itself is uv's work.
"""

import argparse
import sys

OLDEST_PYTHON = (3, 11)

USAGE = """\
commands:
  demo [-- ARGS]  set up, then train, merge, export, verify and report on the embedded default;
                  ARGS go to `aegis run --preset demo`
  test [ARGS]     set up, then ruff, mypy and pytest; ARGS go to pytest
  setup           only set up the environment .venv

settings: AEGIS_LANG=ja for Japanese; AEGIS_LLAMA_WHEEL=none to compile llama.cpp, or a wheel of it to install;
          pip's own settings (index, mirror, folder, proxy, certificate) and uv's hold; UV_TORCH_BACKEND, such as
          cu126 or cpu, chooses torch's build; CMAKE_ARGS is added to llama.cpp's own arguments

exit codes: 0 done, 2 wrong usage, 3 something is missing on this machine, 7 uv or another tool failed,
            129 / 130 / 143 interrupted; demo and test pass on the code of what they ran
"""


def parse(argv):  # type: (list[str]) -> argparse.Namespace
    """Split argv into `command` and the arguments to pass on, `rest`, a leading `--` removed."""
    parser = argparse.ArgumentParser(
        prog="start.py",
        description="Set AEGIS up in .venv and run it.",
        epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=["demo", "test", "setup"], metavar="command")
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.rest[:1] == ["--"]:
        del arguments.rest[0]
    if arguments.rest and arguments.command == "setup":
        parser.error("setup takes no arguments, got: " + " ".join(arguments.rest))
    return arguments


def main(argv):  # type: (list[str]) -> int
    """Run one command and return its exit code."""
    if sys.version_info < OLDEST_PYTHON:
        sys.stderr.write(
            "AEGIS needs Python 3.11 or newer; this is Python %d.%d (%s).\n"  # noqa: UP031
            "Install a newer one (https://www.python.org/downloads/) and start again with it, for example\n"
            "  python3.11 tools/start.py demo      (Windows: py -3.11 tools\\start.py demo)\n"
            "or, where uv is installed, let it fetch one:\n"
            "  uv run --no-project --python 3.13 tools/start.py demo\n"
            % (sys.version_info[0], sys.version_info[1], sys.executable)
        )
        return 3
    arguments = parse(argv)
    from startup import commands  # only now: it needs Python 3.11 to parse

    return commands.run(arguments.command, arguments.rest)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
