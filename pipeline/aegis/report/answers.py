"""What models said, as a report shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """`cut`: time ran out before it ended."""

    text: str
    cut: bool = False


@dataclass(frozen=True)
class ModelAnswers:
    """One model's answers, in the order of the questions; fewer if time ran out.

    Attributes:
        who: base, trained or gguf.
        name: of the quantization, for the file.
        missing: why it could not be asked, or not to the end; "" if it could.
    """

    who: str
    name: str
    answers: tuple[Answer, ...] = ()
    missing: str = ""
