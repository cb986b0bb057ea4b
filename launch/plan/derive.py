"""Models of recorded runs, or of given numbers. Pure functions; each value says where it is from.

Must not read files or print.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

from actors.errors import UsageError
from actors.foreign.text import many
from launch.output.metrics import damaged_lines
from launch.plan.model import Generators, Judges, Learner, Model, Times, rank_speed
from launch.plan.prediction import predict
from launch.plan.recorded import Recorded
from launch.settings.run import RunConfig
from launch.settings.yaml_text import leaves

BATCHING_CPU, BATCHING_GPU = 4.0, 16.0
EFFICIENCY = 0.9
DRIVER_SECONDS = 0.001
SPREAD = 0.3
ENOUGH = 4  # values to draw from
CALIBRATIONS = 4
CALIBRATION_GROUPS = 20_000

FOLLOWED = (
    *("name", "output", "updates", "seed", "replay", "checkpoints", "journal", "samples", "watchdog", "cluster"),
    *("generators.count", "generators.min_count", "generators.max_running_prompts", "generators.cpus"),
    *("generators.gpus", "learner.ranks", "learner.gpus_per_rank", "learner.cpus_per_rank", "judging.count"),
    *("evaluation.prompts", "evaluation.every_updates", "divergence"),
)
"""Settings whose effect the model knows, or which have none on its figures."""
MOST = 1e9
"""Largest number that a user may give: of seconds, thirty years."""
MOST_GPUS = 100_000
"""Most GPUs to split; a longer search takes minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Numbers that the user gave instead of measured ones, by the name of the command's option. None: not given."""

    generator_seconds: float | None = None
    generator_spread: float | None = None
    batching: float | None = None
    update_seconds: float | None = None
    efficiency: float | None = None
    publish_seconds: float | None = None
    take_seconds: float | None = None
    judge_seconds: float | None = None
    driver_seconds: float | None = None
    cores: float | None = None

    def refuse_nonsense(self) -> None:
        """Raise UsageError for a number that no run can have."""
        positive = ("generator_seconds", "update_seconds", "efficiency", "cores")
        for each in fields(self):
            value, option = getattr(self, each.name), f"--{each.name.replace('_', '-')}"
            if value is None:
                continue
            least, word = (1.0, "at least 1") if each.name == "batching" else (0.0, "0 or more")
            if each.name in positive:
                word = "above 0"
            if not least <= value <= MOST or (each.name in positive and value == 0.0):
                raise UsageError(f"{option}: given {value:g}; allowed: {word}, and at most {MOST:g}")
        if self.efficiency is not None and self.efficiency > 1.0:
            raise UsageError(f"--efficiency: given {self.efficiency:g}; allowed: above 0 and at most 1")


@dataclass(frozen=True, slots=True)
class Value:
    """One parameter of the model, for the reader."""

    name: str
    value: float
    source: str
    """`measured`, `given` or `assumed`."""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """A model with the sources of its parameters."""

    model: Model
    values: tuple[Value, ...]
    efficiency: float
    fixed_seconds: float = 0.0
    """Seconds of an update, however many prompts it has."""
    notes: tuple[str, ...] = ()
    """Effects that the model leaves out, a sentence each."""


@dataclass(slots=True)
class _Sources:
    given: Given
    values: list[Value] = field(default_factory=list)

    def pick(self, name: str, measured: float | None, assumed: float | None = None, note: str = "") -> float:
        """Return the given number, else the measured one, else the assumed one, and note which."""
        given = getattr(self.given, name)
        for value, source in ((given, "given"), (measured, "measured"), (assumed, "assumed")):
            if value is not None:
                self.values.append(Value(name, value, source, note if source != "given" else ""))
                return float(value)
        raise UsageError(
            f"--{name.replace('_', '-')} is missing; give it (seconds), or the directory of a finished run to measure"
        )


def from_numbers(given: Given, config: RunConfig) -> Derived:
    """Make a model of given numbers alone; raises UsageError if the generators' or the learner's are missing."""
    sources = _Sources(given)
    group = sources.pick("generator_seconds", None, note="of a group alone")
    spread = sources.pick("generator_spread", None, SPREAD, "standard deviation over mean")
    batching = sources.pick("batching", None, min(BATCHING_GPU, float(config.generators.max_running_prompts)))
    update = sources.pick("update_seconds", None)
    efficiency = sources.pick("efficiency", None, EFFICIENCY)
    generators = Generators(
        group=Times(group, spread),
        batching=batching,
        take_seconds=sources.pick("take_seconds", None, 0.0),
    )
    learner = Learner(update=Times(update), publish_seconds=sources.pick("publish_seconds", None, 0.0))
    judges = Judges(
        seconds=sources.pick("judge_seconds", None, 0.0),
        driver_seconds=sources.pick("driver_seconds", None, DRIVER_SECONDS),
    )
    model = Model(replay=config.replay, updates=config.updates, generators=generators, learner=learner, judges=judges)
    model = replace(configured(model, config), cores=given.cores)
    return Derived(model=model, values=tuple(sources.values), efficiency=efficiency)


