"""Small charts as SVG text: written in a millisecond, a few kilobytes each.

Every element carries its colour for a light page as an attribute and a class beside it, so that a chart taken out of its
page is a valid file, and a page's style sheet can give the classes other colours. `COLOURS` has both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape as escape_markup

import numpy as np

from rmtjax._text import visible
from rmtjax.report.format import number, power_of_ten

__all__ = ["COLOURS", "SHAPES", "Axes", "Chart", "Scale"]

COLOURS = {
    "ink": ("#1b1f24", "#e6e9ed"),
    "muted": ("#59636e", "#a3adb8"),
    "grid": ("#e3e7eb", "#2c343d"),
    "band": ("#eceff2", "#232a32"),
    "paper": ("#ffffff", "#14181d"),
    "s0": ("#0067a8", "#5ab4f0"),
    "s1": ("#c04a00", "#ff9a4d"),
    "s2": ("#00795a", "#3ccb9b"),
    "s3": ("#a8427f", "#e88fc4"),
    "s4": ("#7d5a00", "#dcb43c"),
    "s5": ("#5151c9", "#a9a9ff"),
    "s6": ("#1b1f24", "#e6e9ed"),
    "s7": ("#9a2a2a", "#ff8f8f"),
}
"""Colours by class, on a light and on a dark page."""

SHAPES = 8
"""Number of series that can be distinguished, by colour and by shape."""

_FONT = "system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif"


def escape(text: str) -> str:
    """Return a text escaped for XML, without the control characters that it forbids."""
    return escape_markup(visible(text))


def _at(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


@dataclass
class Scale:
    """The mapping of values to pixels between two ends, and the ticks."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    marks: list[tuple[float, str]] | None = None
    most: int = 5
    note: str = ""

    def __post_init__(self) -> None:
        if self.marks is None:
            self.marks = self._log_marks() if self.log else self._marks()

    @classmethod
    def around(cls, values: Iterable[np.ndarray], start: float, end: float, *, log=False, pad=0.06, **options) -> Scale:
        """Return a scale that holds all finite values with a margin."""
        parts = [np.ravel(np.asarray(v, float)) for v in values]
        every = np.concatenate(parts) if parts else np.empty(0)
        every = every[np.isfinite(every) & ((every > 0) | (not log))]
        low, high = (float(every.min()), float(every.max())) if every.size else (1.0, 1.0)
        if log:
            room = max(pad * math.log10(high / low), 0.08)
            return cls(low * 10**-room, high * 10**room, start, end, log=True, **options)
        room = pad * (high - low) if high - low > 1e-12 * max(abs(low), abs(high)) else 0.1 * abs(high) or 1.0
        return cls(low - room, high + room, start, end, **options)

    def __call__(self, value):
        """Return the pixel of a value, or those of an array."""
        value = np.asarray(value, float)
        with np.errstate(divide="ignore", invalid="ignore"):
            if self.log:
                share = np.log(value / self.low) / math.log(self.high / self.low)
            else:
                share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def _steps(self, low: float, high: float) -> tuple[np.ndarray, int]:
        raw = (high - low) / self.most
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(s * unit for s in (1, 2, 2.5, 5, 10) if s * unit >= raw * (1 - 1e-9))
        at = np.arange(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1) * step
        decimals = max(0, -math.floor(math.log10(step) + 1e-9)) + (abs(step / unit - 2.5) < 1e-9 and unit < 10)
        return at, decimals

    def _marks(self) -> list[tuple[float, str]]:
        low, high = self.low, self.high
        largest = max(abs(low), abs(high))
        exponent = math.floor(math.log10(largest))
        at, decimals = self._steps(low, high)
        if (
            decimals > 4 and exponent - math.log10(high - low) > 3
        ):  # nearly equal values: shown as differences from the first
            base = float(at[0])
            unit = math.floor(math.log10(high - low))
            self.note = f"{self.note} {base:.{decimals}g} + … × {power_of_ten(unit)}".strip().replace("-", "−")
            return [(float(v), f"{(v - base) / 10.0**unit:.3g}".replace("-", "−")) for v in at]
        if largest >= 1e5 or largest < 1e-2:
            self.note = f"{self.note} × {power_of_ten(exponent)}".strip()
            _, decimals = self._steps(low / 10.0**exponent, high / 10.0**exponent)
            return [(float(v), f"{v / 10.0**exponent:.{decimals}f}".replace("-", "−")) for v in at]
        return [(float(v) + 0.0, f"{v + 0.0:.{decimals}f}".replace("-", "−")) for v in at]

    def _log_marks(self) -> list[tuple[float, str]]:
        first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        if last - first >= 1:
            stride = -(-(last - first) // self.most)
            return [(10.0**e, power_of_ten(e) if e else "1") for e in range(first, last + 1, stride)]
        at = [m * 10.0**e for e in range(first - 1, last + 1) for m in (1, 2, 5)]
        inside = [v for v in at if self.low <= v <= self.high]
        if len(inside) < 2:
            inside = [float(v) for v in self._steps(self.low, self.high)[0] if v > 0]
        return [(v, number(v)) for v in inside]


def _marker(kind: int, x: float, y: float, size: float) -> str:
    """Return the outline of a marker."""
    s = size
    if kind % 4 == 0:
        return f"M{_at(x - s)} {_at(y)}a{s} {s} 0 1 0 {2 * s} 0a{s} {s} 0 1 0 {-2 * s} 0z"
    if kind % 4 == 1:
        s *= 0.9
        return f"M{_at(x - s)} {_at(y - s)}h{2 * s:.1f}v{2 * s:.1f}h{-2 * s:.1f}z"
    if kind % 4 == 2:
        s *= 1.3
        return f"M{_at(x)} {_at(y - s)}l{s:.1f} {s:.1f}l{-s:.1f} {s:.1f}l{-s:.1f} {-s:.1f}z"
    s *= 1.2
    return f"M{_at(x)} {_at(y - s)}l{s:.1f} {1.8 * s:.1f}h{-2 * s:.1f}z"


@dataclass
class Chart:
    """An SVG being written. Pixels count from the upper left corner."""

    width: float
    name: str
    title: str
    describe: str
    height: float = 0.0
    parts: list[str] = field(default_factory=list)

    def add(self, *parts: str) -> None:
        """Add elements."""
        self.parts += parts

    def text(
        self, x: float, y: float, text: str, kind: str = "ink", anchor: str = "start", size: float = 12, bold=False
    ) -> None:
        """Write text at a point."""
        attributes = "" if anchor == "start" else f' text-anchor="{anchor}"'
        attributes += ' font-weight="600"' if bold else ""
        attributes += "" if size == 12 else f' font-size="{size:g}"'
        self.add(
            f'<text x="{_at(x)}" y="{_at(y)}" class="{kind}" fill="{COLOURS[kind][0]}"{attributes}>{escape(text)}</text>'
        )

    def lines(self, xs, ys, kind: str, *, width=1.6, dash="", cut: str = "", opacity=1.0) -> None:
        """Draw a line through points, broken where one is not finite."""
        path, pen = [], False
        for x, y in zip(np.ravel(xs), np.ravel(ys), strict=True):
            if not (math.isfinite(x) and math.isfinite(y)):
                pen = False
                continue
            path.append(f"{'L' if pen else 'M'}{_at(x)} {_at(y)}")
            pen = True
        if path:
            self.stroke("".join(path), kind, width=width, dash=dash, cut=cut, opacity=opacity)

    def stroke(self, path: str, kind: str, *, width=1.0, dash="", cut="", opacity=1.0) -> None:
        """Draw along a path."""
        attributes = f' stroke-dasharray="{dash}"' if dash else ""
        attributes += f' clip-path="url(#{cut})"' if cut else ""
        attributes += f' opacity="{opacity:g}"' if opacity != 1 else ""
        self.add(
            f'<path class="l {kind}" d="{path}" fill="none" stroke="{COLOURS[kind][0]}" stroke-width="{width:g}"{attributes}/>'
        )

    def fill(self, path: str, kind: str, opacity=1.0, cut="") -> None:
        """Fill the inside of a path."""
        attributes = f' opacity="{opacity:g}"' if opacity != 1 else ""
        attributes += f' clip-path="url(#{cut})"' if cut else ""
        self.add(f'<path class="a {kind}" d="{path}" fill="{COLOURS[kind][0]}"{attributes}/>')

    def markers(
        self,
        xs,
        ys,
        kind: str,
        shape: int = 0,
        size: float = 3.4,
        tips: Sequence[str] | None = None,
        open_: bool = False,
    ) -> None:
        """Draw points, each with a tooltip."""
        fill, line = ("paper", kind) if open_ else (kind, "paper")
        body = []
        for i, (x, y) in enumerate(zip(np.ravel(xs), np.ravel(ys), strict=True)):
            if math.isfinite(x) and math.isfinite(y):
                d = _marker(shape, float(x), float(y), size)
                tip = f"<title>{escape(tips[i])}</title>" if tips else ""
                body.append(f'<path d="{d}">{tip}</path>' if tip else f'<path d="{d}"/>')
        if body:
            kinds = f"m {kind}{' o' if open_ else ''}"
            colours = f'fill="{COLOURS[fill][0]}" stroke="{COLOURS[line][0]}"'
            self.add(f'<g class="{kinds}" {colours} stroke-width="{1.2 if open_ else 0.7}">', *body, "</g>")

    def clip(self, name: str, x: float, y: float, width: float, height: float) -> str:
        """Add a clipping rectangle, and return its id."""
        ident = f"{self.name}-{name}"
        self.add(
            f'<clipPath id="{ident}"><rect x="{_at(x)}" y="{_at(y)}" width="{_at(width)}" height="{_at(height)}"/></clipPath>'
        )
        return ident

    def legend(self, items: Sequence[tuple[str, str, int]], left: float, top: float) -> float:
        """Draw rows of (text, class, shape), shape −1 for a line alone, −2 for points alone, and return their height."""
        x, y = left, top + 12
        for label, kind, shape in items:
            wide = 30 + width_of(label)
            if x > left and x + wide > self.width - 4:
                x, y = left, y + 18
            if shape != -2:
                self.stroke(f"M{_at(x)} {_at(y - 4)}h18", kind, width=1.6)
            if shape != -1:
                self.markers([x + 9], [y - 4], kind, max(shape, 0))
            self.text(x + 23, y, label)
            x += wide + 8
        return y - top + 8

    def svg(self) -> str:
        """Return the whole SVG, for a page or a file."""
        w, h = _at(self.width), _at(self.height)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img"'
            f' aria-labelledby="{self.name}-t {self.name}-d" font-family="{_FONT}" font-size="12" id="{self.name}">'
            f'<title id="{self.name}-t">{escape(self.title)}</title><desc id="{self.name}-d">{escape(self.describe)}</desc>'
            + "".join(self.parts)
            + "</svg>"
        )


