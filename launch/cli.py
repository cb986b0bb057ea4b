"""The command line. Each verb parses, loads the configuration, then imports the module that does the work and calls it.

Exit codes: 0 success, 1 failed run, 2 wrong request, 130 after Ctrl-C. An error is one text on stderr; the traceback of
a failed run goes to `error.txt` in the run's directory. Imports nothing heavy at the top, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from actors.errors import INTERRUPTED, OffbeatError, UsageError, remedy_of
from actors.files import atomic_write
from actors.foreign.text import WHOLE, shown
from launch.begin.command import add_init
from launch.evaluate.command import chat, compare, evaluate
from launch.plan.command import plan
from launch.report.command import report
from launch.settings.options import (
    PRESETS,
    AnyConfig,
    Config,
    Debug,
    Help,
    OnceCommand,
    Output,
    Overrides,
    Resume,
    StageConfig,
    Version,
    refused,
    resumed,
    with_resume_values,
)
from launch.settings.verbs import TRAIN, VERBS
from launch.settings.yaml_text import quoted
from launch.submit.command import submit_app
from launch.sweep.command import sweep

if TYPE_CHECKING:
    from launch.settings.run import NamedConfig


class _Group(TyperGroup):
    """Let `main` say of every interrupt: Typer would end with code 130 in silence."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _aborting():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: Any) -> Any:
        with _aborting():
            return super().invoke(ctx)


@contextlib.contextmanager
def _aborting() -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        # asyncio's CancelledError: the second Ctrl-C of a run that is ending.
        if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "CancelledError":
            raise typer.Abort from None
        raise


app = typer.Typer(
    name="offbeat",
    cls=_Group,
    help="Asynchronous RLHF: vLLM generators, judges, a replay buffer with a staleness bound, a DeepSpeed learner.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(submit_app, name="submit")


@app.callback()
def _before_the_verb(debug: Debug = False, version: Version = False) -> None:
    """Accept options before the verb; `main` reads --debug itself."""


@app.command(add_help_option=False)
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = None,
    output: Output = None,
    generators: Annotated[
        int | None, Option(metavar="N", help="same as generators.count=N; a resumed run may change it")
    ] = None,
    help_: Help = False,
) -> int:
    """Train a policy with asynchronous RLHF."""
    given = [] if generators is None else [f"generators.count={generators}"]
    return _train("train", config, [*(overrides or []), *given], resume, output)


def _add_stage(name: str, summary: str) -> None:
    @app.command(name, help=summary, add_help_option=False)
    def run(
        config: StageConfig,
        overrides: Overrides = None,
        resume: Resume = None,
        output: Output = None,
        help_: Help = False,
    ) -> int:
        return _train(name, config, overrides, resume, output)


_add_stage("sft", "Fine-tune a model on demonstrations.")
_add_stage("dpo", "Train a model on given preferences, offline (DPO, IPO, SLiC).")
_add_stage("preference", "Train a preference model, a judge for `train`.")
app.command(add_help_option=False)(sweep)
app.command()(report)
add_init(app)


@app.command(add_help_option=False)
def data(
    arguments: Annotated[
        list[str] | None,
        Argument(metavar="[CONFIG.yaml|SOURCE] KEY=VALUE", help="a YAML file, or the data itself; then settings"),
    ] = None,
    output: Annotated[Path | None, Option(metavar="DIR", help="directory to write")] = None,
    help_: Help = False,
) -> int:
    """Prepare preference data: filter, de-duplicate, split, report."""
    from launch.data.config import file_and_overrides

    return VERBS["data"].run(_load("data", *file_and_overrides(arguments or []), output))


app.command()(evaluate)
app.command()(compare)
app.command()(chat)
app.command()(plan)


@app.command()
def replay(
    run: Annotated[Path, Argument(metavar="RUN", help="directory of a training run")],
    loss: Annotated[str | None, Option(metavar="KIND", help="another learner.loss.kind")] = None,
    max_staleness: Annotated[int | None, Option(metavar="N", min=0, help="skip groups of higher staleness")] = None,
    settings: Annotated[
        list[str] | None, Option("--set", metavar="KEY=VALUE", help="another learner.* setting; may be repeated")
    ] = None,
    start: Annotated[
        str | None, Option("--from", metavar="NAME", help="checkpoint, as update-0000100; unset: the run's start")
    ] = None,
    output: Annotated[Path | None, Option(metavar="DIR", help="unset: RUN/replay, RUN/replay-2, ...")] = None,
) -> int:
    """Retrain the learner of a run on the run's journal."""
    from launch.replay.recorded import recorded_config
    from launch.replay.replay import Request, replay_config, run_replay

    request = Request(run, loss, max_staleness, tuple(settings or ()), start, output)
    recorded = recorded_config(run)
    config = replay_config(recorded, request)
    return _run(config, lambda: run_replay(recorded, config, request))


@app.command()
def samples(
    run: Annotated[Path, Argument(metavar="RUN", help="directory of a training run, also of one that goes on")],
    last: Annotated[int, Option(metavar="N", min=1, help="samples to show, and answers before and after")] = 3,
    json: Annotated[bool, Option("--json", help="print one JSON object instead of lines")] = False,
) -> int:
    """Show what a run's policy answered, with the judge's scores."""
    from launch.samples import show_samples

    return show_samples(run, last, as_json=json)


