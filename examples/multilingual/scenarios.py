"""Scenarios: which languages are objectives, which the model knows already, and how much text there is of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from corpus import Corpus, stable_hash

REPLAY = "replay"
"""Name of the objective that is made of text of languages to be kept."""


@dataclass(frozen=True)
class Scenario:
    """One fine-tuning task."""

    name: str
    objectives: tuple[str, ...]
    """Languages that are trained on, an objective each; with `replay` one more."""
    kept: tuple[str, ...] = ()
    """Languages that the model knows and that are not objectives: what it forgets is measured on them."""
    sentences: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Objective -> that many segments of text, where it does not have all there is."""
    replay: int = 0
    """Segments of text of the kept languages together that are one more objective; 0: no such objective."""
    focus: str = ""
    """The objective whose weight a weighted mean tunes."""

    def __post_init__(self) -> None:
        """Raises ValueError with the field at fault."""
        named = self.names
        if len(self.objectives) < 1 or len(set(named)) < len(named):
            raise ValueError(f"scenario {self.name}: objectives must be different languages, got {self.objectives}")
        if both := set(self.objectives) & set(self.kept):
            raise ValueError(f"scenario {self.name}: kept languages must not be objectives, got {sorted(both)}")
        if self.replay < 0 or (self.replay and not self.kept):
            raise ValueError(f"scenario {self.name}: replay must be 0, or >= 1 with kept languages, got {self.replay}")
        if unknown := set(self.sentences) - set(self.objectives):
            raise ValueError(f"scenario {self.name}: sentences must name objectives, got {sorted(unknown)}")
        if any(number < 1 for number in self.sentences.values()):
            raise ValueError(f"scenario {self.name}: sentences must be >= 1, got {dict(self.sentences)}")
        if self.focus and self.focus not in named:
            raise ValueError(f"scenario {self.name}: focus must be one of {', '.join(named)}, got {self.focus!r}")

    @property
    def names(self) -> tuple[str, ...]:
        """All objectives, the replay of old text too."""
        return self.objectives + ((REPLAY,) if self.replay else ())

    @property
    def measured(self) -> tuple[str, ...]:
        """Languages that the primary measure is the mean over: with replay, what is to be kept counts too."""
        return self.objectives + (self.kept if self.replay else ())

    def documents(self, corpus: Corpus) -> dict[str, list[str]]:
        """Training text of every objective."""
        found = {}
        for language in self.objectives:
            documents = corpus.train[language]
            limit = self.sentences.get(language)
            found[language] = list(documents.values()) if limit is None else first_segments([documents], limit)
        if self.replay:
            found[REPLAY] = first_segments([corpus.train[language] for language in self.kept], self.replay)
        return found


LANGUAGES = ("en", "de", "hu", "tr", "ja", "el", "es", "pt", "gl", "cs", "sv")
"""Of the corpus of all scenarios."""
KNOWN = tuple(language for language in LANGUAGES if language != "el")
"""Those that presets are pre-trained on."""
SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("balanced", ("de", "hu", "tr", "ja"), kept=("cs", "sv"), focus="hu"),
        Scenario("new_script", ("el", "de", "hu", "tr"), kept=("cs", "sv"), focus="el"),
        *(
            Scenario(name, ("el", "hu", "tr"), kept=("de", "pt", "cs", "sv"), replay=count, focus=REPLAY)
            for name, count in (("replay_little", 30), ("replay_more", 300))
        ),
    )
}
"""Known languages; one of a script that neither the model nor its tokenizer has seen; that with old text."""


def first_segments(sources: Sequence[Mapping[str, str]], count: int) -> list[str]:
    """`count` segments, taken in turn from components of all `sources` in an order that is the same everywhere."""
    order = sorted({name for source in sources for name in source}, key=lambda name: stable_hash(f"few {name}"))
    taken: list[str] = []
    for place, component in enumerate(order):
        source = sources[place % len(sources)]  # another language each time: no text beside its translation
        lines = source.get(component, "").split("\n")
        taken.append("\n".join(lines[: count - sum(len(d.split("\n")) for d in taken)]))
        if sum(len(d.split("\n")) for d in taken) >= count:
            return taken
    raise ValueError(f"there are fewer than {count} segments of text")


def split(corpus: Corpus, part: str) -> Corpus:
    """The corpus with those held-out components that choices are made on ("validation"), or the others ("test")."""
    if part not in ("validation", "test"):
        raise ValueError(f"part must be 'validation' or 'test', got {part!r}")

    def belongs(component: str) -> bool:
        return (stable_hash(f"validation {component}") % 2 == 0) == (part == "validation")

    test = {x: {c: d for c, d in documents.items() if belongs(c)} for x, documents in corpus.test.items()}
    return replace(corpus, test=test)
