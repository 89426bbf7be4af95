"""The command line: `palmtop export | quantize | verify | run | bench | inspect | report | doctor`.

One module a verb, each with `add_parser(verbs)` and `run(arguments, console) -> exit code`. Results go to stdout (with
`--json`: one JSON document and nothing else), everything meant for eyes on the way there to stderr.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import importlib
import json
import logging
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

from ...runtime.errors import PalmtopError, RequestError
from .console import Console

VERBS = ("export", "quantize", "verify", "run", "bench", "inspect", "report", "doctor")

EXIT_CODES = """exit codes:
  0  done, and parity holds
  1  an artifact does not match the reference, or the golden vectors
  2  the request is wrong: unknown task, missing file, bad option
  3  the bundle or checkpoint is damaged or not trusted
  4  the model cannot be expressed in a target
"""


def command() -> NoReturn:
    """The `palmtop` script and `python -m palmtop.export`: run the command line, and end the process.

    At once: what was registered for the exit is called and what was said is written out, but the modules of torch,
    which nobody needs any more, are not taken down (a fifth of a second).
    """
    code = main()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it, or it is closed
            stream.flush()
    os._exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    argv = sys.argv[1:] if argv is None else list(argv)
    console = Console(json_output="--json" in argv, debug="--debug" in argv)
    try:
        arguments = _parser(argv[:1] if argv and argv[0] in VERBS else VERBS).parse_args(argv)
        _quiet_libraries(console.debug)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, _terminate)
        return arguments.run(arguments, console)
    except PalmtopError as error:
        return _fail(console, error, error.exit_code, str(error))
    except KeyboardInterrupt as error:
        return _fail(console, error, 130, "Interrupted. Nothing was left behind.")
    except BrokenPipeError:
        # The reader of our output (head, less) has seen enough; what Python flushes at its end must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except MemoryError as error:
        return _fail(console, error, 2, "Out of memory. Remedy: a machine with more, or a smaller --max-length.")
    except OSError as error:
        return _fail(console, error, 2, f"{error.strerror or error}: {error.filename or ''}".rstrip(": "))
    except Exception as error:
        what = str(error).strip().splitlines() or [""]
        text = (
            f"This is a bug in palmtop, or something it does not know: {type(error).__name__}: {what[0][:400]}\n"
            "Run again with --debug for the traceback, and report it."
        )
        return _fail(console, error, 70, text)


def _fail(console: Console, error: BaseException, code: int, message: str) -> int:
    if console.debug:
        traceback.print_exception(error)
    if console.json_output:
        print(json.dumps({"error": {"kind": type(error).__name__, "exit_code": code, "message": message}}))
    else:
        console.error(message)
    return code


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM unwinds like Ctrl-C, so that an interrupted export removes what it wrote."""
    raise KeyboardInterrupt


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=110)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any):
        super().__init__(**options, allow_abbrev=False)  # an abbreviation in a script means another option one day

    def error(self, message: str) -> NoReturn:
        raise RequestError(f"{message}\nSee: {self.prog} --help")


def _parser(known: Sequence[str] = VERBS) -> argparse.ArgumentParser:
    """Of these verbs alone: a command imports what it needs, not what the others do."""
    parser = _Parser(
        prog="palmtop",
        description="One checkpoint in; verified ONNX, Core ML and ExecuTorch artifacts out, in one bundle for apps.",
        epilog=EXIT_CODES,
        formatter_class=_Formatter,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    common = _Parser(add_help=False)
    common.add_argument("--json", action="store_true", help="one JSON document on stdout, no progress")
    common.add_argument("--debug", action="store_true", help="show tracebacks and what libraries say")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True, parser_class=_Parser)
    for verb in known:
        module = importlib.import_module(f".{verb}", __name__)
        sub = verbs.add_parser(
            verb, parents=[common], help=module.HELP, description=module.__doc__, formatter_class=_Formatter
        )
        sub.epilog = getattr(module, "EPILOG", None)
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


class _Version(argparse.Action):
    def __call__(self, *_: object, **__: object) -> None:
        from importlib.metadata import version

        print(f"palmtop {version('palmtop')}")
        raise SystemExit(0)


def _quiet_libraries(debug: bool) -> None:
    """Exporters announce every experiment and every version drift; `palmtop doctor` says what matters of it."""
    if debug:
        logging.basicConfig(level=logging.INFO)
        logging.getLogger("palmtop").setLevel(logging.DEBUG)
        return
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
