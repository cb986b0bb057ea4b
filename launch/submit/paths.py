"""The paths of this machine that a configuration names, and which of them the place of a run cannot see.

All launchers use it. Reads the file system, and changes nothing.
"""

import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actors.data.config import SHIPPED_PROMPTS
from actors.judges.config import (
    EnsembleJudgeConfig,
    FunctionJudgeConfig,
    ModelJudgeConfig,
    ServedRewardModelJudgeConfig,
    SingleJudgeConfig,
)
from actors.settings import WORLD
from launch.settings.run import RunConfig

Kind = Literal["input", "code", "output"]
OWN_PACKAGES = ("actors", "learner", "launch")
OF_ONE_MACHINE = ("/tmp", "/var/tmp", "/dev/shm", "/run")
"""Folders that each machine has of its own."""
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")
_FILE_ENDINGS = (".jsonl", ".parquet", ".jinja")


@dataclass(frozen=True)
class LocalPath:
    """One path that a configuration names."""

    setting: str
    value: str  # as it was written
    path: Path  # absolute; symbolic links are not followed
    kind: Kind

    @property
    def is_relative(self) -> bool:
        return not Path(self.value).expanduser().is_absolute()


def local_paths(config: RunConfig, working_dir: Path) -> list[LocalPath]:
    """List the paths that `config` names: models, data, templates, the user's modules, and the output, which is last.

    Relative ones start from `working_dir`. Names of the hub, and what comes with Offbeat, are left out.
    """
    found = [
        LocalPath(setting, value, _absolute(value, working_dir), "input")
        for setting, value in _inputs(config)
        if value is not None and _is_local(value, working_dir)
    ]
    for setting, place in _modules(config):
        file = _module_file(place, working_dir)
        found += [LocalPath(setting, place, file, "code")] if file is not None else []
    output = str(config.directory)
    return [*found, LocalPath("output", output, _absolute(output, working_dir), "output")]


def _inputs(config: RunConfig) -> Iterator[tuple[str, str | None]]:
    for name in ("path", "reference", "tokenizer", "chat_template"):
        yield f"model.{name}", getattr(config.model, name)
    yield "prompts.source", config.prompts.source
    yield "prompts.validation_source", config.prompts.validation_source
    for setting, judge in _judges(config):
        if isinstance(judge, ModelJudgeConfig):
            yield f"{setting}.path", judge.path
        if isinstance(judge, ServedRewardModelJudgeConfig):
            yield f"{setting}.tokenizer", judge.tokenizer


def _modules(config: RunConfig) -> Iterator[tuple[str, str]]:
    for setting, judge in _judges(config):
        if isinstance(judge, FunctionJudgeConfig):
            yield f"{setting}.path", judge.path
    if config.sampling.environment is not None:
        yield "sampling.environment.path", config.sampling.environment.path


def _judges(config: RunConfig) -> Iterator[tuple[str, SingleJudgeConfig]]:
    judge = config.judging.judge
    if not isinstance(judge, EnsembleJudgeConfig):
        yield "judging.judge", judge
        return
    for number, member in enumerate(judge.members):
        yield f"judging.judge.members[{number}].judge", member.judge


def _absolute(value: str, working_dir: Path) -> Path:
    return Path(os.path.normpath(working_dir / Path(value).expanduser()))


def _is_local(value: str, working_dir: Path) -> bool:
    """Return whether a value is a path: it is there, or it cannot be a hub name, a shipped name or a text."""
    if value in (WORLD, *SHIPPED_PROMPTS):
        return False
    if "\n" in value or "{" in value or len(value) > 4096:  # a chat template as text
        return False
    if (working_dir / Path(value).expanduser()).exists():
        return True
    return value.startswith((".", "/", "~")) or value.endswith(_FILE_ENDINGS) or not _HUB_NAME.fullmatch(value)


def _module_file(place: str, working_dir: Path) -> Path | None:
    """Return the user's file of `package.module:name`; None if the working directory has none."""
    parts = place.partition(":")[0].split(".")
    if parts[0] in OWN_PACKAGES:
        return None
    base = working_dir.joinpath(*parts)
    return next((each for each in (base.with_suffix(".py"), base / "__init__.py") if each.is_file()), None)


# ---------------------------------------------------------------- what a place cannot see