def width_of(text: str, size: float = 12) -> float:
    """Return the approximate width of a text."""
    return 0.56 * size * len(text)


@dataclass
class Axes:
    """A frame with two scales inside a chart."""

    chart: Chart
    x: Scale
    y: Scale
    cut: str

    @classmethod
    def draw(cls, chart: Chart, name: str, x: Scale, y: Scale, *, below: bool = True) -> Axes:
        """Draw grid, ticks and their labels; `below` says whether the x axis has labels."""
        left, right, top, bottom = x.start, x.end, min(y.start, y.end), max(y.start, y.end)
        cut = chart.clip(name, left - 4, top - 4, right - left + 8, bottom - top + 8)
        across = [(float(y(v)), label) for v, label in y.marks if top - 0.5 <= float(y(v)) <= bottom + 0.5]
        along = [(float(x(v)), label) for v, label in x.marks if left - 0.5 <= float(x(v)) <= right + 0.5]
        path = "".join(f"M{_at(left)} {_at(v)}H{_at(right)}" for v, _ in across)
        path += "".join(f"M{_at(v)} {_at(top)}V{_at(bottom)}" for v, _ in along)
        if path:
            chart.stroke(path, "grid", width=0.8)
        chart.stroke(f"M{_at(left)} {_at(top)}V{_at(bottom)}H{_at(right)}", "muted", width=0.9)
        for v, label in across:
            chart.text(left - 6, v + 4, label, "muted", "end", 11.5)
        if y.note:
            chart.text(left + 5, top + 9, y.note, "muted", size=11)
        if below:
            last = -1e9
            for v, label in along:
                half = width_of(label, 11.5) / 2
                if v - half > last + 6:
                    chart.text(v, bottom + 16, label, "muted", "middle", 11.5)
                    last = v + half
        return cls(chart, x, y, cut)
