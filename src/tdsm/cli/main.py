"""The command line: parse, run a verb, turn errors into one line and a code. No torch before a verb does its work."""

import inspect
import os
import sys
import traceback
import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Annotated, Any, NoReturn, Union

import tyro
from pydantic import ValidationError

from tdsm.base.errors import ResourceError, TdsmError, UsageError
from tdsm.base.extras import missing_words
from tdsm.base.settings import wrong_entries
from tdsm.cli.flags import FLAGS, UNNAMED, showing
from tdsm.cli.lessons import LESSONS
from tdsm.cli.show import readable_streams
from tdsm.cli.verbs import ANSWERED, SHARED, VERBS, Verb

DESCRIPTION = """Token-wise decoded decomposition of neural fields, and classification from its spatial maps.

  tdsm demo                                           everything in one go, on embedded digits; about a minute
  tdsm train --preset cifar10-small --run runs/cifar  then, each taking up what the one before left:
  tdsm classify runs/cifar
  tdsm evaluate runs/cifar
  tdsm report runs/cifar

Images come from --data.source: digits, a folder of images or parquet files, an .npz file, a Hugging Face id.
Features go anywhere by:  tdsm extract runs/cifar --features tokens pooled --to STORE
A checkpoint of your own, or a published one, comes in by:  tdsm train --init FILE --train.steps 0 --run runs/mine
`tdsm VERB --help` shows the options of a verb that matter, --help-all all of them, with the defaults of what stands
beside it; --debug anywhere shows the traceback of an error.
"""
HELP = {"-h", "--help", "--help-all"}
OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


def main() -> None:
    """Run the command line of this process and exit with its code."""
    readable_streams()
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Run one command; return 0 only if all that was asked is done."""
    is_debugged = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    if arguments[0] == "--version":
        from tdsm import __version__

        print(__version__)
        return 0
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        try:
            parse(arguments).execute()
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            if is_debugged:
                traceback.print_exc()
            return _fail(error, arguments)
    return 0


def parse(arguments: list[str]) -> Verb:
    """Parse a command twice: to learn what it is about, then with that one's settings as defaults."""
    verb = arguments[0]
    if verb not in SHARED and verb in VERBS and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"{verb} runs in one process, {', '.join(SHARED)} in several. Start it without torchrun.")
    if verb in VERBS and not HELP.isdisjoint(arguments):
        _help(arguments)
    first = _parse([argument if argument != "--help-all" else "--help" for argument in arguments])
    if os.environ.get("RANK", "0") == "0" and (opening := first.opening()) is not None:
        print(f"{verb} {opening}", file=sys.stderr, flush=True)  # before torch is loaded
    if (based := first.based()) is first:
        return first
    return tyro.cli(type(first), prog=f"tdsm {verb}", args=arguments[1:], default=based, registry=FLAGS)


def _help(arguments: list[str]) -> NoReturn:
    """Show the help of a verb or a question, with the defaults of what stands beside it, and exit."""
    asked = [argument for argument in arguments if argument not in HELP]
    command, model = asked[0], VERBS[asked[0]]
    if command == "study" and asked[1:2] and asked[1] in ANSWERED:
        command, model = f"study {asked[1]}", ANSWERED[asked[1]]
    known = _parse_quietly(asked)
    known = getattr(known, "question", known)
    default = {"default": known.shown()} if isinstance(known, model) else {}
    lesson = LESSONS[command]
    all_of_it = "--help-all" in arguments or not lesson.flags
    tyro.cli(
        model,
        prog=f"tdsm {command}",
        description=lesson.text(inspect.getdoc(model) or "", f"tdsm {command}"),
        args=["--help"],
        registry=FLAGS if all_of_it else showing(model, lesson.flags),
        **default,
    )
    raise AssertionError("help ends the program")


def _parse(arguments: list[str]) -> Verb:
    # Any in the place of object, or no help text, would have checks and sources read: a quarter of the time of --help
    verbs = [Annotated[object, tyro.conf.subcommand(name, constructor=VERBS[name])] for name in VERBS]
    one_of_them = Annotated[Union[*verbs], tyro.conf.arg(help="What to do.")]
    with FLAGS:
        return tyro.cli(one_of_them, prog="tdsm", args=arguments, description=DESCRIPTION)


def _parse_quietly(arguments: list[str]) -> Verb | None:
    """Parse what stands beside --help, so that the help shows the defaults of just this; None if that is not enough."""
    nowhere = StringIO()
    with redirect_stdout(nowhere), redirect_stderr(nowhere):
        try:
            return _parse(arguments) if arguments else None
        except (SystemExit, TdsmError):
            return None


def _fail(error: BaseException, arguments: list[str]) -> int:
    """Say what ended a command, in one line, and return its code; what nobody foresaw keeps its traceback."""
    if isinstance(error, BrokenPipeError):  # who read what we print has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, KeyboardInterrupt):
        way = "with --resume and the same --run" if arguments[0] in ("demo", "train") else "by the same command"
        return _say(f"interrupted; continue {way}.", 130)
    if isinstance(error, TdsmError):
        return _say(str(error), error.exit_code)
    if isinstance(error, ValidationError):
        return _say(f"{wrong_entries(error, without=UNNAMED)}.", UsageError.exit_code)
    if isinstance(error, ImportError) and (words := missing_words(error)) is not None:
        return _say(words, UsageError.exit_code)
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY):
        first = str(error).splitlines()[0] if str(error) else "the system gives no more"
        return _say(f"out of memory ({first}). Use smaller batches, maps or fewer images.", ResourceError.exit_code)
    if isinstance(error, OSError):
        return _say(str(error), ResourceError.exit_code)
    raise error


def _say(words: str, code: int) -> int:
    print(f"tdsm: {words}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"tdsm: warning: {message}", file=sys.stderr, flush=True)
