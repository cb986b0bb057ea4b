"""Arguments and options that several verbs of the command line share. Imports nothing heavy."""

import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperCommand

from actors.errors import UsageError
from actors.foreign.text import shown
from actors.redaction import redact
from launch.settings.verbs import DPO, PREFERENCE, SFT, SWEEP, TRAIN, VERBS, Verb


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
        from launch.settings.fields import print_settings

        print(ctx.get_help())
        print_settings(VERBS[str(ctx.info_name)].model)
        raise typer.Exit


def _presets(*verbs: Verb) -> str:
    """List the presets of verbs, each with its verb if there are several."""
    names = {verb.name: ", ".join(sorted(path.stem for path in verb.presets.glob("*.yaml"))) for verb in verbs}
    return "; ".join(f"{verb}: {found}" if len(names) > 1 else found for verb, found in names.items() if found)


PRESETS = f"a YAML file or a preset: {_presets(TRAIN)}"
Config = Annotated[str, Argument(metavar="CONFIG", help=PRESETS)]
StageConfig = Annotated[
    str, Argument(metavar="CONFIG", help=f"a YAML file or a preset ({_presets(SFT, PREFERENCE, DPO)})")
]
AnyConfig = Annotated[
    str, Argument(metavar="CONFIG", help=f"a YAML file or a preset ({_presets(TRAIN, SFT, PREFERENCE, DPO)})")
]
Overrides = Annotated[
    list[str] | None, Argument(metavar="KEY=VALUE", help="override settings, for example replay.max_staleness=2")
]
Output = Annotated[Path | None, Option(metavar="DIR", help="directory of the run; unset: runs/NAME")]
Resume = Annotated[
    str | None,
    Option(
        "--resume",
        metavar="[CHECKPOINT]",
        help="continue from the run's last checkpoint, from another one (a path), or from `last-good`: the newest that "
        "verifies",
    ),
]
_CHECKPOINT = re.compile(r"last-good|(.*/)?update-\d+/?")
LATEST = "latest"
"""Value of a `--resume` that has none."""
DryRun = Annotated[bool, Option("--dry-run", help="print what would be submitted, then exit")]
Help = Annotated[
    bool, Option("--help", callback=_print_help, is_eager=True, help="show this and every setting, then exit")
]
Debug = Annotated[bool, Option("--debug", help="show the full traceback of an error")]
Version = Annotated[
    bool, Option("--version", callback=_print_version, is_eager=True, help="print the version, then exit")
]


SAME_AS = {
    ("--output", "DIR"): "output",
    ("--generators", "N"): "generators.count",
    ("--model", "DIR"): "model.path",
    ("--best-of", "K"): "sampling.completions_per_prompt",
    ("--loss", "KIND"): "learner.loss.kind",
}
"""Options that stand for a setting of the same command, by name and placeholder."""


class OnceCommand(TyperCommand):
    """Refuse an option that is given twice with different values; say which value of a setting or variable counts."""

    def make_parser(self, ctx: Any) -> Any:
        """Return the parser, which counts an option's values before the last value is taken."""
        parser: Any = super().make_parser(ctx)
        parse = parser.parse_args

        def parse_once(args: list[str]) -> Any:
            given = list(args)
            found = parse(args)
            _refuse_repeats(ctx, given, found[0], found[2])
            return found

        parser.parse_args = parse_once
        return parser


def _refuse_repeats(ctx: Any, arguments: Sequence[str], values: Mapping[str, Any], order: Sequence[Any]) -> None:
    """Raise UsageError for what is given twice; `order` has a parameter as often as it was given."""
    single = {each for each in order if getattr(each, "is_flag", True) is False and not each.multiple}
    for option in single:
        own = _values_of(option.opts, arguments)
        if len(set(own)) > 1:
            raise UsageError(_twice(option.opts[-1], own))
    pairs = [each for each in ctx.command.params if str(each.metavar).endswith(("KEY=VALUE", "NAME=VALUE"))]
    for parameter in pairs:
        keys = {SAME_AS.get((each.opts[-1], each.metavar)): str(values[each.name]) for each in single}
        taken = {key: value for key, value in keys.items() if key is not None}
        _tell_repeats(values.get(parameter.name) or (), taken)


def _tell_repeats(entries: Sequence[str], options: Mapping[str, str]) -> None:
    """Say which value of a setting counts, as scripts put settings behind their own; `options` stand for settings.

    Raises UsageError for a setting that differs from the option that stands for it.
    """
    given: dict[str, list[str]] = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        key = name.strip()
        if equals and options.get(key, value) != value:
            raise UsageError(_twice(key, [redact(each, key) for each in (options[key], value)]))
        if equals:
            given.setdefault(key, []).append(redact(value, key))
    for key, values in given.items():
        if len(set(values)) > 1:
            told = f"note: {key} is given as {', then '.join(values)}; the last counts"
            print(shown(told), file=sys.stderr)


def _twice(name: str, values: Sequence[str]) -> str:
    given = " and ".join(dict.fromkeys(map(str, values)))
    return f"{name} is given twice, as {given}; leave one of them out"


