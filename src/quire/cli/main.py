"""The ``quire`` command: finds the subcommand, reads its options and runs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

from quire.cli.command import Command, load
from quire.cli.commands import COMMANDS
from quire.version import __version__

USAGE_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``quire`` with these arguments (default: the process's own) and return the exit status."""
    args = list(sys.argv[1:] if argv is None else argv)
    if args[:1] in (["--version"], ["-V"]):
        print(f"quire {__version__}")
        return 0
    if not args or args[0] in ("-h", "--help", "help"):
        print(overview())
        return 0 if args else USAGE_ERROR
    command, rest = find_command(args)
    if command is None:
        return _unknown(args)
    return run_command(command, rest)


def run_command(command: Command, argv: Sequence[str]) -> int:
    """Read the options of ``command`` from ``argv`` and run it; a user's mistake ends in one line."""
    from quire.config.options import ConfigError

    try:
        configs = read_options(command, argv)
        return int(load(command.run)(*configs))
    except ConfigError as error:
        print(f"quire {command.name}: error: {error}\nSee quire {command.name} --help.", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if not type(error).__module__.startswith("quire."):
            raise
        print(f"quire {command.name}: error: {error}", file=sys.stderr)
        return 1


def read_options(command: Command, argv: Sequence[str]) -> list[Any]:
    """One config for each option class of ``command``; raises ``ConfigError``."""
    from quire.config.foreign import judge
    from quire.config.sources import from_sources
    from quire.config.variables import unknown_variables

    parser = make_parser(command)
    given, foreign = parser.parse(argv)
    config_file = given.pop("config", None)
    # A file or a variable may be meant for other commands too.
    everywhere = [cls for each in COMMANDS for cls in each.option_classes()]
    configs, notes = from_sources(command.option_classes(), given, os.environ, config_file, everywhere)
    notes += filter(None, (judge(option, value) for option, value in foreign))
    notes += unknown_variables(os.environ, everywhere)
    for note in notes:
        print(f"quire {command.name}: note: {note}", file=sys.stderr)
    return configs


def make_parser(command: Command) -> Any:
    """The ``FlagParser`` of a subcommand."""
    from quire.config.flags import FlagParser, add_foreign, add_options

    epilog = "examples:\n" + "\n".join(f"  {line}" for line in command.examples) if command.examples else None
    parser = FlagParser(
        prog=f"quire {command.name}",
        usage=f"quire {command.name} {command.usage}",
        description=command.summary,
        epilog=epilog,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with 'option: value' lines; flags and QUIRE_<OPTION> variables win."
    )
    add_options(parser, command.option_classes())
    if command.foreign:
        add_foreign(parser)
    return parser


def find_command(args: Sequence[str]) -> tuple[Command | None, list[str]]:
    """The command that ``args`` begin with, and the arguments left."""
    for command in COMMANDS:
        words = command.name.split()
        if list(args[: len(words)]) == words:
            return command, list(args[len(words) :])
    return None, []


def overview(family: str = "") -> str:
    """The text of ``quire --help``, or of ``quire FAMILY --help`` for commands of two words."""
    commands = [command for command in COMMANDS if command.name.startswith(family)]
    width = max(len(command.name) for command in commands)
    lines = [f"  {command.name:<{width}}  {command.summary}" for command in commands]
    return "\n".join(
        [
            "usage: quire COMMAND [options]",
            "",
            "Serve open-weight language models: quire serve, then POST to http://127.0.0.1:8000/v1/chat/completions.",
            "",
            "commands:",
            *lines,
            "",
            "quire COMMAND --help lists a command's options; quire --version prints the version.",
        ]
    )


def _unknown(args: Sequence[str]) -> int:
    from quire.config.sources import suggestion

    members = [command.name for command in COMMANDS if command.name.startswith(args[0] + " ")]
    if members and (len(args) == 1 or args[1] in ("-h", "--help")):
        print(overview(args[0]))
        return USAGE_ERROR if len(args) == 1 else 0
    word = " ".join(args[:2]) if members else args[0]
    known = [command.name if members else command.name.split()[0] for command in COMMANDS]
    hint = suggestion(word, known)
    print(f"quire: error: unknown command {word!r}.{hint} See quire --help.", file=sys.stderr)
    return USAGE_ERROR


if __name__ == "__main__":
    sys.exit(main())
