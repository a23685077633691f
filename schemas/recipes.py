"""Recipes: the settings of papers by name, and where a paper and its code differ."""

import difflib
from typing import Any, NamedTuple


class Recipe(NamedTuple):
    """What a spec gets that names it; each key of the spec's own wins."""

    source: str
    settings: dict[str, Any]
    note: str


RECIPES: dict[str, Recipe] = {
    "distilling_step_by_step": Recipe(
        "arXiv 2305.02301; github.com/google-research/distilling-step-by-step",
        {
            "objective": {"name": "step_by_step", "alpha": 0.5}, "learning_rate": 5e-5, "batch_size": 64,
            "steps": 10_000, "max_length": 1024, "schedule": "linear", "warmup": 0.0,
        },
        "The paper adds the rationale's loss with weight lambda = 1; its code weighs both by alpha and 1 - alpha,"
        " 0.5 each, which is the same direction at half the rate. The code runs two forward passes, one a task; "
        "here both tasks share a batch, and each loss is a mean over its own tokens. Its T5-XXL took 4,000 steps "
        "of 32.",
    ),
    "lamini": Recipe(
        "arXiv 2304.14402; model card of LaMini-T5-738M",
        {
            "objective": {"name": "sft"}, "learning_rate": 5e-4, "batch_size": 32, "accumulation": 32, "epochs": 5,
            "schedule": "linear", "warmup": 0.0, "max_length": 512,
        },
        "For encoder-decoders, which read the instruction as it is. Decoder-only students: learning_rate 2e-5 and"
        " data.form alpaca. The paper says batches of 1,024, the model card logs 512 with the same rate. "
        "batch_size x accumulation is 1,024 on one worker: divide accumulation by the workers.",
    ),
    "multitask_ict": Recipe(
        "arXiv 2212.10670; optimiser of github.com/facebookresearch/MetaICL",
        {
            "objective": {"name": "icl", "soft": True, "hard_from": 1.0, "hard_to": 0.0}, "learning_rate": 1e-5,
            "batch_size": 8, "steps": 30_000, "schedule": "linear", "max_length": 1024,
        },
        "Hard labels fade linearly into the teacher's, as in the paper; objective.lm adds its language-modelling "
        "term, which helps this setting (its weight, 0.2 in the authors' notebook, is not in the paper). The "
        "paper's own rate and steps are not known: these are MetaICL's for GPT-2 large. A co-author's code for "
        "BERT: 3e-6, batches of 48.",
    ),
    "kd": Recipe(
        "arXiv 1503.02531; baseline of github.com/microsoft/LMOps/minillm",
        {
            "objective": {"name": "kd", "alpha": 0.5, "beta": 0.5, "tau": 1.0}, "learning_rate": 5e-4, "batch_size": 32,
            "epochs": 20, "schedule": "cosine", "weight_decay": 0.01, "max_length": 512,
        },
        "MiniLLM's word-level baseline for GPT-2 base; medium and large took 1e-4. Hinton's temperature "
        "(objective.tau) is 1 there. Its SeqKD script passes the teacher's logits, too, so it is SeqKD and KD "
        "together.",
    ),
    "gkd": Recipe(
        "arXiv 2306.13649",
        {
            "objective": {"name": "gkd", "lambda": 1.0, "beta": 0.1, "temperature": 1.0, "max_new_tokens": 128},
            "max_length": 512,
        },
        "On-policy with JSD(0.1), best on WMT; forward KL (beta 0) was best on GSM8K, reverse KL (1) for "
        "instructions. Start from a student that was fine-tuned (fine_tune_first), beside a teacher that was, too "
        "(fine_tune_teacher). Rate, batch and steps of the appendix are not known to us: choose them. TRL's defaults "
        "(lambda 0.5, beta 0.5, temperature 0.9) are its own.",
    ),
    "minillm": Recipe(
        "arXiv 2306.08543; github.com/microsoft/LMOps/minillm",
        {
            "objective": {
                "name": "minillm", "variant": "paper", "teacher_mix": 0.2, "clip": 0.2, "reuse": 4, "rollouts": 256,
                "temperature": 1.0, "max_new_tokens": 256,
            },
            "learning_rate": 5e-6, "batch_size": 16, "accumulation": 4, "steps": 5_000, "schedule": "constant",
            "warmup": 0.02, "weight_decay": 1e-6, "betas": [0.9, 0.95], "max_length": 512,
        },
        "objective.variant: released does what the code does instead: returns with a discount of 0.95 that hold "
        "r_t, too, whitened over a batch, and a language-modelling loss that is half distillation. Fine-tune teacher "
        "and student before (fine_tune_teacher, fine_tune_first); of the student take the state with the lowest "
        "held-out loss (checkpoints.best). The code keeps the checkpoint with the best ROUGE-L, and samples 256 "
        "responses before it learns from any; here each of them is sampled when its step comes first, by newer "
        "weights.",
    ),
}  # fmt: skip


def with_recipe(spec: dict[str, Any]) -> dict[str, Any]:
    """A training spec with the settings of its recipe below its own. `ValueError` for a name that is not known."""
    name = spec.get("recipe")
    if name is None:
        return spec
    if not isinstance(name, str) or name not in RECIPES:
        near = difflib.get_close_matches(str(name), RECIPES, 1)
        raise ValueError(
            f"recipe {name!r} is not known; " + (f"do you mean {near[0]}?" if near else f"{', '.join(RECIPES)} are")
        )
    settings = dict(RECIPES[name].settings)
    own = spec.get("objective")
    if isinstance(own, str):
        own = {"name": own}
    if isinstance(own, dict) and own.get("name", settings["objective"]["name"]) == settings["objective"]["name"]:
        own = {**settings["objective"], **own}
    if "epochs" in spec:
        settings.pop("steps", None)  # whoever says how many passes wants no more
    return {**settings, **spec, "objective": own or settings["objective"]}
