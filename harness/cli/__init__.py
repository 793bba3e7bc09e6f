"""The command line. Each command lives in a module of its own, imported when it is called."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence

import click

from harness._version import __version__
from harness.errors import ExitCode, HarnessError, did_you_mean

# Name -> one line. Kept here, so that `harness --help` imports no command.
COMMANDS = {
    "run": "Run a suite and report its numbers.",
    "gate": "Judge a candidate run against a baseline run.",
    "compare": "Print runs side by side with paired differences.",
    "baseline": "Accept a run as a baseline.",
    "report": "Write a run's report.html again and print its table.",
    "explain": "Write pictures of why a model decided as it did.",
    "plugins": "List models, threats, data sets and metrics, or show one.",
    "fit": "Train a model and write its checkpoint.",
    "new": "Write the skeleton of a new plugin.",
    "schema": "Print the JSON schema of suite files, for editors.",
}


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in COMMANDS:
            return None
        found: click.Command = importlib.import_module(f"harness.cli.{name}").command
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"'{args[0]}' is not a command{did_you_mean(args[0], COMMANDS)}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="harness")
def cli() -> None:
    """Pytest for model robustness: run threat suites on image models, and gate releases on the result.

    Exit status: 0 ok, 1 regression, 2 interrupted, 3 some cells failed, 4 usage or configuration error, 5 nothing to
    run, 6 inconclusive, incomplete or unreliable.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit with its status; what a user can mend is one line on standard error."""
    sys.exit(_status(arguments))


def _status(arguments: Sequence[str] | None) -> int:
    try:
        given = None if arguments is None else list(arguments)
        result = cli.main(given, prog_name="harness", standalone_mode=False)
    except HarnessError as error:
        click.echo(f"harness: {error}", err=True)
        return int(error.exit_code)
    except click.ClickException as error:
        click.echo(f"harness: {error.format_message()}", err=True)
        return int(ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        click.echo("harness: interrupted; what was finished is kept, and the same command goes on from there", err=True)
        return int(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        sys.stderr.close()
        return int(ExitCode.OK)
    except Exception:
        traceback.print_exc()
        click.echo("harness: internal error (above); this is a fault of the program, not of its input", err=True)
        return int(ExitCode.FAILED)
    return int(result) if isinstance(result, int) else int(ExitCode.OK)