def unseen_by_upload(
    paths: Sequence[LocalPath], root: Path, excluded: Collection[str], ignored: Collection[Path] = ()
) -> Iterator[str]:
    """Yield a sentence for each path that a job which runs in an upload of `root` does not have.

    Args:
        excluded: folders directly below `root` that are left out.
        ignored: paths that `.gitignore` leaves out.
    """
    for each in paths:
        inside = each.path.is_relative_to(root)
        if each.kind == "output":
            if each.is_relative:
                yield (
                    f"output: {each.value} is written to the job's copy of the working directory, which Ray removes "
                    "some time after the job; set output to an absolute path on storage that outlives it"
                )
        elif not each.is_relative and each.kind == "input":
            if inside or _of_one_machine(each.path):
                yield (
                    f"{each.setting}: {each.value} is a path of this machine; on another one give a path that all "
                    "nodes of the cluster see"
                )
        elif not inside:
            yield f"{each.setting}: {each.value} is outside the working directory {root}, which alone is uploaded"
        elif each.path != root and (top := each.path.relative_to(root).parts[0]) in excluded:
            yield (
                f"{each.setting}: {each.value} lies in {top}/, which is not uploaded; give a path that all nodes of "
                "the cluster see, or copy it to another folder"
            )
        elif each.path in ignored:
            yield f"{each.setting}: {each.value} is named by .gitignore, and Ray uploads nothing that it names"
        elif not each.path.exists():
            yield f"{each.setting}: {each.value} does not exist in the working directory {root}"


def unseen_by_nodes(paths: Sequence[LocalPath]) -> Iterator[str]:
    """Yield a sentence for each path that nodes with shared storage have each of their own, or that is not there."""
    for each in paths:
        if _of_one_machine(each.path):
            yield (
                f"{each.setting}: {each.path} is on this machine's own disk or memory, and other nodes do not see it; "
                "put it on shared storage"
            )
        elif each.kind == "input" and not each.path.exists():
            yield f"{each.setting}: {each.path} does not exist here"


def unseen_in_container(paths: Sequence[LocalPath]) -> Iterator[str]:
    """Yield a sentence for each path that cannot be mounted, for it does not exist."""
    for each in paths:
        if each.kind == "input" and not each.path.exists():
            yield f"{each.setting}: {each.path} does not exist here, so that nothing can be mounted there"


def unseen_in_pods(paths: Sequence[LocalPath], volumes: Sequence["Mount"]) -> Iterator[str]:
    """Yield a sentence for each path that is on none of the volumes; relative ones start from the first volume."""
    places = ", ".join(str(volume.path) for volume in volumes) or "none was given"
    for each in paths:
        if each.kind == "code":
            yield (
                f"{each.setting}: the module of {each.value} is a file of this machine; pods import it if it is in the "
                "image, or in the folder at which the first volume is mounted"
            )
            continue
        path = Path(each.value)
        on = next((volume for volume in volumes if each.is_relative or path.is_relative_to(volume.path)), None)
        if on is None:
            yield f"{each.setting}: {each.value} is on no volume ({places}); give one with --volume CLAIM:/PATH"
        elif each.kind == "output" and on.read_only:
            yield f"{each.setting}: {each.value} is on the read-only volume {on.path}; leave out its :ro"


def _of_one_machine(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in OF_ONE_MACHINE)


# ---------------------------------------------------------------- mounting


@dataclass(frozen=True)
class Mount:
    """A folder or file of this machine, at the same path in a container."""

    path: Path
    read_only: bool = False


def mounts(paths: Sequence[LocalPath], working_dir: Path, config: Path | None) -> list[Mount]:
    """Return what a container needs to see every path as this machine does.

    The working directory and the output may be written to; all else is read-only. `config` is the configuration file,
    None for a preset.
    """
    wanted = [Mount(working_dir)]
    wanted += [Mount(each.path) for each in paths if each.kind == "output"]
    inputs = [each.path for each in paths if each.kind != "output" and each.path.exists()]
    wanted += [Mount(place, True) for path in [*inputs, *filter(None, [config])] for place in _with_targets(path)]
    chosen: list[Mount] = []
    for each in wanted:
        if not any(each.path.is_relative_to(other.path) for other in chosen):
            chosen.append(each)
    return chosen


def _with_targets(path: Path) -> list[Path]:
    """Return a path, and the folders to which symbolic links at and directly below it lead, as in the hub's cache."""
    links = [path, *(path.iterdir() if path.is_dir() else ())]
    targets = {each.resolve() for each in links if each.is_symlink()}
    targets |= {path.resolve()}
    folders = sorted({target if target.is_dir() else target.parent for target in targets if target != path})
    return [path, *(folder for folder in folders if not folder.is_relative_to(path))]
