"""Lines against an axis, with intervals: the curves of a run, of several runs, and win rate against KL."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from launch.report.drawing import svg
from launch.report.drawing.series import Point, Scale, number, running_mean, scale_of, thinned, whole_scale

WIDTH, HEIGHT = 400.0, 224.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 12.0, 12.0, 38.0
DOTTED = 40
"""Most points of a line that are marked one by one."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot; `bounds` holds the interval [low, high] of some of its points, by x."""

    label: str
    points: Sequence[Point]
    colour: int = 0
    bounds: dict[float, tuple[float, float]] = field(default_factory=dict)
    noisy: bool = False
    """Draw the points faint, and their running mean over them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Content of a plot."""

    title: str
    note: str = ""  # what is measured, and its unit
    lines: Sequence[Line]
    x_label: str = "update"
    updates: bool = True  # x are whole numbers
    level: tuple[float, str] | None = None
    """A value that matters, with what it means: it is drawn as a dashed line."""
    most: int = 600
    """Points of one line; fewer where many share a plot."""


def plot_figure(plot: Plot) -> str:
    """Return a plot as a figure; every line must have points."""
    lines = [_thin(line, plot.most) for line in plot.lines]
    xs = [x for line in lines for x, _ in line.points]
    values = [y for line in lines for _, y in line.points]
    values += [bound for line in lines for bounds in line.bounds.values() for bound in bounds]
    values += [] if plot.level is None else [plot.level[0]]
    across = whole_scale(int(min(xs)), int(max(xs))) if plot.updates else scale_of(xs)
    frame = Frame(across, scale_of(values))
    parts = [*frame.grid(plot.x_label)]
    if plot.level is not None:
        parts += _level(frame, *plot.level)
    for line, whole in zip(lines, plot.lines, strict=True):
        parts += _line(frame, line, _mean(whole, plot.most // 2), plot.updates)
    tips = svg.data([_tips(frame, line, plot.x_label) for line in lines])
    drawn = svg.drawing(WIDTH, HEIGHT, f"{plot.title}. {plot.note}", parts, class_="plot", data_tips=tips)
    legend = [(line.colour, line.label) for line in lines] if len(lines) > 1 else []
    return svg.figure(plot.title, plot.note, drawn, legend)


@dataclass(frozen=True, slots=True)
class Frame:
    """The rectangle between the axes."""

    x: Scale
    y: Scale

    def place(self, point: Point) -> tuple[float, float]:
        """Return where a point is drawn."""
        across = LEFT + self.x.share(point[0]) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - self.y.share(point[1]) * (HEIGHT - TOP - BOTTOM)

    def grid(self, x_label: str) -> Iterator[str]:
        """Draw grid lines, ticks and the name of the x axis."""
        for tick in self.y.ticks:
            _, y = self.place((self.x.low, tick))
            yield svg.path([(LEFT, y), (WIDTH - RIGHT, y)], "grid")
            yield svg.label(LEFT - 6.0, y + 3.5, self.y.label(tick), anchor="end")
        base = HEIGHT - BOTTOM
        yield svg.path([(LEFT, base), (WIDTH - RIGHT, base)], "axis")
        for tick in self.x.ticks:
            x, _ = self.place((tick, self.y.low))
            yield svg.path([(x, base), (x, base + 4.0)], "axis")
            yield svg.label(x, base + 16.0, self.x.label(tick), anchor="middle")
        yield svg.label(WIDTH - RIGHT, HEIGHT - 4.0, x_label, "name", "end")


def _thin(line: Line, most: int) -> Line:
    points = thinned(line.points, most)
    kept = {x for x, _ in points}
    bounds = {x: bound for x, bound in line.bounds.items() if x in kept}
    return Line(line.label, points, line.colour, bounds, line.noisy)


def _mean(line: Line, most: int) -> list[Point]:
    return thinned(running_mean(line.points), most) if line.noisy else []


def _line(frame: Frame, line: Line, mean: Sequence[Point], banded: bool) -> Iterator[str]:
    colour = svg.colour(line.colour)
    bounded = [(x, *line.bounds[x]) for x, _ in line.points if x in line.bounds]
    banded = banded and len(bounded) > 1
    if banded:
        upper = [frame.place((x, high)) for x, _, high in bounded]
        yield svg.area(upper, [frame.place((x, low)) for x, low, _ in bounded], f"{colour} band")
    for x, low, high in [] if banded else bounded:
        yield svg.path([frame.place((x, low)), frame.place((x, high))], f"{colour} whisker")
    places = list(map(frame.place, line.points))
    if len(places) > 1:
        yield svg.path(places, f"{colour} {'faint' if mean else 'line'}")
    if mean:
        yield svg.path(list(map(frame.place, mean)), f"{colour} line")
    marked = places if len(places) <= DOTTED and not mean else []
    for x, y in marked:
        yield svg.element("circle", cx=x, cy=y, r=2.6, class_=f"{colour} dot")


def _level(frame: Frame, value: float, meaning: str) -> Iterator[str]:
    _, y = frame.place((frame.x.low, value))
    yield svg.path([(LEFT, y), (WIDTH - RIGHT, y)], "level")
    above = y - 4.0 if y - 14.0 > TOP else y + 12.0
    yield svg.label(WIDTH - RIGHT, above, meaning, "name", "end")


def _tips(frame: Frame, line: Line, x_label: str) -> list[object]:
    """Return what the page's script shows over a line: its name, and of each point place and text."""
    points = []
    for x, y in line.points:
        low, high = line.bounds.get(x, (None, None))
        interval = "" if low is None or high is None else f" [{number(low)}, {number(high)}]"
        across, down = frame.place((x, y))
        at = f"{x:g}" if x == int(x) else number(x)
        points.append([round(across, 1), round(down, 1), f"{x_label} {at}", f"{number(y)}{interval}"])
    return [line.label, svg.colour(line.colour), points]
