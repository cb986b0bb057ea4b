"""Detect divergence: compare figures of updates and evaluations with a band, and act once they leave it.

The decision is a pure state machine over figures; `DivergenceGuard` acts on it. Knows neither loop nor Ray.
"""

import math
import statistics
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from actors.errors import RunError, writing
from actors.files import write_json_lines
from launch.settings.run import BandConfig
from learner.backend import checkpoints

MEDIAN_OF = 100
"""Updates whose gradient norms make the running median."""
ENOUGH_NORMS = 20
"""Gradient norms before their median means anything."""
EVALUATION_KL = "kl"
"""KL to the reference on an evaluation's completions."""
_KL = ("kl_players", "kl_chosen", "kl_rejected")
FIGURES = ("loss", "grad_norm", *_KL)
"""Figures of an update that are read, if its loss has them."""


class DivergedError(RunError):
    """A run diverged, and the latest checkpoint is again one from before."""


@dataclass(frozen=True, slots=True)
class Departure:
    """A figure that left the band."""

    figure: str
    value: float
    limit: float
    band: str  # the setting that made the limit, with its value
    update: int  # of the newest measurement
    updates: int  # measurements in a row outside the band, so far
    policy: int
    """Updates of the first policy outside the band. Figures of an update are measured before its step."""
    batches: Sequence[tuple[int, Sequence[Any]]] = field(default=(), compare=False, repr=False)
    """The newest batches, by number of update."""

    def describe(self) -> str:
        """Say which figure left which band at which update."""
        times = "" if self.updates == 1 else f", for {self.updates} updates in a row"
        if not math.isfinite(self.value):
            return f"{self.figure} is {self.value} at update {self.update}{times}"
        return f"{self.figure} is {self.value:.4g} at update {self.update}, over {self.limit:.4g}{times} ({self.band})"


class DivergenceWatch:
    """Compares figures with the band.

    A departure is due once a figure of `divergence.updates` updates in a row, or of one evaluation, was outside; it
    comes again only after that figure has been inside.
    """

    def __init__(self, band: BandConfig, max_kl: float | None = None) -> None:
        self._band, self._max_kl = band, max_kl
        self._norms: deque[float] = deque(maxlen=MEDIAN_OF)
        self._outside: dict[str, Departure] = {}
        self._batches: deque[tuple[int, Sequence[Any]]] = deque(maxlen=band.updates)
        self._due: Departure | None = None

    @property
    def outside(self) -> Sequence[Departure]:
        """The figures whose newest measurement is outside the band."""
        return tuple(self._outside.values())

    @property
    def updates_outside(self) -> int:
        """Updates in a row of the figure that has been outside longest; an evaluation counts as one."""
        return max((each.updates for each in self.outside), default=0)

    def take(self) -> Departure | None:
        """Return a departure that became due since the last call, with the newest batches."""
        due, self._due = self._due, None
        return None if due is None else replace(due, batches=tuple(self._batches))

    def update(self, update: int, figures: Mapping[str, float], items: Sequence[Any] = ()) -> None:
        """Compare the figures of update number `update`, from 1, whose batch was `items`."""
        if items:
            self._batches.append((update, items))
        for name, value in figures.items():
            self._compare(name, value, update, update - 1, self._band.updates)
        norm = figures.get("grad_norm", 0.0)
        if norm > 0.0 and math.isfinite(norm):  # a batch of ties has no gradient
            self._norms.append(norm)

    def evaluation(self, kl: float, update: int) -> None:
        """Compare the KL of an evaluation of the policy after `update` updates."""
        self._compare(EVALUATION_KL, kl, update, update, 1)

    def _compare(self, figure: str, value: float, update: int, policy: int, due_after: int) -> None:
        limit, band = self._limit(figure)
        if math.isfinite(value) and abs(value) <= limit:
            self._outside.pop(figure, None)
            return
        before = self._outside.get(figure)
        first, count = (policy, 1) if before is None else (before.policy, before.updates + 1)
        now = self._outside[figure] = Departure(figure, value, limit, band, update, count, first)
        if count == due_after and self._due is None:
            self._due = now

    def _limit(self, figure: str) -> tuple[float, str]:
        """Return the largest allowed size of a figure, infinite if there is none, and the setting it is from."""
        band = self._band
        if figure == "loss":
            return _or_infinite(band.max_loss), f"divergence.max_loss {band.max_loss}"
        if figure == "grad_norm":
            if band.max_grad_norm_ratio is None or len(self._norms) < ENOUGH_NORMS:
                return math.inf, ""
            median, ratio = statistics.median(self._norms), band.max_grad_norm_ratio
            return ratio * median, f"divergence.max_grad_norm_ratio {ratio:g} times the running median {median:.3g}"
        return _or_infinite(self._max_kl), f"divergence.max_kl {self._max_kl}"


def _or_infinite(limit: float | None) -> float:
    return math.inf if limit is None else limit


def figures_of(stats: Any) -> dict[str, float]:
    """Return the figures of one update that are compared, without those that its loss does not have."""
    values = {name: getattr(stats, name, None) for name in FIGURES}
    return {name: value for name, value in values.items() if value is not None}


class DivergenceGuard:
    """Does what `divergence.action` says once a departure is due."""

    def __init__(self, action: str, root: Path, failed_batches: Path, say: Callable[[str], None]) -> None:
        self._action, self._root, self._failed_batches, self._say = action, root, failed_batches, say

    async def heed(self, departure: Departure, save: Callable[[], Awaitable[None]]) -> None:
        """Keep the departure's batches, then warn, stop or go back.

        Raises RunError to stop, once `save` has made a checkpoint; DivergedError if the latest is one from before.
        """
        saved = self._keep(departure.batches)
        text = f"the run diverges: {departure.describe()}{saved}"
        remedy = "lower learner.optimizer.lr, or widen the band"
        if self._action == "warn":
            self._say(f"warning: {text}; {remedy}")
            return
        if self._action == "stop":
            await save()
            good = checkpoints.newest_before(self._root, departure.policy)
            back = f"; to go back, write {good.name} into {self._root / checkpoints.POINTER}" if good else ""
            raise RunError(f"{text}; a checkpoint of it stands, and --resume goes on from there{back}; {remedy}")
        good = checkpoints.go_back(self._root, departure.policy)
        if good is None:
            raise RunError(f"{text}; there is no checkpoint from before to go back to; {remedy} and start a new run")
        raise DivergedError(
            f"{text}; the latest checkpoint is now {good}, from before, and --resume goes on from there; {remedy}"
        )

    def _keep(self, batches: Sequence[tuple[int, Sequence[Any]]]) -> str:
        paths = [self._failed_batches / f"diverged-update-{update:06d}.jsonl" for update, _ in batches]
        for path, (_, items) in zip(paths, batches, strict=True):
            with writing(path, "then use --resume"):
                write_json_lines(path, (asdict(item) for item in items))
        if not paths:
            return ""
        return f"; its batch is in {paths[-1]}" + (
            f", and those before it from {paths[0].name} on" if paths[1:] else ""
        )
