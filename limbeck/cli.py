"""The command line. Each command is a few lines round a function; errors are one line and a hint."""

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer._click.exceptions import ClickException, NoArgsIsHelpError  # its only place

from schemas.errors import UNFORESEEN, Interrupted, LimbeckError, SpecError, refused_as_spec
from schemas.text import printable


class OneLine(typer.core.TyperGroup):
    """Commands whose usage errors are one line and a hint, as all others are."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        try:
            status = super().main(*args, **{**kwargs, "standalone_mode": False})
        except NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except ClickException as error:
            context = getattr(error, "ctx", None)
            command = context.command_path if context else "limbeck"
            print(f"limbeck: {' '.join(error.format_message().split())}", file=sys.stderr)
            print(f"hint: {command} --help shows what it takes", file=sys.stderr)
            sys.exit(2)
        sys.exit(status if isinstance(status, int) else 0)


app = typer.Typer(
    name="limbeck",
    cls=OneLine,
    help="Distil large language models into small ones, on Ray: teacher answers in, a dataset and a student out.",
    epilog="Start with: limbeck run examples/quickstart.yaml --out runs/first",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key of the spec, as in a.b=10.")
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Address = Annotated[
    str | None,
    typer.Option(help="A running Ray cluster: auto, or host:port. Without it, a local Ray is started."),
]
Out = Annotated[Path, typer.Option("--out", help="The run directory. The same command on it again resumes.")]


RAY_POLL_S = 1.0


class StopFlag:
    """Set by the first SIGINT or SIGTERM; a second one ends the process at once, and so does the end of the Ray that it
    started: a SIGTERM to the whole group, as of `timeout` or a batch system, reaches that as well."""

    def __init__(self, doing: str = "finishing what is in flight", at_once: Callable[[], None] = lambda: None) -> None:
        self.is_set, self._doing, self._at_once = False, doing, at_once

    def install(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: Any) -> None:
        if self.is_set:
            os._exit(130)
        self.is_set = True
        print(f"stopping: {self._doing} (once more to stop at once)", file=sys.stderr, flush=True)
        threading.Thread(target=self._end_with_ray, daemon=True).start()

    def _end_with_ray(self) -> None:
        from services import cluster

        while not cluster.has_died():
            time.sleep(RAY_POLL_S)
        with suppress(*UNFORESEEN, LimbeckError):
            self._at_once()
        print("limbeck: interrupted, and Ray with it\nhint: run the same command again to go on", file=sys.stderr)
        os._exit(130)  # what is on disk is whole; whoever waits for Ray would wait in vain

    def __call__(self) -> bool:
        return self.is_set


def guarded(work: Callable[[], None], debug: bool) -> None:
    """Run a command; what it raises becomes a line on standard error and an exit status."""
    try:
        work()
    except LimbeckError as error:
        if debug:
            raise
        fail(error)
    except KeyboardInterrupt:
        fail(Interrupted("interrupted", "run the same command again to go on"))
    except BrokenPipeError:
        os._exit(1)
    except UNFORESEEN as error:
        # A disk that fills up, a file that vanishes: what was paid for is on disk, and one line says what happened.
        if debug:
            raise
        lines = str(error).strip().splitlines() or [""]
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        hint = "free some space, then run the same command again" if full else "--debug shows where it comes from"
        fail(LimbeckError(f"{type(error).__name__}: {lines[0][:300]}", hint))


def fail(error: LimbeckError) -> None:
    """Print an error, which may quote a source or a server, and leave with its status."""
    print(f"limbeck: {printable(' '.join(error.message.split()))}", file=sys.stderr)
    if error.hint:
        print(f"hint: {printable(error.hint)}", file=sys.stderr)
    raise typer.Exit(error.exit_status)


def lasting(path: Path) -> Path:
    """The path that `~` and the current folder make of `path`."""
    return Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 - the method raises for an unknown user


@app.command()
def run(
    job: Annotated[Path, typer.Argument(help="A job spec in YAML.", metavar="JOB")],
    out: Out,
    address: Address = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker actors for each teacher.")] = 2,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again for rows that a teacher failed to answer before.")
    ] = False,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Generate, curate and publish a dataset, and train a student where the spec asks for one.

    Every paid answer is on disk before it is used: after a crash, run the same command again and only calls that
    were in flight are paid for twice.

    Exit status: 0 finished, 1 failed, 2 wrong before the first call, 3 budget exhausted, 4 no teacher can be used,
    130 interrupted.
    """

    def work() -> None:
        from limbeck.spec_file import load_job

        spec = load_job(job, settings or [])
        from rich.console import Console

        from limbeck import jobs
        from limbeck.progress import Progress, summary

        place = lasting(out)
        stop = StopFlag(at_once=lambda: jobs.note_interrupted(place))
        with Progress(place / ".work") as progress:
            manifest = jobs.run(
                spec,
                place,
                address=address,
                workers=workers,
                watch=progress,
                stopping=stop,
                ready=stop.install,
                retry_failed=retry_failed,
            )
        for line in manifest.warnings:
            print(f"note: {line}", file=sys.stderr)
        metrics = place / "student" / "metrics.json"
        known = json.loads(metrics.read_text()) if metrics.is_file() else None
        Console(width=max(80, Console().width)).print(summary(manifest, known, out))

    guarded(work, debug)


