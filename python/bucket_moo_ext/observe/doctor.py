"""What a bug report needs to say about a machine, and what is wrong with it."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from bucket_moo_ext.observe import machine, self_test
from bucket_moo_ext.observe.finding import Finding

SCHEMA = "bucket_moo_ext.doctor"
VERSION = 1

_SECTIONS: dict[str, Callable[[], list[Finding]]] = {
    "versions": machine.versions,
    "build": machine.build,
    "devices": machine.devices,
    "process groups": machine.process_groups,
    "wrappers": machine.wrappers,
    "trainers": machine.trainers,
    "environment": machine.environment,
    "self-test": self_test.run,
}


@dataclass(frozen=True)
class Diagnosis:
    """All that was found, by section.

    Attributes:
        sections: Findings by the name of their section, in the order in which they are shown.
    """

    sections: dict[str, list[Finding]]

    @property
    def problems(self) -> list[tuple[str, Finding]]:
        """Those that need something done, with their sections."""
        return [(section, found) for section, list_ in self.sections.items() for found in list_ if found.advice]

    def to_json(self) -> str:
        """An object with ``schema``, ``version``, ``ok``, ``sections`` and ``problems``."""
        plain = {
            "schema": SCHEMA,
            "version": VERSION,
            "ok": not self.problems,
            "sections": {
                section: {found.name: found.value for found in list_} for section, list_ in self.sections.items()
            },
            "problems": [{"section": section, **vars(found)} for section, found in self.problems],
        }
        return json.dumps(plain, indent=2)

    def __str__(self) -> str:
        """A table, and below it the problems with what to do."""
        width = max(len(found.name) for list_ in self.sections.values() for found in list_)
        lines = []
        for section, list_ in self.sections.items():
            lines.append(section)
            lines += [f"{' !'[bool(found.advice)]} {found.name:<{width}}  {found.value}" for found in list_]
        lines.append("")
        lines.append(f"problems: {len(self.problems) or 'none'}")
        lines += [
            f"{number}. {section}, {found.name}: {found.value}\n   {found.advice}"
            for number, (section, found) in enumerate(self.problems, 1)
        ]
        return "\n".join(lines)


def examine() -> Diagnosis:
    """Looks at everything. Takes some seconds, most of them for starting the ranks of the self-test."""
    return Diagnosis({section: _guarded(look) for section, look in _SECTIONS.items()})


def _guarded(look: Callable[[], list[Finding]]) -> list[Finding]:
    """A section that cannot be looked at is a finding too: the others are needed all the more then."""
    try:
        return look()
    except Exception as error:
        said = f"could not be examined: {type(error).__name__}: {error}"
        return [Finding("examination", said, "torch or this installation is damaged: reinstall both, torch first.")]