@app.command()
def verify(
    run: Annotated[Path, Argument(metavar="RUN", help="directory of a run, of a checkpoint, or of a model of a run")],
    json: Annotated[bool, Option("--json", help="print one JSON object instead of lines")] = False,
) -> int:
    """Compare everything that a run has stored with its checksums."""
    from launch.verify import run_verify

    return run_verify(run, json=json)


@app.command()
def merge(
    adapter: Annotated[Path, Argument(metavar="ADAPTER", help="directory with adapter_config.json, as a run's final")],
    into: Annotated[Path, Argument(metavar="DIRECTORY", help="directory to write the model to")],
    base: Annotated[str | None, Option(metavar="MODEL", help="unset: the one that the adapter names")] = None,
) -> int:
    """Write a LoRA adapter and its base as one model."""
    from launch.merge import run_merge

    return run_merge(adapter, into, base)


@app.command()
def demo(overrides: Overrides = None, output: Output = None) -> int:
    """Compare a reward model with Nash-MD in a small world, on CPU."""
    from launch.demo.demo import run_demo

    return run_demo(overrides or [], output, lambda config: _run(config, lambda: TRAIN.run(config)))


@app.command(name="config")
def show_config(
    config: AnyConfig,
    overrides: Overrides = None,
    verb: Annotated[Literal["train", "sft", "preference", "dpo", "data"], Option(help="verb it configures")] = "train",
) -> int:
    """Check a configuration and print it with all defaults, as YAML."""
    from launch.settings.loading import dump_config

    print(dump_config(_load(verb, config, overrides)), end="")
    return 0


@app.command()
def doctor(
    config: Annotated[str | None, Argument(metavar="CONFIG", help=f"{PRESETS}; none: machine only")] = None,
    overrides: Overrides = None,
    gpus: Annotated[
        str | None, Option(metavar="NxGB", help="GPUs of the node that the run is for, such as 8x80; unset: these")
    ] = None,
    json: Annotated[bool, Option("--json", help="print one JSON object instead of lines")] = False,
) -> int:
    """Check whether this machine, or another node, can hold a run."""
    run_config = None if config is None else _load("train", config, overrides)
    from launch.doctor.checkup import run_doctor

    return run_doctor(run_config, json=json, gpus=gpus)


@functools.cache
def _command() -> Any:
    """Build the parser, once a process: that takes a twentieth of a second."""
    return typer.main.get_command(app)


for _each in (*app.registered_commands, *submit_app.registered_commands):
    _each.cls = OnceCommand


def main(arguments: Sequence[str] | None = None, *, told: bool = False) -> int:
    """Run one command and return its exit code; every error ends here as one text on stderr.

    `told`: the caller says of an interrupted run what it has saved.
    """
    arguments = list(with_resume_values(sys.argv[1:] if arguments is None else arguments)) or ["--help"]
    debug = "--debug" in arguments
    try:
        return int(_command()(arguments, prog_name="offbeat", standalone_mode=False) or 0)
    except (KeyboardInterrupt, typer.Abort):
        if not told:
            print("offbeat: interrupted", file=sys.stderr)
        return INTERRUPTED
    except typer.TyperException as error:
        return _fail(refused(error, arguments), 2)
    except Exception as error:
        if debug:
            print(shown(traceback.format_exc(), WHOLE, lines=True), file=sys.stderr)
        cause = _origin(error)
        code = cause.exit_code if isinstance(cause, OffbeatError) else 1
        expected = debug or isinstance(cause, OffbeatError)
        hint = [] if expected else ["run `offbeat --debug VERB ...` for the traceback"]
        notes = getattr(error, "__notes__", hint)
        return _fail("\n".join([_message(cause), *notes]), code)


def _load(
    verb: str, config: str | None, overrides: Sequence[str] | None, output: Path | None = None, *, resume: bool = False
) -> Any:
    """Load a verb's configuration; a resumed run may have been started before settings were renamed."""
    from launch.settings.loading import load_config

    extra = [] if output is None else [f"output={quoted(str(output))}"]
    return load_config(config, [*(overrides or []), *extra], VERBS[verb], older=resume)


def _train(name: str, config: str, overrides: Sequence[str] | None, resume: str | None, output: Path | None) -> int:
    run_config = _load(name, config, overrides, output, resume=resume is not None)
    if name != "train":
        from launch.doctor.checkup import require_room

        require_room(run_config.learner, run_config.cluster)
    return _run(run_config, lambda: VERBS[name].run(run_config, resume=resumed(resume)))


def _run(config: NamedConfig, run: Callable[[], int]) -> int:
    """Run a verb; leave the traceback of an unexpected end in the run's directory, if it exists."""
    try:
        return run()
    except UsageError:
        raise
    except Exception as error:
        path = config.directory / "error.txt"
        try:
            atomic_write(path, shown(traceback.format_exc(), WHOLE, lines=True))
        except OSError:
            raise error from None
        error.add_note(f"full traceback in {path}")
        raise


def _origin(error: BaseException) -> BaseException:
    """Return the error that a remote task raised; Ray wraps it, with both tracebacks in the message."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error


def _message(error: BaseException) -> str:
    if isinstance(error, OffbeatError):
        return str(error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    remedy = remedy_of(error)
    return text if remedy is None else f"{text}; {remedy}, then try again"


def _fail(message: str, code: int) -> int:
    print(shown(f"offbeat: error: {message}", WHOLE, lines=True), file=sys.stderr)
    return code
