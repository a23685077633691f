"""What a response is worth: pure functions of text and numbers, each score between 0 and 1 unless said otherwise."""

import ast
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
RESAMPLES = 1000
DRAWN_AT_ONCE = 10_000_000  # numbers: 80 MB
BINS = 10
MOST_DIGITS = 60  # of a number or an exponent's result: no text may keep the machine busy
OPERATORS: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip
# 1,234.5; 5 000; 1.000.000; 1e5; 3 1/2. Numbers beside each other are two, unless an operator stands between them.
GROUPED = r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d{1,3}(?: \d{3})+(?:\.\d+)?|\d{1,3}(?:\.\d{3}){2,}"
NUMBER = rf"(?<![\d.])(?:(?:{GROUPED})(?!\d)|\d+ \d+/\d+(?![\d/])|(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?)"
# The brackets and spaces around one are counted: a text of 100 kB of them must not take a quadratic time.
EXPRESSION = re.compile(
    rf"[-+(\t ]{{0,9}}{NUMBER}[)\t ]{{0,9}}(?:(?:\*\*|[-+*/])[-+(\t ]{{0,9}}{NUMBER}[)\t ]{{0,9}})*"
)
EDGES = ".,;:!?\"'`*()[]{}<> "


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], counts: Sequence[float] | None = None) -> Interval:
    """Mean and percentile bootstrap over rows. With `counts`, values are sums over so many tokens of each row, and the
    mean is one over tokens. NaN where there is nothing to take a mean of."""
    sums = np.asarray(values, dtype=np.float64)
    sizes = np.ones_like(sums) if counts is None else np.asarray(counts, dtype=np.float64)
    return _bootstrap(np.stack([sums, sizes], 1), lambda drawn: drawn[:, 0] / drawn[:, 1])


def _bootstrap(rows: Array, statistic: Callable[[Array], Array]) -> Interval:
    """A statistic of what rows add up to, and its percentile interval where they are drawn anew (1,000 times, always
    the same ones). rows (n, k); statistic (draws, k) -> (draws,)."""
    count = len(rows)
    if not count or not rows[:, -1].any():
        return Interval(math.nan, math.nan, math.nan)
    rng, at_once = np.random.default_rng(0), max(1, DRAWN_AT_ONCE // count)
    sums = np.concatenate([
        rng.multinomial(count, np.full(count, 1 / count), min(at_once, RESAMPLES - start)) @ rows
        for start in range(0, RESAMPLES, at_once)
    ])  # fmt: skip
    drawn = statistic(sums[sums[:, -1] > 0])
    low, high = np.quantile(drawn, (0.025, 0.975))
    whole = float(statistic(rows.sum(0, keepdims=True))[0])
    return Interval(whole, min(whole, float(low)), max(whole, float(high)))  # a calibration error is lowest as it is


def normalised(text: str) -> str:
    """Lower case, without double spaces, and without the punctuation at its ends that says nothing: -, $ and % stay."""
    return " ".join(text.lower().split()).strip(EDGES)


def exact_match(written: str, reference: str) -> float:
    return float(normalised(written) == normalised(reference))


def value_of(text: str) -> Fraction | None:
    """The value of the last number or expression of numbers in a text (`(3 + 4) * 2`); None where there is none.

    Parsed, never evaluated as code: only + - * / of numbers are known.
    """
    for found in reversed(EXPRESSION.findall(text.replace("$", "").replace("%", ""))):
        if len(found) > 2 * MOST_DIGITS:
            continue
        try:
            return _valued(ast.parse(_balanced(re.sub(NUMBER, _plain, found).strip()), mode="eval").body)
        except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, KeyError):
            continue
    return None


def _plain(found: re.Match[str]) -> str:
    """A number as Python writes it: without its groups, a mixed fraction as a sum."""
    text = found.group()
    if "/" in text:
        return "(" + text.replace(" ", "+") + ")"
    if text.count(".") > 1:
        text = text.replace(".", "")
    return text.replace(" ", "").replace(",", "").lstrip("0") or "0"


def _balanced(text: str) -> str:
    """Without brackets at its ends that nothing closes or opens, as around `(100`."""
    while text.count("(") > text.count(")") and text.startswith("("):
        text = text[1:].strip()
    while text.count(")") > text.count("(") and text.endswith(")"):
        text = text[:-1].strip()
    return text


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


def distinct(texts: Sequence[str], n: int) -> Interval:
    """Different n-grams of words among all of them (distinct-n, arXiv 1510.03055).

    The interval is the jackknife's: a text that is drawn twice, as by the bootstrap, would bring nothing new.
    """
    grams = [Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in map(str.split, texts)]
    homes = Counter(gram for one in grams for gram in one)
    total, different = sum(one.total() for one in grams), len(homes)
    if not total:
        return Interval(0.0, 0.0, 0.0)
    share = different / total
    without = [
        (different - sum(homes[gram] == 1 for gram in one)) / (total - one.total())
        for one in grams
        if one and one.total() < total
    ]
    spread = np.var(without) * (len(without) - 1) if without else 0.0
    half = 1.96 * math.sqrt(spread)
    return Interval(share, max(0.0, share - half), min(1.0, share + half))


def calibration_error(
    confidences: Sequence[float], hits: Sequence[bool], owners: Sequence[int] | None = None
) -> Interval:
    """Expected calibration error over `BINS` bins of equal width (arXiv 1706.04599). owners: the row of each, whose
    tokens are drawn together."""
    sure, right = np.asarray(confidences, dtype=np.float64), np.asarray(hits, dtype=np.float64)
    homes = np.arange(len(sure)) if owners is None else np.asarray(owners, dtype=np.int64)
    rows = np.zeros((int(homes.max(initial=-1)) + 1, BINS + 1))
    np.add.at(rows, (homes, np.minimum(BINS - 1, (sure * BINS).astype(np.int64))), sure - right)
    np.add.at(rows, (homes, BINS), 1.0)
    return _bootstrap(rows, lambda drawn: np.abs(drawn[:, :BINS]).sum(1) / drawn[:, BINS])


def macro_f1(answers: Sequence[str], right: Sequence[str], tasks: Sequence[str] | None = None) -> Interval:
    """The mean of every label's F1; labels are those of the right answers. Of several tasks, the mean of theirs, as
    MetaICL reports it."""
    homes = tasks or [""] * len(right)
    labels = sorted(set(zip(homes, right, strict=True)))
    of_task = Counter(task for task, _ in labels)
    weights = np.array([1 / of_task[task] for task, _ in labels])

    def marks(given: Sequence[str]) -> Array:
        found = [[pair == label for label in labels] for pair in zip(homes, given, strict=True)]
        return np.array(found, dtype=np.float64).reshape(-1, len(labels))

    said, due = marks(answers), marks(right)
    rows = np.concatenate([said * due, said + due, np.ones((len(right), 1))], 1)

    def mean(drawn: Array) -> Array:
        hits, of = drawn[:, : len(labels)], drawn[:, len(labels) : -1]
        present = (of > 0) * weights
        found: Array = (2 * hits / np.maximum(of, 1) * present).sum(1) / np.maximum(present.sum(1), 1e-12)
        return found

    return _bootstrap(rows, mean)


def vote(ballots: Sequence[str]) -> str:
    """The most common one; of equals the one that came first."""
    return Counter(ballots).most_common(1)[0][0]
