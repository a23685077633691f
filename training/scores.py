"""What a response is worth: pure functions of text and numbers, each score between 0 and 1 unless said otherwise."""

import ast
import math
import operator
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

RESAMPLES = 1000
BINS = 10
MOST_DIGITS = 60  # of a number or an exponent's result: no text may keep the machine busy
OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip
EXPRESSION = re.compile(r"[-+(]?\s*[\d.][\d\s.,+\-*/()]*")


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], counts: Sequence[float] | None = None, seed: int = 0) -> Interval:
    """Mean and percentile bootstrap over rows. With `counts`, values are sums over so many tokens of each row, and the
    mean is one over tokens. NaN where there is nothing to take a mean of."""
    sums = np.asarray(values, dtype=np.float64)
    sizes = np.ones_like(sums) if counts is None else np.asarray(counts, dtype=np.float64)
    if not sizes.sum():
        return Interval(math.nan, math.nan, math.nan)
    drawn = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    means = sums[drawn].sum(1) / np.maximum(sizes[drawn].sum(1), 1e-12)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(sums.sum() / sizes.sum()), float(low), float(high))


def normalised(text: str) -> str:
    """Lower case, without punctuation at its ends or double spaces."""
    return " ".join(text.lower().split()).strip(string.punctuation + " ")


def exact_match(written: str, reference: str) -> float:
    return float(normalised(written) == normalised(reference))


def value_of(text: str) -> Fraction | None:
    """The value of the last number or expression of numbers in a text (`(3 + 4) * 2`); None where there is none.

    Parsed, never evaluated as code: only + - * / of numbers are known.
    """
    for found in reversed(EXPRESSION.findall(text.replace("$", "").replace("%", ""))):
        written = re.sub(r"(?<=\d),(?=\d{3}\b)", "", found).strip().rstrip(".,+-*/( ")
        if not any(c.isdigit() for c in written) or len(written) > 2 * MOST_DIGITS:
            continue
        try:
            return _valued(ast.parse(written, mode="eval").body)
        except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, KeyError):
            continue
    return None


def _valued(node: ast.AST) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(str(node.value))
    if isinstance(node, ast.BinOp):
        found: Fraction = OPERATORS[type(node.op)](_valued(node.left), _valued(node.right))
        return found
    if isinstance(node, ast.UnaryOp):
        return Fraction(OPERATORS[type(node.op)](_valued(node.operand)))
    raise ValueError(type(node).__name__)


def value_match(written: str, reference: str) -> float | None:
    """Whether both end in the same value, as SVAMP and GSM8K are scored; None where the reference has none."""
    right = value_of(reference)
    return None if right is None else float(value_of(written) == right)


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words among all of them (distinct-n, arXiv 1510.03055)."""
    grams = [tuple(words[i : i + n]) for text in texts if (words := text.split()) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def calibration_error(confidences: Sequence[float], hits: Sequence[bool]) -> float:
    """Expected calibration error over `BINS` bins of equal width (arXiv 1706.04599)."""
    bins: list[list[tuple[float, bool]]] = [[] for _ in range(BINS)]
    for confidence, hit in zip(confidences, hits, strict=True):
        bins[min(BINS - 1, int(confidence * BINS))].append((confidence, hit))
    gaps = (abs(sum(c for c, _ in one) - sum(h for _, h in one)) for one in bins)
    return sum(gaps) / len(hits) if hits else 0.0


def macro_f1(answers: Sequence[str], right: Sequence[str]) -> float:
    """The mean of every label's F1; labels are those of the right answers."""
    labels = sorted(set(right))
    hits, said, due = Counter[str](), Counter(answers), Counter(right)
    hits.update(a for a, r in zip(answers, right, strict=True) if a == r)
    return sum(2 * hits[label] / (said[label] + due[label]) for label in labels) / len(labels) if labels else 0.0


def vote(ballots: Sequence[str]) -> str:
    """The most common one; of equals the one that came first."""
    return Counter(ballots).most_common(1)[0][0]
