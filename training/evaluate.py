"""What a student is worth on held-out rows: loss on the response tokens, ROUGE-L of what it writes."""

from collections.abc import Iterator, Sequence
from typing import Any

import regex
import torch
from nltk.stem.porter import PorterStemmer
from rouge_score.rouge_scorer import RougeScorer
from torch.nn.functional import cross_entropy

from schemas.objective import Icl
from schemas.student import TrainingSpec
from training.aligned import aligned, positions
from training.examples import Pair
from training.rows import Collator, TokenRow, padded, prompt_ids
from training.scores import Interval, interval
from training.students import Student, plainly

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORD = regex.compile(rf"[{UNSPACED}]|[\p{{L}}\p{{M}}\p{{N}}--[{UNSPACED}]]+", regex.VERSION1)
BATCH = 4
GENERATED_ROWS = 48  # ROUGE-L is measured on at most this many held-out rows
GENERATED_TOKENS = 96


def batches(student: Student, rows: Sequence[TokenRow]) -> Iterator[dict[str, torch.Tensor]]:
    """Rows on the student's device, a few at a time."""
    collate = Collator(student.tokenizer.pad_token_id, student.seq2seq)
    for start in range(0, len(rows), BATCH):
        batch = collate([[row] for row in rows[start : start + BATCH]])
        yield {name: x.to(student.model.device) for name, x in batch.items() if isinstance(x, torch.Tensor)}


def held_out_sums(student: Student, rows: Sequence[TokenRow]) -> tuple[float, int]:
    """(the loss of all response tokens, in nats, how many they are)."""
    student.model.eval()
    total, count = 0.0, 0
    with torch.inference_mode():
        for batch in batches(student, rows):
            seen = aligned(student.model, batch)
            total += float(cross_entropy(seen.logits.float(), seen.targets, reduction="sum"))
            count += len(seen.targets)
    return total, count


def responses(
    student: Student, pairs: Sequence[Pair], template: str | None, max_length: int, tokens: int = GENERATED_TOKENS,
    seed: int | None = None, cut_prompts: bool = False,
) -> list[str]:  # fmt: skip
    """Responses of at most so many tokens: greedy ones, or sampled at temperature 1 where there is a seed. Long prompts
    are cut as in `token_rows`."""
    drawn: dict[str, Any] = {"do_sample": False}
    if seed is not None:
        torch.manual_seed(seed)
        drawn = {"do_sample": True, "top_k": 0}
    tokenizer, model = student.tokenizer, student.model.eval()
    longest = min(max_length, positions(model) - 1)
    # A decoder goes on from the end of its prompt.
    kept = slice(-longest, None) if cut_prompts or not student.seq2seq else slice(longest)
    prompts = [ids[kept] for ids in prompt_ids(pairs, tokenizer, template, student.seq2seq)]
    written: list[str] = []
    with torch.inference_mode(), plainly(model):
        for start in range(0, len(prompts), BATCH):
            encoded = padded(prompts[start : start + BATCH], tokenizer.pad_token_id, model.device, not student.seq2seq)
            room = positions(model) - (1 if student.seq2seq else encoded["input_ids"].shape[1])
            out = model.generate(
                **encoded, **drawn, max_new_tokens=min(tokens, room), pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
            new = out if student.seq2seq else out[:, encoded["input_ids"].shape[1] :]
            written += tokenizer.batch_decode(new, skip_special_tokens=True)
    return written


def rouge_l(written: Sequence[str], references: Sequence[str]) -> list[float]:
    """ROUGE-L F1 with stemming of each, 0 to 1."""
    scorer = RougeScorer(["rougeL"], tokenizer=Words())
    return [float(scorer.score(ref, out)["rougeL"].fmeasure) for out, ref in zip(written, references, strict=True)]


class Words:
    """The words of a text in any script, English ones stemmed: what rouge-score's own does with English, which drops
    every letter beyond a to z. Scripts that put no spaces between words are taken letter by letter."""

    def __init__(self) -> None:
        self._stem = PorterStemmer().stem

    def tokenize(self, text: str) -> list[str]:
        words = WORD.findall(text.lower())
        return [self._stem(word) if len(word) > 3 and word.isascii() else word for word in words]


def held_out_rouge(student: Student, pairs: Sequence[Pair], spec: TrainingSpec) -> Interval:
    """ROUGE-L of the student's responses against the teacher's on the first `GENERATED_ROWS` held-out rows."""
    assert spec.data is not None
    shown, episodes = list(pairs[:GENERATED_ROWS]), isinstance(spec.objective, Icl)
    written = responses(student, shown, spec.data.template, spec.max_length, cut_prompts=episodes)
    return interval(rouge_l(written, [pair.response for pair in shown]))
