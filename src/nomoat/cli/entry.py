"""`nomoat`: finds the verb, runs it, and turns whatever goes wrong into three lines and an exit code.

argv -> click (verb, options) -> command(output, ...) -> 0 done | 1 failed | 2 used wrongly | 130 interrupted
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from importlib import import_module

import click

from nomoat import __version__
from nomoat.cli.listing import VERBS, find, screen
from nomoat.cli.output import Lines, Output, json_lines
from nomoat.cli.restart import with_allocator
from nomoat.core.errors import ConfigError, NomoatError, nearest

INTERRUPTED = 130
SPELLINGS = {"distill": "distil"}
"""What some write for a verb's name."""


class Verbs(click.Group):
    """The verbs of `listing.VERBS`; a verb's module is imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb.name for verb in VERBS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        verb = find(SPELLINGS.get(cmd_name, cmd_name))
        if verb is None:
            return None
        module, function = verb.command.split(":")
        command: click.Command = getattr(import_module(module), function)
        command.epilog = command.epilog or f"Example:  nomoat {verb.example}"
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        args[0] = name = SPELLINGS.get(args[0], args[0])
        if find(name) is None and not name.startswith("-"):
            fix = nearest(name, self.list_commands(ctx)) or "`nomoat --help` shows all verbs on one screen"
            raise ConfigError(f"nomoat has no verb `{name}`", f"it has {', '.join(self.list_commands(ctx))}", fix)
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(screen() + "\n")


@click.command(cls=Verbs, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="nomoat %(version)s")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
@click.pass_context
def root(context: click.Context, as_json: bool) -> None:
    """A folder and a budget go in, a model you own comes out."""
    if context.invoked_subcommand is None:
        click.echo(screen())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (default: the process's own) and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    ours = words[: words.index("--")] if "--" in words else words
    verb = next((found for word in ours if (found := find(SPELLINGS.get(word, word)))), None)
    helps = not {"--help", "-h", "--version"}.isdisjoint(ours)
    if verb is not None and verb.trains and not helps:
        with_allocator()  # before standard output is turned over to JSON: the new process inherits it as it is
    with json_lines() if "--json" in ours and not helps else nullcontext(Lines()) as output:
        return _run(words, output)


def _run(words: list[str], output: Output) -> int:
    try:
        code = root.main(words, prog_name="nomoat", standalone_mode=False, obj=output)
    except (KeyboardInterrupt, click.Abort):
        output.error("interrupted", "Ctrl-C was pressed", "type the same command again")
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # whoever read us has gone; Python's last flush must not fail
        return 1
    except click.UsageError as error:
        output.error(*_usage(error))
        return 2
    except NomoatError as error:
        run = getattr(error, "run", None)  # a training that was stopped says where it can be resumed
        output.error(error.what, error.why, error.fix, **({"run": run.path.resolve()} if run else {}))
        return error.exit_code
    except Exception as error:
        if os.environ.get("NOMOAT_TRACEBACK"):
            raise
        output.error(*_explain(error))
        return 1
    return code if isinstance(code, int) else 0


def _usage(error: click.UsageError) -> tuple[str, str, str]:
    """What click found wrong, in our three parts."""
    verb = error.ctx.info_name if error.ctx and error.ctx.parent else ""
    help_line = f"`nomoat {verb} --help` shows what it takes" if verb else "`nomoat --help` shows all verbs"
    if isinstance(error, click.NoSuchOption):
        close = [option for option in error.possibilities or () if option]
        guess = f"did you mean `{close[0]}`? " if close else ""
        return f"nomoat {verb} has no option `{error.option_name}`".replace("  ", " "), "", guess + help_line
    return error.format_message(), "", help_line


def _explain(error: BaseException) -> tuple[str, str, str]:
    """An error that no part of ours has put into words."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full", str(error), "free some space, or set NOMOAT_RUNS to a folder on another disk"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "out of memory", str(error), "a smaller budget plans a smaller model; for recipes, lower micro_batch"
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), "", "check the path and its rights"
    what = f"{type(error).__name__}: {error}"
    fix = "set NOMOAT_TRACEBACK=1 and type it again to see where, then report it"
    return what, "nomoat did not foresee this: a fault of ours", fix
