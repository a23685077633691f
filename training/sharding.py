"""FSDP2 (`torch.distributed.fsdp.fully_shard`): a student's weights, gradients and optimizer state shared out over the
workers, each layer gathered whole while it computes. What is written of it is whole, whatever the number of workers."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)  # fmt: skip

from schemas.errors import LimbeckError
from training.learner import Learner

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(learner: Learner) -> None:
    """Share out the weights of a learner, in place, on the workers of this training."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    names = set(learner.model._no_split_modules or ())
    layers = [module for module in learner.model.modules() if type(module).__name__ in names]
    if not layers:
        raise LimbeckError("sharding: the student does not say what its layers are", "leave sharding out")
    for layer in layers:
        fully_shard(layer)
    fully_shard(learner)
    register_fsdp_forward_method(learner, "within")


def gathered(learner: Learner, work: Callable[[], Any]) -> Any:
    """What `work` gives, done with all weights whole on every worker: it may run the layers as often as it likes, as
    sampling does, where each worker's responses end at tokens of their own. All workers must ask."""
    from torch.distributed.fsdp import FSDPModule

    layers = [part for part in learner.modules() if isinstance(part, FSDPModule) and part is not learner]

    def whole() -> Any:
        for layer in layers:
            layer.set_reshard_after_forward(False, recurse=False)
            layer.unshard()
        try:
            return work()
        finally:
            for layer in layers:
                layer.set_reshard_after_forward(True, recurse=False)
                layer.reshard()

    return learner.within(whole)


def weights(learner: Learner) -> dict[str, Tensor]:
    """All weights, whole, on the first worker; nothing on the others. All workers must ask."""
    found: dict[str, Tensor] = get_model_state_dict(learner, options=WHOLE)
    return found


def put_weights(learner: Learner, kept: dict[str, Tensor]) -> None:
    """Take back what `weights` gave, or some of it; on every worker."""
    options = StateDictOptions(full_state_dict=True, strict=False)
    set_model_state_dict(learner, kept, options=options)


def optimizer_state(learner: Learner, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state by the names of the weights, whole, on the first worker. All workers must ask."""
    found: dict[str, Any] = get_optimizer_state_dict(learner, optimizer, options=WHOLE)
    return found


def put_optimizer_state(learner: Learner, optimizer: torch.optim.Optimizer, kept: dict[str, Any]) -> None:
    """Take back what `optimizer_state` gave; on every worker."""
    set_optimizer_state_dict(learner, optimizer, kept, options=StateDictOptions(full_state_dict=True))
