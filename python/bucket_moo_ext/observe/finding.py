"""One line of what the doctor says."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Something about the machine.

    Attributes:
        name: What it is about, unique in its section.
        value: What was found.
        advice: What to do about it; empty if it is well.
    """

    name: str
    value: str
    advice: str = ""
