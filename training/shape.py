"""What a model's configuration says of its text part, whatever the family calls it. Configurations with several parts
(vision, text) nest it."""

from typing import Any


def text_part(config: Any) -> Any:
    """The configuration of what writes: itself, or the part of it that is about text."""
    return config.get_text_config()


def vocabulary(config: Any) -> int:
    """Logits of a token."""
    return int(text_part(config).vocab_size)


def width(config: Any) -> int:
    """Of the states between layers."""
    return int(text_part(config).hidden_size)


def decoder_layers(config: Any) -> int:
    """Layers of what writes: `num_hidden_layers` is the encoder's in BART's family."""
    part = text_part(config)
    names = ("decoder_layers", "num_decoder_layers", "num_hidden_layers")
    return int(next(count for name in names if (count := getattr(part, name, None)) is not None))


def positions(config: Any) -> int | None:
    """Tokens that a decoder-only model can read and write in all, an encoder-decoder on each side; None where its
    configuration names no end."""
    return getattr(text_part(config), "max_position_embeddings", None)
