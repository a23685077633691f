"""How much work a training step is, and what share of its device's peak it reaches (MFU, arXiv 2204.02311, B)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from training.shape import decoder_layers, text_part

# Dense bfloat16 operations a second by a part of the device's name (NVIDIA's data sheets, read 2026-11-25).
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
         "A10": 125e12, "B200": 2250e12}  # fmt: skip
LEARNED, FROZEN = 6.0, 4.0  # operations of a weight that meets a token: 2 forward, 2 for what is below, 2 for itself
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # a config's names for how many there are


def peak_of(device: str) -> float | None:
    """Operations a second of a device by its name, None where it is not known."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def moments(sizes: np.ndarray) -> np.ndarray:
    """What of rows of such `sizes` (see `rows.sizes_of`; a read and b with a loss) decides their work, (5,): the sums
    of a, b, a^2, b^2 and ab."""
    read, learned = sizes.astype(float).T
    return np.array([x.sum() for x in (read, learned, read**2, learned**2, read * learned)])


def tokens_of(seq2seq: bool, found: Sequence[float]) -> float:
    """Tokens of rows with such `moments`: of an encoder-decoder those of both sides."""
    return found[0] + found[1] if seq2seq else found[0]


def training_flops(model: Any, found: Sequence[float]) -> float:
    """Operations of one pass forward and back over rows with such `moments`: those of each weight and token that it
    meets, and attention's.

    The vocabulary's head meets labelled tokens alone (see `aligned`), an expert its share of the tokens; of an
    encoder-decoder each side meets its own tokens. What activation checkpointing computes twice is not counted twice,
    and neither a teacher's work nor that of sampling is counted.
    """
    config = text_part(model.config)
    head = getattr(model.get_output_embeddings(), "weight", None)
    head_work = LEARNED * config.vocab_size * config.hidden_size if head is None else _work(head)
    read, learned, read_squared, learned_squared, crossing = found
    if not model.config.is_encoder_decoder:
        attention = LEARNED * config.num_hidden_layers * config.hidden_size * read_squared
        return float(_body(model, model.get_decoder()) * read + head_work * learned + attention)
    encoder, decoder = _body(model, model.get_encoder()), _body(model, model.get_decoder())
    crossed = _body(model, model, ("EncDecAttention.k.", "EncDecAttention.v.", "encoder_attn.k_proj.w",
                                   "encoder_attn.v_proj.w"))  # fmt: skip
    width = config.num_heads * config.d_kv if hasattr(config, "d_kv") else config.hidden_size
    layers = next((n for name in ("num_layers", "encoder_layers") if (n := getattr(config, name, None))), 0)
    attention = 2 * layers * read_squared + decoder_layers(config) * (learned_squared + 2 * crossing)
    weights = (encoder + crossed) * read + (decoder - crossed + head_work) * learned
    return float(weights + LEARNED * width * attention)


def _work(weight: Any) -> float:
    return float(weight.numel()) * (LEARNED if weight.requires_grad else FROZEN)


def _body(model: Any, part: Any, only: Sequence[str] = ("",)) -> float:
    """Operations a token of a part's weights, of those whose names hold one of `only`. Tables are looked up, and the
    head is counted apart."""
    tables = [module for module in model.modules() if isinstance(module, torch.nn.Embedding)]
    ends = {id(getattr(end, "weight", None)) for end in (*tables, model.get_output_embeddings())}
    share = _chosen(text_part(model.config))
    return sum(
        _work(p) * (share if ".experts." in name else 1.0) for name, p in part.named_parameters()
        if id(p) not in ends and any(one in name for one in only)
    )  # fmt: skip


def _chosen(config: Any) -> float:
    """The share of a layer's experts that a token meets."""
    experts = next((count for name in EXPERTS if (count := getattr(config, name, None))), 1)
    return float(getattr(config, "num_experts_per_tok", None) or 1) / experts
