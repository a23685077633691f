"""From what a teacher wrote to a rationale and a label: the rules of a task by name, ours and the paper's own.

Both take the text before the teacher's hallucinated next exemplar, split it at the answer marker, and find the label
behind that. The paper's are those of the loaders that were released with Distilling Step-by-Step (arXiv 2305.02301;
github.com/google-research/distilling-step-by-step), for answers in just the form of its exemplars. Ours also read what
chat models make of that form: another case, a bare option, a number in place of an expression.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

LETTERS = "abcdefghijklmnopqrstuvwxyz"
UNLABELLED = " "  # the paper's label, and rationale, of an answer that cannot be parsed
Choices = tuple[str, ...]


class Parser(NamedTuple):
    """next_exemplar: where made-up text begins; marker: what stands before the label; label: of the text behind it,
    None where the task's pattern finds none; strict: one that begins as an exemplar does is all made up."""

    next_exemplar: re.Pattern[str]
    marker: re.Pattern[str]
    label: Callable[[str, Choices], str | None]
    strict: bool = False

    def split(self, text: str) -> tuple[str, str] | None:
        """(rationale, text behind the marker); None without a marker."""
        cut = self.next_exemplar.search(text)
        if cut and (self.strict or text[: cut.start()].strip()):
            text = text[: cut.start()]
        marker = self.marker.search(text)
        if marker is None:
            return None
        return text[: marker.start()].strip(), text[marker.end() :].strip().lstrip(":").strip()

    def read(self, text: str, choices: Choices = ()) -> tuple[str | None, str | None]:
        """(rationale, label), None for what is not there."""
        if (parts := self.split(text)) is None:
            return None, None
        return parts[0], self.label(parts[1].rstrip(), choices)


def _option(tail: str, choices: Choices) -> str | None:
    """The text behind `(x)`, stripped, one full stop less; the letter alone names its choice, as does a bare choice."""
    found = re.search(r"\((.)\)", tail)
    if found is None:
        bare = tail.removesuffix(".").strip().casefold()
        return next((choice for choice in choices if choice.casefold() == bare), None)
    text = tail[found.end() :].splitlines()[0] if tail[found.end() :].strip() else ""
    text = text.strip().removesuffix(".").strip()
    letter = LETTERS.find(found.group(1).lower())
    return text or (choices[letter] if 0 <= letter < len(choices) else None)


def _paper_option(tail: str, choices: Choices) -> str | None:
    parts = re.split(r"\(.\)", tail)
    return (parts[1].strip().removesuffix(".") or None) if len(parts) > 1 else None


def _number(tail: str, choices: Choices) -> str | None:
    """An expression in brackets as the paper's exemplars write it, else the first number."""
    number = re.search(r"-?\$?\d[\d,]*(?:\.\d+)?(?:\s*/\s*\d+)?", tail)
    return _paper_expression(tail, choices) or (number.group().replace("$", "") if number else None)


def _paper_expression(tail: str, choices: Choices) -> str | None:
    found = re.search(r"\(.*\)", tail)
    return found.group() if found else None


def _relation(tail: str, choices: Choices) -> str | None:
    word = re.match(r"\W*(entailment|neutral|contradiction)\b", tail, re.IGNORECASE)
    return word.group(1).lower() if word else None


def _paper_relation(tail: str, choices: Choices) -> str | None:
    """All but the last character, which its exemplars' full stop is."""
    return tail.lstrip()[:-1] or None


def _line(tail: str, choices: Choices) -> str | None:
    first = tail.splitlines()[0].strip() if tail else ""
    return first.removesuffix(".").strip() or None


QUESTION, PREMISE = (re.compile(rf"^\s*{word}:", re.MULTILINE) for word in ("(?:Q|Question)", "Premise"))
SO, EITHER = (re.compile(rf"{so}the answer is", re.IGNORECASE) for so in (r"so\s+", r"(?:so\s+)?"))
PARSERS = {
    "multiple_choice": Parser(QUESTION, SO, _option),
    "arithmetic": Parser(QUESTION, EITHER, _number),  # the paper's exemplars leave the "So" out
    "nli": Parser(PREMISE, SO, _relation),
    "free_text": Parser(QUESTION, SO, _line),
}
PAPER = {
    "multiple_choice": Parser(re.compile("Q:"), re.compile("So the answer is"), _paper_option, True),
    "arithmetic": Parser(re.compile("Q:"), re.compile("The answer is"), _paper_expression, True),
    "nli": Parser(re.compile("Premise:"), re.compile("So the answer is"), _paper_relation, True),
    "free_text": PARSERS["free_text"],  # none of the paper's tasks
}
