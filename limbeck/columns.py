"""What a job's dataset will hold, and what students need of it: checked before anything is paid for."""

import pyarrow as pa

from pipelines.harvest import SCHEMAS
from schemas.job import JobSpec
from schemas.objective import AnyObjective, Icl, StepByStep
from schemas.student import TrainingData


def check_run_columns(job: JobSpec, data: TrainingData, objective: AnyObjective) -> None:
    """`SpecError` where the rows that `job` will publish lack a column that `objective` learns or asks from."""
    from training.data import check_columns
    from training.examples import as_alpaca, needed

    if data.form == "alpaca":
        data = as_alpaca(data)
    elif not data.fields and not isinstance(objective, StepByStep | Icl):
        return  # the rows of any pipeline are put into words
    texts = [field.name for field in SCHEMAS[job.pipeline] if field.type == pa.string()]
    names = [name for name in texts if name != "gold" or "label" in job.source.fields]
    check_columns(names, data, needed(objective, data), "the run's dataset: ")
