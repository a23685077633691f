"""From rows of a training set to what a student reads and writes, as each objective wants it."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from schemas.errors import SpecError
from schemas.objective import AnyObjective, Icl, LanguageModelling, StepByStep
from schemas.record import conversation
from schemas.student import TrainingData
from training.data import check_columns, is_mapped, mapped_rows, raw_rows

MAIN, SECOND, TEXT = 0, 1, 2  # tasks of rows: label, rationale (or soft label), plain text


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and the response to learn."""

    prompt: str
    response: str
    record: str = ""  # its id
    task: int = MAIN  # which of an objective's losses it belongs to
    weight: float = 1.0
    turns: tuple[tuple[str, str], ...] = ()  # role and text of what the prompt was made of, for a chat template


# Of github.com/tatsu-lab/stanford_alpaca (README, Apache-2.0): without and with an input.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n",
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}"
    "\n\n### Response:\n",
)

Example = tuple[Pair, ...]  # all that is learned from one record; the first is what is asked at inference


def needed(objective: AnyObjective, data: TrainingData) -> tuple[str, ...]:
    """The columns that an objective learns from."""
    if data.form != "pairs" and not isinstance(objective, StepByStep | Icl):
        return ("messages",) if data.form == "messages" else ("instruction", "output")
    if isinstance(objective, StepByStep):
        return ("input", "rationale", "label")
    return ("input", "output") if isinstance(objective, Icl) else ("prompt", "response")


def check_data(data: TrainingData | None, objective: AnyObjective) -> None:
    """`SpecError` for what is wrong with any row: a missing file, an absent field, one that is not text, fewer than
    two rows. 6 s for a million rows, against a teacher that was paid for nothing."""
    if data is None:
        raise SpecError("data is required", "data: {path: pairs.jsonl} or data: {run: RUN}")
    _require_two(sum(1 for _ in _examples(data, objective)))
    if (lm := language_modelling(objective)) is not None:
        deque(stream_text(lm), maxlen=0)


def stream_examples(data: TrainingData, objective: AnyObjective) -> Iterator[Example]:
    """The examples of a dataset, one after the other. `SpecError` for a missing file, an absent field, or fewer than
    two rows."""
    times: dict[str, int] = {}
    for example in _examples(data, objective):
        yield _again(example, times)
    _require_two(len(times))


def _again(example: Example, times: dict[str, int]) -> Example:
    """An id that stands twice is told apart: what is sampled or written down of a record is found by it. `times` holds
    how often each id stood before."""
    record = name = example[0].record
    while name in times:
        times[record] += 1
        name = f"{record}#{times[record]}"
    times[name] = 1
    return example if name == record else tuple(replace(pair, record=name) for pair in example)


def _require_two(rows: int) -> None:
    if rows < 2:
        raise SpecError(f"data: {rows} usable rows", "a student needs at least one to learn and one held out")


def _examples(data: TrainingData, objective: AnyObjective) -> Iterator[Example]:
    if isinstance(objective, StepByStep):
        return _steps(data, objective)
    if isinstance(objective, Icl):
        return _episodes(data, objective)
    return {"pairs": _pairs, "messages": _conversations, "alpaca": _alpaca}[data.form](data)


def _pairs(data: TrainingData) -> Iterator[Example]:
    if is_mapped(data):
        for number, (_, row) in enumerate(mapped_rows(data, ("prompt", "response"), ("id",))):
            yield (Pair(row["prompt"], row["response"], str(row.get("id", number))),)
        return
    separator = "" if data.template else "\n\n"
    for where, row in raw_rows(data):
        try:
            asked, answered = (turn["content"] for turn in conversation(row))
        except KeyError as error:
            raise SpecError(f"data.run: {where}: no column {error}", "name a run, or map data.fields") from None
        yield (Pair(asked + separator, answered, str(row["id"])),)


def _conversations(data: TrainingData) -> Iterator[Example]:
    """Each row is a list of turns: the last one, the assistant's, is learned; those before it are read."""
    name = data.fields.get("messages", "messages")
    for number, (where, row) in enumerate(raw_rows(data, None, ("messages",))):
        check_columns(list(row), data, ("messages",), f"{where}: ")
        try:
            read = [_turn(turn, f"data: {where}: turn {at} of {name!r}") for at, turn in enumerate(row[name], 1)]
        except (TypeError, KeyError):
            read = []
        if len(read) < 2 or read[-1][0] != "assistant":
            raise SpecError(
                f"data: {where}: field {name!r} must be a list of role and content that ends with the assistant's",
                "mend the row or leave it out",
            )
        *before, (_, answered) = read
        if not answered.strip():
            raise SpecError(f"data: {where}: the assistant's last turn is blank", "mend the row or leave it out")
        asked = "".join(f"{text}\n\n" for _, text in before)
        yield (Pair(asked, answered, str(row.get("id", number)), turns=tuple(before)),)


def _turn(turn: dict[str, Any], where: str) -> tuple[str, str]:
    """(role, text) of a message; its text may come in parts, as chat APIs take it. `SpecError` for what is no text."""
    content = turn["content"]
    parts = content if isinstance(content, list) else []
    other = {str(part["type"]) for part in parts} - {"text"}
    if isinstance(content, list) and not other:
        content = "".join(part["text"] for part in parts)
    if isinstance(content, str):
        return str(turn["role"]), content
    other |= {"tool_calls"} if turn.get("tool_calls") else set()
    what = f"holds {', '.join(sorted(other))}" if other else "has no text"
    raise SpecError(f"{where} {what}: students learn text alone", "mend the row or leave it out")