def _values_of(names: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return every value that an option is given."""
    found = []
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if argument == "--":
            break
        if name in names:
            found.append(value if equals else arguments[place + 1] if place + 1 < len(arguments) else "")
    return found


def resumed(value: str | None) -> bool | str:
    """Return whether a run goes on from its last checkpoint, or from which one instead."""
    return value is not None if value in (None, LATEST) else value


def with_resume_values(arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments with a value for every `--resume`: the checkpoint that follows it, or LATEST.

    What follows may as well be a setting or a configuration; a checkpoint is known by its name.
    """
    rest = iter(arguments)
    for argument in rest:
        if argument != "--resume":
            yield argument
            continue
        following = next(rest, None)
        if following is not None and _CHECKPOINT.fullmatch(following):
            yield f"--resume={following}"
            continue
        yield f"--resume={LATEST}"
        if following is not None:
            yield from with_resume_values([following, *rest])


def refused(error: typer.TyperException, arguments: Sequence[str]) -> str:
    """Say what is wrong with a command line, what to write instead if it is known, and where to read on."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "offbeat"
    what = "the verbs, `offbeat VERB --help` their options" if path == "offbeat" else "what it takes"
    return f"{_wrong(error, arguments, context)}\n`{path} --help` lists {what}"


def _wrong(error: typer.TyperException, arguments: Sequence[str], context: Any) -> str:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    if context is None:
        return message
    option = getattr(error, "option_name", None)
    if option is not None and hasattr(error, "possibilities"):
        return _no_option(message, option, arguments, context)
    commands = getattr(context.command, "commands", None)
    if commands is not None:
        return _no_command(message, arguments, context, sorted(commands))
    parameter = getattr(error, "param", None)
    if parameter is not None and (given := _value_of(parameter.opts[-1], arguments)) is not None:
        allowed = re.sub(r"^(Input should be|.* is not one of) |, unable to.*|\.$", "", error.message)
        return (
            f"Invalid value for {parameter.opts[-1]!r}: given {redact(given, parameter.opts[-1])!r}; allowed: {allowed}"
        )
    pieces = " ".join(context.command.collect_usage_pieces(context)).removeprefix("[OPTIONS] ")
    usage = pieces.translate({ord("{"): None, ord("}"): None}).replace("......", "...")
    return f"{message.removesuffix('.')}; write `{context.command_path} {usage}`"


def _no_command(message: str, arguments: Sequence[str], context: Any, commands: Sequence[str]) -> str:
    """Say what to write for a word that is no command: a configuration needs its verb before it."""
    if context.parent is not None:
        return f"{message.removesuffix('.')}; allowed are {', '.join(commands)}"
    word = next((each for each in arguments if not each.startswith("-")), "")
    if word.endswith((".yaml", ".yml")):
        return f"{message.removesuffix('.')}; write `offbeat train {shlex.quote(word)}`"
    return f"No such command {word!r}; write --{word}" if word in ("help", "version") else message


def _no_option(message: str, option: str, arguments: Sequence[str], context: Any) -> str:
    """Say of an option that does not exist what to write instead, if it is known."""
    if option in ("-h", "-V", "-v"):
        return f"{message}; write {'--help' if option == '-h' else '--version'}"
    own = option.replace("_", "-")
    if own != option and any(own in parameter.opts for parameter in context.command.params):
        return f"No such option: {option}; write {own}"
    settings_of = [each for each in context.command.params if str(each.metavar).endswith("KEY=VALUE")]
    if not settings_of:
        return message
    from launch.settings.fields import settings
    from launch.settings.words import answer

    before = "--set " if "--set" in settings_of[0].opts else ""
    verb = VERBS.get(str(context.info_name), TRAIN)
    given = TRAIN if verb is SWEEP else verb  # a sweep's options set its runs
    known = [each for each in settings(given.model) if not before or each.section.startswith("learner")]
    whole = next((each for each in arguments if each.startswith(option) and not each.startswith("--")), option)
    option = whole.partition("=")[0] if not option.startswith("--") else option  # click reads `-lr` as `-l -r`
    hint = answer(option, redact(_value_of(option, arguments), option), known)
    if hint:
        return f"No such option: {option}; {hint.replace('write ', f'write {before}', 1)}"
    following = arguments[arguments.index(option) + 1 :] if option in arguments else []
    if following and following[0].endswith((".yaml", ".yml")):
        return f"{message}; the file comes first, without an option: `{context.command_path} {following[0]}`"
    if following and not following[0].startswith("-") and "=" in following[0]:
        return f"{message}; a setting needs none, write {redact(following[0])}"
    return message


def name_and_value(entry: str) -> tuple[str, str]:
    """Split NAME=VALUE of --env. Raises UsageError."""
    name, equals, value = entry.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise UsageError(f"--env {entry}: given {entry!r}; allowed: NAME=VALUE, for example --env HF_HOME=/data/hf")
    return name, value


def _value_of(option: str, arguments: Sequence[str]) -> str | None:
    """Return what follows an option, after `=` or as the next argument; None if nothing does."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option:
            following = arguments[place + 1] if place + 1 < len(arguments) else "--"
            return value if equals else None if following.startswith("--") or "=" in following else following
    return None
