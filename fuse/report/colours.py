"""Colours of heat maps and of groups, that can be told apart on light and on dark pages."""

from collections.abc import Sequence
from dataclasses import dataclass

RGB = tuple[int, int, int]
# matplotlib's viridis (CC0) at 0, 1/8 ... 1; equal steps of value are equal steps of lightness
SEQUENTIAL: Sequence[RGB] = (
    (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99),
    (170, 220, 50), (253, 231, 37),
)  # fmt: skip
# red for what is against, grey for neither, blue for what goes along: our choice, told apart by the colour-blind too
DIVERGING: Sequence[RGB] = ((150, 20, 40), (214, 96, 77), (222, 222, 222), (67, 147, 195), (8, 64, 130))
GROUPS: Sequence[str] = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")  # Okabe and Ito's, for points
LUMINANCE = 0.18  # from which black text has more contrast than white (WCAG 2.2: equal at sqrt(1.05 * 0.05) - 0.05)


@dataclass(frozen=True)
class Scale:
    """Values from low to high over the colours; what lies beyond gets the colour of its end."""

    low: float
    high: float
    colours: Sequence[RGB] = SEQUENTIAL

    def at(self, value: float) -> RGB:
        """The colour of a value, between two of the scale's."""
        width = self.high - self.low
        place = min(max((value - self.low) / width, 0.0), 1.0) if width > 0 else 0.0
        exact = place * (len(self.colours) - 1)
        first = min(int(exact), len(self.colours) - 2)
        pairs = zip(self.colours[first], self.colours[first + 1], strict=True)
        red, green, blue = (round(a + (b - a) * (exact - first)) for a, b in pairs)
        return red, green, blue


def text(colour: RGB) -> str:
    """#rrggbb."""
    return "#{:02x}{:02x}{:02x}".format(*colour)


def ink(colour: RGB) -> str:
    """Black or white, whichever reads better on the colour."""
    linear = [(c / 255 / 12.92) if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > LUMINANCE else "#ffffff"
