"""Cross-entropy of every labelled token, for decoder-only and encoder-decoder students alike."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from training.data import IGNORED

# Settings of heads that do more than a product.
SCALED_HEADS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


class TokenLosses(torch.nn.Module):
    """A student whose output is the loss of each labelled token in nats, shape (labelled tokens,).

    The vocabulary head of a small student is most of its work (60 % of SmolLM2-135M cut to 5 layers), so logits are
    computed for labelled tokens alone: prompts and padding cost no head.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.seq2seq = bool(config.is_encoder_decoder)
        self._plain_head = not self.seq2seq and not any(getattr(config, name, None) for name in SCALED_HEADS)

    def forward(self, labels: Any, **inputs: Any) -> Any:
        if self.seq2seq:
            shifted = labels.masked_fill(labels == IGNORED, self.model.config.pad_token_id)
            logits = self.model(**inputs, decoder_input_ids=self.model._shift_right(shifted)).logits
            valid = labels != IGNORED
            return cross_entropy(logits[valid].float(), labels[valid], reduction="none")
        # A decoder-only row predicts token t + 1 at t.
        targets = labels[:, 1:]
        valid = targets != IGNORED
        # use_cache=False: with a cache, packed rows see each other (measured: logits off by 0.61).
        if self._plain_head:
            hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state[:, :-1]
            logits = self.model.get_output_embeddings()(hidden[valid])
        else:
            logits = self.model(**inputs, use_cache=False).logits[:, :-1][valid]
        return cross_entropy(logits.float(), targets[valid], reduction="none")