def as_alpaca(data: TrainingData) -> TrainingData:
    """Where the rows of an instruct run hold Alpaca's columns, unless the spec says where."""
    return data if data.fields else data.model_copy(update={"fields": {"output": "response"}})


def _alpaca(data: TrainingData) -> Iterator[Example]:
    """Stanford Alpaca's columns in its prompt, which LaMini's decoders are trained with, too; `chat` gives the
    instruction and the input alone."""
    rows = mapped_rows(as_alpaca(data) if data.run is not None else data, ("instruction", "output"), ("id", "input"))
    for number, (where, row) in enumerate(rows):
        more = row.get("input") or ""
        if not isinstance(more, str):
            raise SpecError(f"data: {where}: field 'input' must be text", "mend the row")
        asked = f"{row['instruction']}\n\n{more}" if more.strip() else row["instruction"]
        prompt = ALPACA[bool(more.strip())].format(instruction=row["instruction"], input=more)
        turns = (("user", asked),)
        yield (Pair(prompt, row["output"], str(row.get("id", number)), turns=turns),)


def _steps(data: TrainingData, objective: StepByStep) -> Iterator[Example]:
    """Two tasks for each record: its label, and why."""
    rows = mapped_rows(data, ("input", "rationale", "label"), ("id",)) if is_mapped(data) else _of_run(data)
    for number, (_, row) in enumerate(rows):
        record = str(row.get("id", number))
        yield (
            Pair(objective.predict + row["input"], row["label"], record, MAIN),
            Pair(objective.explain + row["input"], row["rationale"], record, SECOND),
        )


def _of_run(data: TrainingData) -> Iterator[tuple[str, dict[str, Any]]]:
    """A cot run's rows, choices in words; a label may be blank where its spec keeps such rows."""
    for where, row in raw_rows(data):
        check_columns(list(row), data, ("input", "rationale", "label"), f"{where}: ")
        asked = conversation(row)[0]["content"] if "choices" in row else row["input"]
        yield where, {**row, "input": asked}


def _episodes(data: TrainingData, objective: Icl) -> Iterator[Example]:
    """The gold output, and with `soft` each option at the teacher's probability of it."""
    for number, (where, row) in enumerate(
        mapped_rows(data, ("input", "output"), ("id", "demonstrations", "options", "option_probs"))
    ):
        record, prompt = str(row.get("id", number)), episode_prompt(row, objective.delimiter, where)
        options, chances = row.get("options") or [], row.get("option_probs") or []
        found = [Pair(prompt, row["output"], record, MAIN)]
        if objective.soft:
            if len(options) != len(chances) or not options:
                raise SpecError(
                    f"data: {where}: {len(options)} options and {len(chances)} option_probs",
                    "soft labels need both, one to one; or set objective.soft: false",
                )
            lists = isinstance(options, list) and isinstance(chances, list)
            if not lists or not all(isinstance(o, str) for o in options) or not all(_is_chance(c) for c in chances):
                raise SpecError(
                    f"data: {where}: options must be texts, option_probs numbers from 0 to 1", "mend the row"
                )
            found += [Pair(prompt, o, record, SECOND, float(c)) for o, c in zip(options, chances, strict=True)]
        yield tuple(found)


def _is_chance(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def episode_prompt(row: dict[str, Any], delimiter: str, where: str = "") -> str:
    """input, a new line and output of each demonstration, then the input whose output is asked."""
    shown = row.get("demonstrations") or []
    try:
        texts = [(one["input"], one["output"]) for one in shown]
    except (TypeError, KeyError):
        texts = [(None, None)]
    if not all(isinstance(text, str) for pair in texts for text in pair):
        raise SpecError(f"data: {where}: demonstrations must be a list of input and output", "mend the row")
    turns = [f"{asked}\n{answered}" for asked, answered in texts]
    return delimiter.join([*turns, f"{row['input']}\n"])


def language_modelling(objective: AnyObjective) -> LanguageModelling | None:
    """The plain text that an objective learns beside its task."""
    found: LanguageModelling | None = getattr(objective, "lm", None)
    return found


def stream_text(lm: LanguageModelling, seq2seq: bool = False) -> Iterator[Pair]:
    """The texts of an objective's language-modelling term. `SpecError` as for any training set.

    An encoder-decoder reads the first half of a text and learns to write the second (prefix language modelling).
    """
    number = -1
    for number, (where, row) in enumerate(raw_rows(TrainingData(path=lm.path), [lm.field])):
        value = row.get(lm.field)
        if not isinstance(value, str) or not value.strip():
            raise SpecError(f"objective.lm: {where}: no text in field {lm.field!r}", "name its column in lm.field")
        middle = max(0, value.find(" ", len(value) // 2)) if seq2seq else 0
        yield Pair(value[:middle], value[middle:], f"text {number}", TEXT)
    if number < 0:
        raise SpecError(f"objective.lm: {lm.path} is empty", "name a file with text")