@app.command()
def plan(
    job: Annotated[Path, typer.Argument(help="A job spec in YAML.", metavar="JOB")],
    pilot: Annotated[int | None, typer.Option(min=1, hidden=True)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print figures for a program.")] = False,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Check a job and count calls, tokens, dollars and hours for each teacher, before anything is spent.

    Answers are as long as they please up to sampling.max_tokens, so figures come as a range. Rows that are too large
    for every teacher's limits or context are named.
    """

    def work() -> None:
        from limbeck.spec_file import load_job

        if pilot is not None:
            raise SpecError("--pilot is not built yet", "leave it out: the range then comes from the prompts alone")
        spec = load_job(job, settings or [])
        from rich.console import Console

        from limbeck import jobs
        from limbeck.outlook import as_dict, outlook

        found = jobs.plan(spec)
        if as_json:
            print(json.dumps(as_dict(found), indent=2))
        else:
            Console(width=max(100, Console().width)).print(outlook(spec, found))
        if found.too_large and spec.source.on_error == "fail":
            raise SpecError(
                f"{len(found.too_large):,} rows are too large for every teacher: {', '.join(found.too_large[:5])}",
                "lower sampling.max_tokens, add a lane that holds more, or set source.on_error: reject",
            )

    guarded(work, debug)


@app.command()
def replay(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    job: Annotated[Path, typer.Option("--job", help="The changed job spec.", metavar="JOB")],
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Parse, validate and curate a run's paid answers again under a changed spec. Pays nothing.

    The published dataset is replaced by what comes of it.

    For a changed parser, check or curation step. Where the prompt changed too, rows without an answer are rejected as
    `unanswered`, and `limbeck run` with the same spec asks for them.
    """

    def work() -> None:
        from limbeck.spec_file import load_job

        spec = load_job(job, settings or [])
        from rich.console import Console

        from limbeck import jobs
        from limbeck.progress import summary

        manifest = jobs.replay(spec, lasting(run_directory))
        for line in (*manifest.notes, *manifest.warnings):
            print(f"note: {line}", file=sys.stderr)
        Console(width=max(80, Console().width)).print(summary(manifest, None, run_directory))

    guarded(work, debug)


@app.command()
def train(
    spec: Annotated[Path, typer.Argument(help="A training spec in YAML.", metavar="SPEC")],
    out: Annotated[
        Path, typer.Option("--out", help="Where student/ is made. The same command goes on where it was ended.")
    ],
    address: Address = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Train a student on a dataset: loss on the response tokens, loss and ROUGE-L before and after.

    The student is in OUT/student, with metrics.json and curve.png; it loads with from_pretrained.
    """

    def work() -> None:
        from limbeck.progress import TrainingProgress, metric_lines
        from limbeck.spec_file import load_training
        from schemas.student import advice

        loaded = load_training(spec, settings or [])
        from limbeck import jobs

        if said := advice(loaded):
            print(f"note: {said}", file=sys.stderr)
        stop = StopFlag("finishing the step")
        place = lasting(out)
        if (metrics := jobs.trained(loaded, place)) is not None:
            print("note: this student was trained before: nothing was changed", file=sys.stderr)
        else:
            with TrainingProgress() as watch:
                metrics = jobs.train(loaded, place, address=address, watch=watch, stopping=stop, ready=stop.install)
        for line in metric_lines(metrics):
            print(line)
        for said in jobs.remarks(metrics):
            print(f"note: {said}", file=sys.stderr)
        print(f"{'student':24} {out / 'student'}")

    guarded(work, debug)


@app.command()
def recipes() -> None:
    """Show the recipes that a training spec may name, as in recipe: gkd, and what their papers leave open."""
    import yaml

    from schemas.recipes import RECIPES

    for name, recipe in RECIPES.items():
        settings = yaml.safe_dump(recipe.settings, sort_keys=False, default_flow_style=None, width=110)
        print(f"{name}  ({recipe.source})\n")
        print("".join(f"    {line}\n" for line in settings.splitlines()))
        print(f"{recipe.note}\n", flush=True)


@app.command()
def evaluate(
    spec: Annotated[Path, typer.Argument(help="An evaluation spec in YAML.", metavar="SPEC")],
    out: Annotated[Path, typer.Option("--out", help="Where evaluation.html and .json are written.")] = Path(
        "evaluation"
    ),
    address: Address = None,
    settings: Settings = None,
    debug: Debug = False,
) -> None:
    """Compare students on held-out rows: loss, ROUGE-L, exact match, values, in-context accuracy, KL to a teacher.

    Every mean comes with its 95 % interval. The page shows all students side by side, and what they write.
    """

    def work() -> None:
        from limbeck.progress import comparison
        from limbeck.spec_file import load_evaluation

        loaded = load_evaluation(spec, settings or [])
        from limbeck import evaluation

        def watch(judged: int, of: int) -> None:
            print(f"judged {judged}/{of} students", file=sys.stderr, flush=True)

        stop = StopFlag("ending")
        place = lasting(out)
        found = evaluation.evaluate(loaded, place, address=address, watch=watch, stopping=stop, ready=stop.install)
        from rich.console import Console

        Console(width=max(80, Console().width)).print(comparison(found, out))
        for name, one in found.items():
            for line in one["notes"]:
                print(f"note: {name}: {line}", file=sys.stderr)

    guarded(work, debug)


@app.command()
def status(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print manifest.json.")] = False,
    debug: Debug = False,
) -> None:
    """Show progress, spend and rejections of a run, live or finished."""

    def work() -> None:
        from rich.console import Console

        from limbeck.progress import summary
        from pipelines.rundir import RunDirectory

        directory = RunDirectory(lasting(run_directory))
        with refused_as_spec():
            manifest = directory.manifest()
        if manifest is None:
            hint = "name a --out of a run; one that was started just now has it once Ray is up, in some seconds"
            raise SpecError(f"{run_directory} is not a run directory: it has no manifest.json", hint)
        if as_json:
            print(manifest.model_dump_json(indent=2))
            return
        ended = manifest.state == "running" and not directory.is_in_use()
        state = "stopped, and no process works on it; run it again to resume" if ended else manifest.state
        Console(width=max(80, Console().width)).print(summary(manifest, None, run_directory, state))
        if ended or state == "failed":
            print("counted when last written; journal/ may hold more, and the next start counts it")
        if manifest.error:
            print(f"error: {manifest.error}")

    guarded(work, debug)


@app.command("fake-teacher")
def fake_teacher(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one and prints it.")] = 0,
    rpm: Annotated[float | None, typer.Option(help="Requests a minute.")] = None,
    tpm: Annotated[float | None, typer.Option(help="Tokens a minute, input and output.")] = None,
    input_tpm: Annotated[float | None, typer.Option(help="Input tokens a minute.")] = None,
    output_tpm: Annotated[float | None, typer.Option(help="Output tokens a minute.")] = None,
    burst: Annotated[float, typer.Option(help="Seconds' worth that a limit holds.")] = 1.0,
    charge: Annotated[str, typer.Option(help="What tokens count: provider (as documented) or actual.")] = "provider",
    concurrency: Annotated[int | None, typer.Option(help="Calls in flight; more are refused.")] = None,
    latency: Annotated[float, typer.Option(help="Median seconds of an answer.")] = 0.0,
    spread: Annotated[float, typer.Option(help="Sigma of the log-normal latency; 0: constant.")] = 0.0,
    words: Annotated[str, typer.Option(help="Words of an answer, LOW:HIGH.")] = "8:16",
    hidden: Annotated[int, typer.Option(help="Input tokens that it counts beyond the text of a call.")] = 0,
    thoughts: Annotated[str, typer.Option(help="Output tokens beyond max_tokens, LOW:HIGH.")] = "0:0",
    faults: Annotated[str, typer.Option(help="Shares of calls that go wrong, as in 500:0.05,hang:0.01.")] = "",
    poison: Annotated[str, typer.Option(help="Likewise, but the same requests go wrong every time.")] = "",
    retry_after: Annotated[
        float, typer.Option(help="Seconds that faults 429, slow_down, 503 and 529 ask to wait.")
    ] = 0.05,
    hang: Annotated[float, typer.Option(help="Seconds after which a hanging call is cut.")] = 600.0,
    status: Annotated[int, typer.Option(help="Answer every call with this HTTP status.")] = 0,
    price: Annotated[str, typer.Option(help="USD per million tokens, INPUT:OUTPUT, for the bill.")] = "0:0",
    headers: Annotated[bool, typer.Option(help="Send rate-limit headers.")] = True,
    seed: Annotated[int, typer.Option(help="Of faults and latencies.")] = 0,
    stop_after: Annotated[float | None, typer.Option(help="Seconds to serve; default: until it is stopped.")] = None,
    debug: Debug = False,
) -> None:
    """Serve a stand-in teacher on loopback, to rehearse a job for nothing: limits, faults and a bill of its own.

    Chat Completions, Responses and Messages on one port. Put base_url: http://127.0.0.1:PORT/v1 (openai) or
    http://127.0.0.1:PORT (anthropic) into a spec. GET /bill tells what it would have charged, and how often it was
    asked for the same thing twice.

    Faults: 429, 500, 503, 529, 400, slow_down, quota (refused); reset, truncated, hang (answered, charged, lost on
    the wire); html, malformed, refusal, blank (answered with something else).
    """

    def work() -> None:
        from limbeck import rehearsal

        rehearsal.serve_fake_teacher(
            port, stop_after, rpm=rpm, tpm=tpm, input_tpm=input_tpm, output_tpm=output_tpm, burst_s=burst,
            charge=charge, concurrency=concurrency, latency_s=latency, spread=spread, words=words, hidden=hidden,
            thoughts=thoughts, faults=faults, poison=poison, retry_after_s=retry_after, hang_s=hang, status=status,
            price=price, headers=headers, seed=seed,
        )  # fmt: skip

    guarded(work, debug)


@app.command()
def schema(
    training: Annotated[bool, typer.Option("--training", help="The training spec instead of the job spec.")] = False,
    evaluation: Annotated[bool, typer.Option("--evaluation", help="The evaluation spec.")] = False,
) -> None:
    """Print the spec's JSON schema: every key with its meaning and default."""
    from schemas.evaluation import EvaluationSpec
    from schemas.job import JobSpec
    from schemas.student import TrainingSpec

    chosen = EvaluationSpec if evaluation else TrainingSpec if training else JobSpec
    print(json.dumps(chosen.model_json_schema(by_alias=True), indent=2))


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