def from_run(run: Recorded, given: Given) -> Derived:
    """Make the model of a recorded run with its own settings, to compare its prediction with the measured figures."""
    sources, config = _Sources(given), run.config
    sampled = run.summary.get("judging", {}).get("groups") or run.sampled
    learner = Learner(
        update=Times.of(
            sources.pick("update_seconds", run.budget("learner", "training") / run.updates, note="as the driver sees"),
            () if given.update_seconds is not None or len(run.update_seconds) < ENOUGH else run.update_seconds,
        ),
        publish_seconds=sources.pick("publish_seconds", _over(run.publishing, run.versions)),
        pause_seconds=_pause(run, sources),
    )
    takes = run.config.generators.count * run.versions
    ledger = run.summary["ledger"]
    failed = sum(number for reason, number in ledger["returned"].items() if reason not in ("stale", "restart"))
    generators = Generators(
        group=_group_times(run, sources),
        batching=sources.pick("batching", None, BATCHING_GPU if config.learner.gpus_per_rank else BATCHING_CPU),
        take_seconds=sources.pick("take_seconds", _over(run.updating, takes)),
        failure_share=failed / ledger["leased"] if ledger["leased"] else 0.0,
    )
    judges = Judges(
        seconds=sources.pick("judge_seconds", _over(run.budget("judge", "judging"), sampled)),
        driver_seconds=sources.pick("driver_seconds", None, DRIVER_SECONDS, "of its core for each group"),
    )
    model = Model(replay=config.replay, updates=1, generators=generators, learner=learner, judges=judges)
    model = replace(configured(model, config), updates=run.updates, cores=given.cores)
    efficiency = sources.pick("efficiency", None, EFFICIENCY, "of each rank after the first")
    rate = run.measured().sampling_rate if given.generator_seconds is None else None
    if rate is not None or given.cores:
        model = calibrated(model, rate, _seconds(run, given) if given.cores else {})
    if given.generator_seconds is None:
        group = Value("generator_seconds", model.generators.group.mean, "measured", "of a group alone, by `batching`")
        sources.values.insert(0, group)
    return Derived(model=model, values=tuple(sources.values), efficiency=efficiency, notes=_notes(run, given))


def calibrated(model: Model, sampling_rate: float | None, seconds: Mapping[str, float]) -> Model:
    """Return `model` with the seconds of each piece of work that lead to what a run measured.

    `sampling_rate` (groups/s) is a generator's; None: its groups take what they do. `seconds` are a whole run's by
    activity, longer than alone if cores were short: the learner's training, publishing and other, and the generators'
    updating, summed over them. An activity without seconds takes what it does.
    """
    for _ in range(CALIBRATIONS):
        found = predict(model, most_groups=CALIBRATION_GROUPS)
        generators, learner = model.generators, model.learner
        spent = {name: share * found.seconds for name, share in found.learner.items()}
        spent["updating"] = found.generator["updating"] * found.seconds * generators.count
        factors = {name: seconds[name] / spent[name] if spent[name] else 1.0 for name in seconds}
        if sampling_rate:
            generators = replace(generators, group=generators.group.times(found.sampling_rate / sampling_rate))
        learner = replace(
            learner,
            update=learner.update.times(factors.get("training", 1.0)),
            publish_seconds=learner.publish_seconds * factors.get("publishing", 1.0),
            pause_seconds=learner.pause_seconds * factors.get("other", 1.0),
        )
        generators = replace(generators, take_seconds=generators.take_seconds * factors.get("updating", 1.0))
        model = replace(model, generators=generators, learner=learner)
    return model


def _seconds(run: Recorded, given: Given) -> dict[str, float]:
    """Return what `run` spent on each activity whose seconds are not given."""
    measured = {
        "other": (None, run.measured().learner["other"] * run.seconds),
        "training": (given.update_seconds, run.budget("learner", "training")),
        "publishing": (given.publish_seconds, run.publishing),
        "updating": (given.take_seconds, run.updating),
    }
    return {activity: spent for activity, (own, spent) in measured.items() if own is None}


