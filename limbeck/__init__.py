"""Limbeck distils large language models into small ones, on Ray.

`limbeck.plan(spec)`, `limbeck.run(spec, out)`, `limbeck.replay(spec, out)`, `limbeck.train(spec, out)` and
`limbeck.evaluate(spec, out)` do what the commands of the same names do.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from limbeck.evaluation import evaluate
    from limbeck.jobs import plan, replay, run, train

__all__ = ["evaluate", "plan", "replay", "run", "train"]


def __getattr__(name: str) -> Any:
    # Ray, torch and the SDKs are imported where they are used: importing limbeck stays under 0.3 s.
    if name in __all__:
        from limbeck import evaluation, jobs

        return getattr(evaluation if name == "evaluate" else jobs, name)
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
