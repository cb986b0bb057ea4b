"""The command line. Each verb parses, loads the configuration, then imports what does the work and calls it.

Exit codes: 0 success, 1 a run that failed, 2 a wrong request, 130 after Ctrl-C. Errors are one clear text on stderr;
the traceback of a failed run goes to `error.txt` in the run's directory. Nothing heavy is imported at the top, so that
`--help` answers at once.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from actors.errors import OffbeatError, UsageError

if TYPE_CHECKING:
    from launch.settings.loading import Verb
    from launch.settings.run import NamedConfig, RunConfig

INTERRUPTED = 130

app = typer.Typer(
    name="offbeat",
    help="Asynchronous RLHF: vLLM generators, judges, a replay buffer with a staleness bound, a DeepSpeed learner.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
submit_app = typer.Typer(help="Starts a training run on a cluster from the same configuration.", rich_markup_mode=None)
app.add_typer(submit_app, name="submit")


@dataclass
class Options:
    """What the main command was given, for the error handler outside typer's context."""

    debug: bool = False


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"offbeat {version('offbeat')}")
        except PackageNotFoundError:
            print("offbeat (run from a source tree, not installed)")
        raise typer.Exit


def _print_help(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        from launch.settings.help import print_settings
        from launch.settings.verbs import verb_of

        print(ctx.get_help())
        print_settings(verb_of(str(ctx.info_name)).model)
        raise typer.Exit


Config = Annotated[
    str,
    typer.Argument(
        metavar="CONFIG",
        help="a YAML file or a preset: embedded, embedded-nash-md, embedded-bradley-terry, gsm8k, node-8gpu, "
        "cluster-2node",
    ),
]
StageConfig = Annotated[str, typer.Argument(metavar="CONFIG", help="a YAML file or a preset")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="settings on top of CONFIG, for example replay.max_staleness=2"),
]
Output = Annotated[Path | None, typer.Option(metavar="DIR", help="directory of the run; by default runs/NAME")]
Resume = Annotated[bool, typer.Option("--resume", help="go on from the run's last checkpoint")]
Help = Annotated[
    bool, typer.Option("--help", callback=_print_help, is_eager=True, help="show this and every setting, and stop")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print what would be submitted, and stop")]


@app.callback()
def _options(
    ctx: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="show the full traceback of an error")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version, and stop")
    ] = False,
) -> None:
    ctx.ensure_object(Options).debug = debug


@app.command(add_help_option=False)
def train(
    config: Config,
    overrides: Overrides = None,
    resume: Resume = False,
    output: Output = None,
    generators: Annotated[
        int | None, typer.Option(metavar="N", help="as generators.count=N; a resumed run may have more or fewer")
    ] = None,
    help_: Help = False,
) -> int:
    """Trains a policy with asynchronous RLHF."""
    given = [] if generators is None else [f"generators.count={generators}"]
    return _run_verb("train", config, [*(overrides or []), *given], resume, output)


@app.command(add_help_option=False)
def sft(
    config: StageConfig,
    overrides: Overrides = None,
    resume: Resume = False,
    output: Output = None,
    help_: Help = False,
) -> int:
    """Fine-tunes a model on demonstrations: the stage before preferences."""
    return _run_verb("sft", config, overrides, resume, output)


@app.command(add_help_option=False)
def dpo(
    config: StageConfig,
    overrides: Overrides = None,
    resume: Resume = False,
    output: Output = None,
    help_: Help = False,
) -> int:
    """Trains a model on given preferences, offline (DPO, IPO, SLiC)."""
    return _run_verb("dpo", config, overrides, resume, output)


@app.command(add_help_option=False)
def preference(
    config: StageConfig,
    overrides: Overrides = None,
    resume: Resume = False,
    output: Output = None,
    help_: Help = False,
) -> int:
    """Trains a preference model: Bradley-Terry, pairwise or skew-symmetric; a judge for `train`."""
    return _run_verb("preference", config, overrides, resume, output)


@app.command(add_help_option=False)
def data(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CONFIG.yaml|SOURCE] KEY=VALUE",
            help="a YAML file or the data, and settings on top, for example filters.max_gap=1",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="directory to write")] = None,
    help_: Help = False,
) -> int:
    """Prepares preference data: one form, filters, de-duplication, a split, and a report that balances."""
    from launch.data.config import DATA, file_and_overrides

    config = _load(*file_and_overrides(arguments or []), output, DATA)
    from launch.data.prepare import run_data

    return run_data(config)


