"""What a report recorded, which is in English, in a reader's language.

A report has texts and no keys. So a line is known by the message whose English it is, and what filled the places is put
into the same places of the other text; a line that no message gives, such as what a library said, stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from string import Formatter

from aegis.messages import Language, catalogue

_GROUPS = (
    *("adapter", "convert", "divergence", "gguf", "gguf_file", "gguf_header", "load", "manifest"),
    *("merging", "parity", "process", "runtime", "shards", "soul", "structure", "verify"),
)
"""Of these is what verify's checks are called and what they find."""

_WORDS = {"converter", "nothing", "quantizer"}
"""Single words of theirs that are no names."""

_MARKS = ("; ", ": ")
"""What stands between texts that were put together."""


def again(recorded: str, spoken: Language) -> str:
    """A recorded text in the language."""
    if spoken == "en":
        return recorded
    return "\n".join(_line(line, spoken) for line in recorded.split("\n"))


def _line(line: str, spoken: Language) -> str:
    # a clause that was made a sentence; first, or its last place would take the full stop
    if line.endswith(".") and (clause := _line(line[:-1], spoken)) != line[:-1]:
        return f"{clause}。"
    for pattern, text in _known(spoken):
        if (found := pattern.fullmatch(line)) is not None:
            return text.format(**{name: _line(value, spoken) for name, value in found.groupdict().items()})
    for mark in _MARKS:
        if mark in line:
            return mark.join(_line(part, spoken) for part in line.split(mark))
    return line


@cache
def _known(spoken: Language) -> list[tuple[re.Pattern[str], str]]:
    """Every line of English as a pattern, with the other language's; those that say most themselves come first."""
    found = []
    for group in _GROUPS:
        for name, entry in catalogue("en")[group].items():
            theirs = catalogue(spoken)[group][name]
            pairs = zip(entry.values(), theirs.values(), strict=True) if isinstance(entry, dict) else [(entry, theirs)]
            for ours, other in pairs:
                lines, others = ours.strip().split("\n"), other.strip().split("\n")
                if len(lines) == len(others):
                    found += [pair for pair in zip(lines, others, strict=True) if _is_telling(pair[0])]
    found.sort(key=lambda pair: -len(_literal(pair[0])))
    return [(re.compile(_pattern(ours), re.IGNORECASE), _bare(theirs)) for ours, theirs in found]


def _is_telling(text: str) -> bool:
    """Whether it can be known: most single words may be names as well."""
    words = re.findall("[A-Za-z]+", _literal(text))
    return len(words) > 1 or (len(words) == 1 and "{" in text) or text in _WORDS


def _literal(text: str) -> str:
    return "".join(literal for literal, *_ in Formatter().parse(text))


def _pattern(text: str) -> str:
    def parts() -> Iterator[str]:
        met = set()
        for literal, name, _, _ in Formatter().parse(text):
            yield re.escape(literal)
            if name is not None:
                yield f"(?P={name})" if name in met else f"(?P<{name}>.+?)"
                met.add(name)

    return "".join(parts())


def _bare(text: str) -> str:
    """A text whose places take what is formatted already."""
    return "".join(
        literal.replace("{", "{{").replace("}", "}}") + ("" if name is None else f"{{{name}}}")
        for literal, name, _, _ in Formatter().parse(text)
    )
