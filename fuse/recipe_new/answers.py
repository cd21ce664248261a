"""What the questions come to."""

from dataclasses import dataclass, field

from fuse.anatomy import Member
from fuse.grafts.donor import Donor


@dataclass(frozen=True)
class Named:
    """A checkpoint as it was named. member: opened where it lies on this disk, else None."""

    name: str
    path: str
    member: Member | None

    @property
    def sees(self) -> bool | None:
        """Whether it has an encoder; None where it was not opened."""
        return None if self.member is None else self.member.sees


@dataclass(frozen=True)
class Eyes:
    """An encoder and a projector from files, as a branch of `vision`."""

    name: str
    encoder: str
    projector: str
    layer: int


@dataclass(frozen=True)
class Grafted:
    """A graft's folder as it was named, and what it is."""

    path: str
    donor: Donor

    @property
    def looks(self) -> bool:
        """Whether it works on images, so that there has to be an encoder."""
        files, config = self.donor.files, self.donor.config
        looks = hasattr(files, "why_no_image") and getattr(files, "looks", lambda config: True)(config)
        return bool(looks or any(files.tokens(config).values()) or self.has_tower)

    @property
    def has_tower(self) -> bool:
        """Whether a part of it belongs into a vision tower."""
        return bool(getattr(self.donor.files, "tower_of", lambda config: None)(self.donor.config))


@dataclass(frozen=True)
class Answers:
    """Everything that a recipe is written from.

    want: a key of WANTS. numbers: the method's parameters, by name; a mapping where they are by member. vision: whose
    encoders the output has; None where no member sees. mixed: encoder and projector of all members are merged, too.
    dtype: "" for the host's own.
    """

    want: str
    members: tuple[Named, ...]
    base: Named | None
    method: str
    numbers: dict[str, float | dict[str, float]] = field(default_factory=dict)
    vision: tuple[str, ...] | None = None
    mixed: bool = False
    eyes: Eyes | None = None
    grafts: tuple[Grafted, ...] = ()
    dtype: str = ""

    @property
    def opened(self) -> bool:
        """Whether every checkpoint lies on this disk, so that the recipe can be planned at once."""
        return all(one.member is not None for one in (*self.members, *([self.base] if self.base else [])))