def configured(model: Model, config: RunConfig) -> Model:
    """Return `model` with what `config` settles without a measurement."""
    generators = replace(
        model.generators,
        count=config.generators.count,
        slots=config.generators.max_running_prompts,
        cpus=config.generators.cpus,
    )
    return replace(
        model,
        replay=config.replay,
        updates=config.updates,
        generators=generators,
        learner=replace(model.learner, cpus=config.learner.ranks * config.learner.cpus_per_rank),
        judges=replace(model.judges, count=config.judging.count),
        evaluation_every=config.evaluation.every_updates if config.evaluation.prompts else 0,
        evaluation_groups=config.evaluation.prompts,
    )


def under(derived: Derived, measured: RunConfig, wanted: RunConfig) -> Derived:
    """Return the model of a run with the settings `wanted`, made from one of a run with the settings `measured`.

    An update's seconds, but for the fixed ones, grow with its prompts and shrink with the ranks; all others stay.
    """
    faster = rank_speed(wanted.learner.ranks, derived.efficiency) / rank_speed(
        measured.learner.ranks, derived.efficiency
    )
    larger = wanted.replay.prompts_per_update / measured.replay.prompts_per_update
    model = configured(derived.model, wanted)
    seconds, fixed = model.learner.update.mean, derived.fixed_seconds
    share = fixed / seconds if seconds else 0.0
    update = model.learner.update.times(share + (1.0 - share) * larger / faster)
    model = replace(model, learner=replace(model.learner, update=update))
    notes = derived.notes
    if larger != 1.0 and not fixed:
        notes += ("an update is taken to last as long per prompt, whatever replay.prompts_per_update is",)
    if unknown := sorted(differences(measured, wanted)):
        notes += (f"seconds stay as measured, although these settings differ: {', '.join(unknown)}",)
    return replace(derived, model=model, notes=notes)


def differences(one: RunConfig, other: RunConfig) -> set[str]:
    """Return the settings that differ and whose effect on seconds the model does not know."""
    found = set()
    first, second = (dict(leaves(config.model_dump(mode="json"))) for config in (one, other))
    for key in first.keys() | second.keys():
        if first.get(key) != second.get(key) and not any(f"{key}.".startswith(f"{known}.") for known in FOLLOWED):
            found.add(key)
    return found


def _group_times(run: Recorded, sources: _Sources) -> Times:
    """Return the shape of a group's seconds; the mean is a first guess, unless it is given."""
    given = sources.given
    if given.generator_seconds is not None:
        sources.pick("generator_seconds", None, note="of a group alone")
    rate = run.measured().sampling_rate
    mean = given.generator_seconds or (1.0 / rate if rate else 1.0)
    if given.generator_spread is None and len(run.lengths) >= ENOUGH:
        times = Times.of(mean, run.lengths)
        centre = sum(run.lengths) / len(run.lengths)
        variance = sum((length - centre) ** 2 for length in run.lengths) / len(run.lengths)
        note = f"lengths of the longest answers of {many(len(run.lengths), 'group')}, in a random order"
        sources.pick("generator_spread", variance**0.5 / centre if centre else 0.0, note=note)
        return times
    return Times(mean, sources.pick("generator_spread", None, SPREAD, "standard deviation over mean"))


def _pause(run: Recorded, sources: _Sources) -> float:
    """Return the rest of the learner's time, for each update."""
    pause = run.measured().learner["other"] * run.seconds / run.updates
    note = "per update: evaluation by enumeration, checkpoints, the driver between updates"
    sources.values.append(Value("pause_seconds", pause, "measured", note))
    return pause


def _over(seconds: float, number: float) -> float:
    return seconds / number if number else 0.0


def _notes(run: Recorded, given: Given) -> tuple[str, ...]:
    config, notes = run.config, []
    if config.learner.gpus_per_rank == 0.0 and given.cores is None:
        notes.append(
            "the run was on CPUs: its seconds hold what its processes took from each other; --cores N lets more "
            "of them share N cores"
        )
    if config.deterministic:
        notes.append("a deterministic run deals leases in a fixed order, which the model does not")
    if config.opponent is not None and config.opponent.max_staleness is not None:
        notes.append("opponents that are drawn later than the policy's answers are left out")
    if run.summary["status"] != "completed":
        notes.append(f"the run is {run.summary['status']}: what it did at its end is measured with the rest")
    if run.damaged:
        notes.append(damaged_lines(f"{run.name}/metrics.jsonl", run.damaged))
    return tuple(notes)
