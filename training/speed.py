"""How much work a training step is, and what share of its device's peak it reaches (MFU, arXiv 2204.02311, B)."""

from typing import Any

import numpy as np

# Dense bfloat16 operations a second by a part of the device's name (NVIDIA's data sheets, read 2026-11-25).
PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
         "A10": 125e12, "B200": 2250e12}  # fmt: skip


def peak_of(device: str) -> float | None:
    """Operations a second of a device by its name, None where it is not known."""
    return next((peak for name, peak in PEAKS.items() if name in device), None)


def training_flops(model: Any, sizes: np.ndarray) -> float:
    """Operations of one pass forward and back over rows of such `sizes` (see `rows.sizes_of`): 6 for each weight and
    token that it meets, and attention's.

    The vocabulary's head meets labelled tokens alone (see `aligned`); of an encoder-decoder each side meets its own
    tokens. What activation checkpointing computes twice is not counted twice.
    """
    config = model.config
    head = config.vocab_size * config.hidden_size
    if not config.is_encoder_decoder:
        body = _weights(model) - head * (1 if _is_tied(model) else 2)
        layers, width = config.num_hidden_layers, config.hidden_size
        tokens, labelled = sizes.sum(0).tolist()
        squares = float((sizes[:, 0] ** 2).sum())
        return 6.0 * (body * tokens + head * labelled + layers * width * squares)
    encoder, decoder, crossed = _sides(model)
    into, out = sizes.T
    width = config.num_heads * config.d_kv if hasattr(config, "d_kv") else config.hidden_size
    within = 2 * config.num_layers * (into**2).sum() if hasattr(config, "num_layers") else 0
    beside = _decoder_layers(config) * (out**2 + 2 * into * out).sum()
    weights = (encoder + crossed) * into.sum() + (decoder - crossed + head) * out.sum()
    return float(6.0 * (weights + width * (within + beside)))


def _weights(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _is_tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is None or head.weight is model.get_input_embeddings().weight


def _decoder_layers(config: Any) -> int:
    return int(getattr(config, "num_decoder_layers", None) or config.num_hidden_layers)


def _sides(model: Any) -> tuple[int, int, int]:
    """(weights of the encoder, of the decoder, of the decoder's keys and values over the encoder), embeddings apart."""
    embeddings = {id(p) for p in model.get_input_embeddings().parameters()}

    def count(part: Any) -> int:
        return sum(p.numel() for p in part.parameters() if id(p) not in embeddings)

    crossed = sum(
        p.numel() for name, p in model.named_parameters()
        if any(part in name for part in ("EncDecAttention.k.", "EncDecAttention.v.", "encoder_attn.k_proj.w",
                                         "encoder_attn.v_proj.w"))
    )  # fmt: skip
    return count(model.get_encoder()), count(model.get_decoder()), crossed