@app.command()
def evaluate(
    config: Config,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(metavar="DIR", help="the policy; unset: model.path")] = None,
    best_of: Annotated[
        int | None, typer.Option(metavar="K", min=2, help="answers per prompt; unset: sampling.completions_per_prompt")
    ] = None,
    verifier: Annotated[
        list[str] | None, typer.Option(metavar="DIR", help="model of `offbeat dpo` that ranks them; may be repeated")
    ] = None,
    rank: Annotated[
        Literal["likelihood", "reward"],
        typer.Option(help="by the verifier's log-likelihood, or by its implicit reward against its reference"),
    ] = "likelihood",
    prompts: Annotated[int | None, typer.Option(metavar="N", help="unset: evaluation.prompts, at most all")] = None,
    threshold: Annotated[float, typer.Option(help="score from which an answer counts as correct")] = 1.0,
    max_pairs: Annotated[int, typer.Option(metavar="N", min=1, help="pairs per prompt")] = 8,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="where the figures go, as JSON")] = None,
    solutions: Annotated[Path | None, typer.Option(metavar="FILE", help="where the answers go, as JSONL")] = None,
    pairs: Annotated[
        Path | None, typer.Option(metavar="FILE", help="where pairs for `offbeat dpo` go, correct over incorrect")
    ] = None,
) -> int:
    """Samples a model's answers to prompts.source, judges them, and chooses among them by a verifier."""
    given = [] if model is None else [f"model.path={_quoted(model)}"]
    given += [] if best_of is None else [f"sampling.completions_per_prompt={best_of}"]
    run_config = _load(config, [*(overrides or []), *given], None)
    from launch.evaluate.evaluate import Request, run_evaluation

    request = Request(tuple(verifier or ()), rank, prompts, threshold, max_pairs, output, solutions, pairs)
    return run_evaluation(run_config, request)


@app.command()
def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="directory of a training run")],
    loss: Annotated[str | None, typer.Option(metavar="KIND", help="another learner.loss.kind")] = None,
    max_staleness: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="leave out groups that were older when they were consumed")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="another learner.* setting; may be repeated")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="NAME", help="checkpoint of the run, as update-0000100; unset: its start"),
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="unset: RUN/replay, RUN/replay-2, ...")] = None,
) -> int:
    """Trains the learner of a run again, on the batches of its journal: to the same weights, or to see what if."""
    from launch.replay.replay import Request, recorded_config, replay_config, run_replay

    request = Request(run, loss, max_staleness, tuple(settings or ()), start, output)
    recorded = recorded_config(run)
    config = replay_config(recorded, request)
    return _run(config, lambda: run_replay(recorded, config, request))


@app.command()
def demo(overrides: Overrides = None, output: Output = None) -> int:
    """Two routes through a small world: a Bradley-Terry reward's, which can be exploited, and Nash-MD's. On CPU."""
    from launch.demo.demo import run_demo

    def train(config: RunConfig) -> int:
        from launch.train import run_training

        return _run(config, lambda: run_training(config))

    return run_demo(overrides or [], output, train)


@app.command(name="config")
def show_config(
    config: StageConfig,
    overrides: Overrides = None,
    verb: Annotated[
        Literal["train", "sft", "preference", "dpo", "data"], typer.Option(help="the command that it configures")
    ] = "train",
) -> int:
    """Checks a configuration and prints it with every default filled in, as YAML."""
    from launch.settings.loading import dump_config
    from launch.settings.verbs import verb_of

    print(dump_config(_load(config, overrides, None, verb_of(verb))), end="")
    return 0


@app.command()
def doctor(
    config: Annotated[
        str | None, typer.Argument(metavar="CONFIG", help="a run's YAML file or preset; none: the machine alone")
    ] = None,
    overrides: Overrides = None,
    json: Annotated[bool, typer.Option("--json", help="print one JSON object instead of lines")] = False,
) -> int:
    """Says whether this machine can hold a run: packages, GPUs, memory, disk, ports, judge, model and prompts."""
    run_config = None if config is None else _load(config, overrides, None)
    from launch.doctor.checkup import run_doctor

    return run_doctor(run_config, json=json)


@submit_app.command(name="ray")
def submit_to_ray(
    config: Config,
    overrides: Overrides = None,
    address: Annotated[
        str | None,
        typer.Option(metavar="URL", help="the cluster's job server; unset: RAY_API_SERVER_ADDRESS, else this host"),
    ] = None,
    working_dir: Annotated[Path, typer.Option(metavar="DIR", help="source tree that is uploaded")] = Path(),
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="environment variable of the job; may be repeated")
    ] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> int:
    """Runs training as a Ray job and follows its log."""
    file = _checked_file(config, overrides)
    from launch.cluster.submit import submit_ray

    return submit_ray(
        file,
        overrides or [],
        address=address,
        working_dir=working_dir,
        dry_run=dry_run,
        resume=resume,
        env_vars=dict(_name_and_value(entry) for entry in env or []),
    )


