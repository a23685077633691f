"""Limbeck distils large language models into small ones, on Ray.

`limbeck.plan(spec)`, `limbeck.run(spec, out)`, `limbeck.replay(spec, out)`, `limbeck.train(spec, out)` and
`limbeck.evaluate(spec, out)` do what the commands of the same names do. A spec is the path of a YAML file, the same
keys and values as a dict, or a validated one of schemas/. All errors of ours are `limbeck.LimbeckError`s.
"""

from typing import TYPE_CHECKING, Any

from schemas.errors import LimbeckError

if TYPE_CHECKING:
    from limbeck.evaluation import evaluate
    from limbeck.jobs import plan, replay, run, train

__all__ = ["LimbeckError", "evaluate", "plan", "replay", "run", "train"]


def __getattr__(name: str) -> Any:
    # Ray, torch and the SDKs are imported where they are used: importing limbeck stays under 0.3 s.
    if name in __all__:
        from limbeck import evaluation, jobs

        return getattr(evaluation if name == "evaluate" else jobs, name)
    raise AttributeError(f"module 'limbeck' has no attribute {name!r}")
