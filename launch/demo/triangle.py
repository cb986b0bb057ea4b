"""The family triangle in characters: policies of a rock-paper-scissors task between three pure families of answers.

A point is three shares: of the reference's favourite family, of the family that beats it, and of the one that beats
that. Its position is the mean of the corners weighted by the shares, so a pure policy is in a corner, and the policy of
equal shares, which no family beats, in the middle. Must not depend on runs or models.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise

from actors.errors import UsageError

CORNERS = ("reference's favourite", "beats it", "beats that")
"""Top, lower right, lower left: the next corner clockwise beats a corner."""
MARKS = "abcdefghijklmnopqrstuvwxyz"
Point = Sequence[float]


@dataclass(frozen=True, slots=True)
class Curve:
    """A policy's trajectory, or a single policy, under one label."""

    label: str
    points: Sequence[Point]
    """[n][3] shares, n >= 1, not negative; only their ratios count."""

    def __post_init__(self) -> None:
        if not len(self.points):
            raise UsageError(f"curve '{self.label}' has no points; give it at least one, three shares each")
        for point in self.points:
            if len(point) != 3 or not all(math.isfinite(share) and share >= 0.0 for share in point) or not sum(point):
                raise UsageError(
                    f"curve '{self.label}' has the point {[float(share) for share in point]}; a point is three shares, "
                    "none negative and not all of them 0"
                )


def weighted(shares: Point, corners: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the mean of three corners (x, y), weighted by `shares`."""
    total = sum(shares)
    x, y = (sum(s * corner[axis] for s, corner in zip(shares, corners, strict=True)) / total for axis in range(2))
    return x, y


def triangle_text(curves: Sequence[Curve], width: int = 60, height: int = 20) -> str:
    """Draw curves in `width` x `height` characters, with a legend below; no line is longer than `width`.

    Each curve has a letter: small along its trajectory, capital at its end; `*` where several end. Raises UsageError if
    there are no curves, or fewer than 40 x 10 characters.
    """
    if not curves:
        raise UsageError("the triangle has no curves; give it at least one")
    if width < 40 or height < 10:
        raise UsageError(f"a triangle of {width} x {height} characters is unreadable; it needs 40 x 10 or more")
    canvas = [[" "] * width for _ in range(height)]
    last, middle, half = height - 2, width // 2, (width - 8) // 2
    corners = ((middle, 1), (middle + half, last), (middle - half, last))

    def cell(shares: Point) -> tuple[int, int]:
        x, y = weighted(shares, corners)
        return round(y), round(x)

    def line(start: Point, end: Point, mark: str) -> None:
        for row, column in _steps(cell(start), cell(end)):
            canvas[row][column] = mark

    for outline in pairwise([(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0)]):
        line(*outline, ".")
    line((1, 1, 1), (1, 1, 1), "+")
    marked = list(zip(cycle(MARKS), curves, strict=False))
    for mark, curve in marked:
        for start, end in pairwise(curve.points):
            line(start, end, mark)
    ends = [cell(curve.points[-1]) for curve in curves]
    for (mark, _), (row, column) in zip(marked, ends, strict=True):
        canvas[row][column] = "*" if ends.count((row, column)) > 1 else mark.upper()

    top, right, left = CORNERS
    canvas[0] = list(top.center(width))
    canvas[-1] = list(left + right.rjust(width - len(left)))
    legend = []
    for mark, curve in marked:
        key = f"{mark}..{mark.upper()}" if len(curve.points) > 1 else mark.upper()
        legend.append(f"  {key:<4}  {curve.label}")
    legend += ["  *     several end here"] if len(set(ends)) < len(ends) else []
    return "\n".join(row.rstrip()[:width] for row in [*map("".join, canvas), *legend])


def _steps(start: tuple[int, int], end: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """List the cells of a straight line, both ends included."""
    (row, column), (last_row, last_column) = start, end
    count = max(abs(last_row - row), abs(last_column - column), 1)
    for step in range(count + 1):
        share = step / count
        yield round(row + share * (last_row - row)), round(column + share * (last_column - column))