@submit_app.command(name="slurm")
def submit_to_slurm(
    config: Config,
    overrides: Overrides = None,
    nodes: Annotated[int, typer.Option(help="hosts")] = 1,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs on each host; 0 for CPU only")] = 8,
    time: Annotated[str, typer.Option(metavar="LIMIT", help="minutes, HH:MM:SS or D-HH:MM:SS")] = "24:00:00",
    partition: Annotated[str | None, typer.Option(help="unset: the site's default")] = None,
    account: Annotated[str | None, typer.Option(help="unset: the site's default")] = None,
    resume: Resume = False,
    dry_run: DryRun = False,
) -> int:
    """Runs training as a Slurm batch job on a Ray cluster of its own."""
    file = _checked_file(config, overrides)
    from launch.cluster.submit import submit_slurm

    return submit_slurm(
        file,
        overrides or [],
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        time=time,
        partition=partition,
        account=account,
        dry_run=dry_run,
        resume=resume,
    )


@submit_app.command(name="compose")
def submit_to_compose(
    config: Config, overrides: Overrides = None, resume: Resume = False, dry_run: DryRun = False
) -> int:
    """Runs training with docker compose on this host."""
    file = _checked_file(config, overrides)
    from launch.cluster.submit import submit_compose

    return submit_compose(file, overrides or [], dry_run=dry_run, resume=resume)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; every error ends here as one text on stderr."""
    options = Options()
    try:
        arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
        return int(app(arguments, prog_name="offbeat", standalone_mode=False, obj=options) or 0)
    except (KeyboardInterrupt, typer.Abort):
        print("offbeat: interrupted", file=sys.stderr)
        return INTERRUPTED
    except typer.TyperException as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        return _fail(f"{message}\n`offbeat --help` lists the verbs, `offbeat VERB --help` their options", 2)
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        cause = _origin(error)
        code = cause.exit_code if isinstance(cause, OffbeatError) else 1
        expected = options.debug or isinstance(cause, OffbeatError)
        notes = getattr(error, "__notes__", [] if expected else [_DEBUG_HINT])
        return _fail("\n".join([_message(cause), *notes]), code)


_DEBUG_HINT = "run `offbeat --debug VERB ...` for the traceback"


def _load(
    config: str | None, overrides: Sequence[str] | None, output: Path | None, verb: Verb[Any] | None = None
) -> Any:
    """The configuration of `verb`, of `train` unless given."""
    from launch.settings.loading import TRAIN, load_config

    extra = [] if output is None else [f"output={_quoted(str(output))}"]
    return load_config(config, [*(overrides or []), *extra], verb or TRAIN)


def _quoted(text: str) -> str:
    """As YAML reads it back."""
    return f"'{text.replace(chr(39), chr(39) * 2)}'"


def _checked_file(config: str, overrides: Sequence[str] | None) -> Path:
    """The file to submit; a wrong setting is told here and not by a job that waited hours for its turn."""
    from launch.settings.loading import config_file

    _load(config, overrides, None)
    return config_file(config)


def _name_and_value(entry: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not equals or not name:
        raise UsageError(f"--env {entry}: given {entry!r}; allowed: NAME=VALUE, for example --env HF_HOME=/data/hf")
    return name, value


def _run_verb(name: str, config: str, overrides: Sequence[str] | None, resume: bool, output: Path | None) -> int:
    from launch.settings.verbs import runner_of, verb_of

    run_config = _load(config, overrides, output, verb_of(name))
    return _run(run_config, lambda: runner_of(name)(run_config, resume=resume))


def _run(config: NamedConfig, run: Callable[[], int]) -> int:
    """Runs a verb; an unexpected end leaves its traceback in the run's directory, where there is one."""
    try:
        return run()
    except UsageError:
        raise
    except Exception as error:
        path = config.directory / "error.txt"
        try:
            path.write_text(traceback.format_exc(), encoding="utf-8")
        except OSError:
            raise error from None
        error.add_note(f"full traceback in {path}")
        raise
    except BaseException as error:
        # asyncio's CancelledError: the second Ctrl-C of a run that is ending.
        if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "CancelledError":
            raise typer.Abort from None
        raise


def _origin(error: BaseException) -> BaseException:
    """The error a remote task raised, where Ray has wrapped it and put both tracebacks in the message."""
    while isinstance(cause := getattr(error, "cause", None), BaseException):
        error = cause
    return error


def _message(error: BaseException) -> str:
    if isinstance(error, OffbeatError):
        return str(error)
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _fail(message: str, code: int) -> int:
    print(f"offbeat: error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
