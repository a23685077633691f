"""A model's output where it matters: one row for each token with a loss, alike for both architectures."""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from training import shape
from training.divergences import wide
from training.rows import IGNORED, Collator, TokenRow

SHARPENED = 1e3  # states are made so many times larger before a head is tried: only then does a soft cap show
_bare_heads: "weakref.WeakKeyDictionary[Any, bool]" = weakref.WeakKeyDictionary()


def as_they_are(logits: Tensor) -> Tensor:
    """The head of a model that gave logits itself."""
    return logits


@dataclass(frozen=True)
class Aligned:
    """Row i of `logits` (n, vocabulary) predicts token `targets[i]`, which belongs to row `owners[i]` of the batch.

    They are made by `head` of `states` (n, width) when they are first asked for, without what is beyond `vocabulary`.
    `hidden`: states after the embeddings and after each layer, (n, width) each, where they were asked for.
    """

    states: Tensor
    targets: Tensor
    owners: Tensor
    hidden: tuple[Tensor, ...] = ()
    head: Callable[[Tensor], Tensor] = as_they_are
    vocabulary: int | None = None

    @cached_property
    def logits(self) -> Tensor:
        return self.head(self.states)[:, : self.vocabulary]

    @property
    def numbers(self) -> int:
        """How many logits there are."""
        return len(self.states) * (self.vocabulary or self.states.shape[-1])

    def part(self, rows: slice) -> "Aligned":
        """Some of the rows, with logits of their own."""
        hidden = tuple(states[rows] for states in self.hidden)
        return replace(
            self, states=self.states[rows], targets=self.targets[rows], owners=self.owners[rows], hidden=hidden
        )

    def cut(self, vocabulary: int | None) -> "Aligned":
        """Without the logits of padded entries, which no tokenizer writes; None for none of those."""
        return self if vocabulary is None else replace(self, vocabulary=vocabulary)


def positions(model: Any) -> int:
    """Tokens that a model can read, as `shape.positions`; without end where its configuration names none."""
    return shape.positions(model.config) or 2**31


def has_bare_head(model: Any) -> bool:
    """Whether a decoder-only model's logits are the product of its last states and its head, and nothing more: no soft
    cap, no multiplier, no layer between. Measured once on a short row, where the model is whole (before `fully_shard`).
    """
    if model not in _bare_heads:
        _bare_heads[model] = _is_bare(model)
    return _bare_heads[model]


def _is_bare(model: Any) -> bool:
    body, head = model.base_model, model.get_output_embeddings()
    if body is model or head is None:
        return False
    ids = torch.tensor([[11 * i % shape.vocabulary(model.config) for i in range(3, 13)]], device=model.device)
    seen: list[Tensor] = []

    def sharpened(module: Any, inputs: Any, output: Any) -> Any:
        seen.append(output.last_hidden_state * SHARPENED)
        output["last_hidden_state"] = seen[-1]
        return output

    hook, was_training = body.register_forward_hook(sharpened), model.training
    model.eval()
    try:
        with torch.no_grad():
            whole = model(input_ids=ids, use_cache=False).logits
            product = head(seen[-1]) if seen else torch.full_like(whole, math.inf)
    except (AttributeError, TypeError, RuntimeError, KeyError, IndexError):
        return False  # it does not make them that way
    finally:
        hook.remove()
        model.train(was_training)
    return product.shape == whole.shape and bool((product - whole).abs().max() <= 1e-5 * whole.abs().max())


def aligned(model: Any, batch: dict[str, Tensor], hidden: bool = False) -> Aligned:
    """Run a model over a batch of `rows.Collator`.

    A decoder-only model predicts token t + 1 at t; an encoder-decoder predicts label t at t, from the labels before
    it. The vocabulary head of a small student is most of its work (60 % of SmolLM2-135M cut to 5 layers), so logits
    are computed for labelled tokens alone: prompts and padding cost no head.
    """
    if model.config.is_encoder_decoder:
        return _encoder_decoder(model, batch, hidden)
    labels, owners = batch["labels"][:, 1:], batch["owners"][:, 1:]
    valid = labels != IGNORED
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}
    # use_cache=False: with a cache, packed rows see each other (measured: logits off by 0.61).
    head, size = as_they_are, None
    if not has_bare_head(model):
        out = model(**inputs, use_cache=False, output_hidden_states=hidden)
        states = out.logits[:, :-1][valid]
    else:
        out = model.base_model(**inputs, use_cache=False, output_hidden_states=hidden)
        states, head = out.last_hidden_state[:, :-1][valid], model.get_output_embeddings()
        size = len(head.weight)
    layers = tuple(state[:, :-1][valid] for state in out.hidden_states) if hidden else ()
    return Aligned(states, labels[valid], owners[valid], layers, head, size)


def _encoder_decoder(model: Any, batch: dict[str, Tensor], hidden: bool) -> Aligned:
    labels = batch["labels"]
    shifted = model.prepare_decoder_input_ids_from_labels(labels)
    if "starts" in batch:  # packed: the bias of T5 depends on distances alone, so masks are enough
        shifted = shifted.masked_fill(batch["starts"], int(shifted[0, 0]))
        encoded = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=batch["encoder_mask"])
        inputs = {
            "encoder_outputs": encoded, "attention_mask": batch["cross_mask"],
            "decoder_attention_mask": batch["decoder_mask"],
        }  # fmt: skip
    else:
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    out = model(**inputs, decoder_input_ids=shifted, use_cache=False, output_hidden_states=hidden)
    valid = labels != IGNORED
    layers = tuple(state[valid] for state in out.decoder_hidden_states) if hidden else ()
    return Aligned(out.logits[valid], labels[valid], batch["owners"][valid], layers)


LEAK = 1e-4  # of what a changed token changes; measured: 7e-6 in SmolLM2-135M, whose rows do not see each other


def packs(model: Any) -> bool:
    """Whether rows that share a row of a batch say what each would say alone, measured on two short ones.

    Not so where positions go on from one row to the next (OPT, Falcon, BART) or a state does (Mamba), and where a model
    knows no such masks at all.
    """
    vocabulary = len(model.get_input_embeddings().weight)
    ids = [11 * i % vocabulary for i in range(3, 23)]
    seq2seq = bool(model.config.is_encoder_decoder)
    first, second, other = (
        TokenRow(one, one[1:] if seq2seq else [IGNORED, *one[1:]]) for one in (ids[:7], ids[7:], [ids[0], *ids[8:]])
    )
    was_training, collate = model.training, Collator(0, seq2seq)

    def said(*bins: list[TokenRow]) -> Tensor:
        batch = {k: x.to(model.device) for k, x in collate(bins).items() if isinstance(x, Tensor)}
        return wide(aligned(model, batch).logits)[-(len(second.labels) - (not seq2seq)) :]

    model.eval()
    with torch.no_grad():
        alone, changed = said([second]), said([other])
        try:
            packed = said([first, second])
        except (RuntimeError, ValueError, TypeError):
            packed = changed
    model.train(was_training)
    return bool((packed - alone).abs().max() <= LEAK * (changed - alone).abs().max())
