"""Strings the steps of a generation run together: scan, fan out, harvest, curate, publish. Resumes from the journal."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipelines import cot, instruct
from pipelines.advice import GONE, OURS, advice, beyond_the_plan, gone
from pipelines.answer_schema import check_schema
from pipelines.borrowed import borrowing, note_schema
from pipelines.card import card
from pipelines.curate import curate
from pipelines.harvest import (
    REJECTED,
    SCHEMAS,
    Answers,
    Missing,
    Read,
    Rejections,
    RowPlan,
    RowWriter,
    harvest,
    instructions_of,
    sendable,
    shown_rejections,
    stored_rows,
)  # fmt: skip
from pipelines.publish import Published, publish
from pipelines.recorded import index_recordings, recordings_digest
from pipelines.report import keep_for_report, write_report
from pipelines.reuse import reuse, touching, unanswered
from pipelines.rounds import all_written, reject_surplus, rounds
from pipelines.rundir import RunDirectory, installed_versions, move_folder, replace_text
from pipelines.source import Row, Scan, scan
from schemas.call import Call
from schemas.errors import BudgetExhausted, Interrupted, LaneUnusable, LimbeckError, SpecError
from schemas.job import Instruct, JobSpec, published_part
from schemas.manifest import ASKING, Manifest, Spend, State
from schemas.money import NANO
from schemas.record import Rejection
from schemas.weights import gguf_weights
from services.fanout.fleet import Fleet, ship_everywhere, tag_for
from services.fanout.size import ceilings, fits, worst_case
from services.fanout.units import Plan, Progress
from services.journal.index import JournalIndex, Totals
from services.journal.place import Journal
from services.ledger.books import caps_of
from services.teachers import embedded
from services.teachers.credentials import lane_key

SAVE_EVERY_S = 1.0
TOO_FEW = "instructions where"
BLANK = "have a blank label"
COPIES = 4  # of a row's text on disk: staged, published, as messages, in the report
STATES: dict[type[LimbeckError], State] = {BudgetExhausted: "exhausted", Interrupted: "interrupted"}
Watch = Callable[[Manifest], None]


@dataclass(slots=True)
class Run:
    """One start of a run."""

    spec: JobSpec
    directory: RunDirectory
    workers: int = 2
    watch: Watch = lambda manifest: None
    stopping: Callable[[], bool] = lambda: False
    retry_failed: bool = False
    manifest: Manifest = field(init=False)
    _scan: Scan = field(init=False)
    _earlier: JobSpec | None = field(init=False, default=None)
    _edited: list[str] = field(init=False, default_factory=list)  # files that say something else than last time
    _rewritten: bool = field(init=False, default=False)  # whether recorded answers are others than last time
    _changes: list[str] = field(init=False, default_factory=list)
    _base: Totals = field(init=False)
    _schemas: list[str | None] = field(init=False)  # that the journal's calls went out with
    _done: Progress = field(init=False, default_factory=Progress)
    _sent_before: Progress = field(init=False, default_factory=Progress)
    has_asked: bool = field(init=False, default=False)  # whether a call of this start has left
    _saved: float = field(init=False, default=0.0)
    _sending_s: float = field(init=False, default=0.0)
    _rounds_done: int = field(init=False, default=0)  # calls of the stage's earlier rounds
    _sending_from: float = field(init=False, default=0.0)

    def check(self, sizes: bool = True, student: int = 0, asks: bool = True) -> None:
        """Everything that can be wrong before the first call. Touches nothing; raises `SpecError`. `student`: bytes on
        disk of the student that is to be trained. asks: whether teachers will be asked, so that keys are needed."""
        self.directory.check(self.spec)
        self.journal.check()
        self._earlier, self._changes = self.directory.earlier(), self.directory.changes(self.spec)
        for teacher in self.spec.teachers if asks else ():
            lane_key(teacher)
            if teacher.provider == "embedded":
                embedded.require_server()
                gguf_weights(teacher.model)
        started = time.monotonic()
        self._scan = scan(self.spec.source)
        if self.spec.validation.json_schema is not None:
            check_schema(self.spec.validation.json_schema)
        exemplars: tuple[cot.Exemplar, ...] = ()
        if self.spec.pipeline == "cot":
            exemplars = cot.load_exemplars(self.spec.prompt)
        elif (wanted := self._instruct()).generate:
            pool = instruct.example_pool(self.spec.source, self._scan.duplicates, self.spec.sampling.draws)
            instruct.check_pool(pool, wanted)
        if sizes:
            self._check_sizes()
        self.directory.require_space(self.most_rows, student, COPIES * self._scan.bytes)
        self.manifest = self.directory.manifest() or Manifest(name=self.spec.name, pipeline=self.spec.pipeline)
        self._note_contents(cot.digest_of(exemplars), recordings_digest(self.spec.teachers))
        self.manifest.notes = self._moved_servers() + self._rewritten_recordings()
        self.manifest.seconds["scan"] = round(time.monotonic() - started, 3)

    def _note_contents(self, exemplars: str, recordings: str) -> None:
        """What the files hold that the spec names; and which of them were edited since the last start."""
        before = self.manifest.source_digest, self.manifest.exemplars_digest
        now = self._scan.digest, exemplars
        named = zip(("source", "prompt.exemplars"), before, now, strict=True)
        self._edited = [name for name, was, is_ in named if was and was != is_]
        self.manifest.rows.source = self._scan.rows
        self.manifest.source_digest, self.manifest.exemplars_digest = now
        was, self.manifest.recordings_digest = self.manifest.recordings_digest, recordings
        self._rewritten = bool(was) and was != recordings

    @property
    def journal(self) -> Journal:
        """Where this run's paid answers are."""
        return Journal(self.directory.journal, self.spec.journal)

    @property
    def most_rows(self) -> int:
        """Rows that the dataset can have at most."""
        return self._scan.good + self._instruct().generate

    @property
    def is_finished(self) -> bool:
        """Whether an earlier start has published the dataset of just this spec."""
        whole = "unanswered" not in self.manifest.rows.rejected and not self.manifest.calls.open
        same = self._earlier is not None and published_part(self._earlier) == published_part(self.spec)
        there = all((self.directory.root / name).is_file() for name in self.manifest.dataset.files)
        done = self.manifest.state == "finished" and not self._edited and not self._changes
        return done and whole and same and there

    def _instruct(self) -> Instruct:
        return self.spec.instruct or Instruct()

    def _moved_servers(self) -> list[str]:
        """Lanes whose answers so far came from another server: a rehearsal's must not pass for the real ones."""
        before = {} if self._earlier is None else {t.name: t.base_url for t in self._earlier.teachers}
        moved = [t for t in self.spec.teachers if before.get(t.name, t.base_url) != t.base_url]
        return [
            f"answers of {t.name} that came from {before[t.name] or 'the provider'} are kept; "
            f"choose another --out to ask {t.base_url or 'the provider'} for all of them"
            for t in moved
        ]

    def _rewritten_recordings(self) -> list[str]:
        if not self._rewritten:
            return []
        return ["recorded answers have changed: those that were taken are kept; choose another --out for the new ones"]

    def _check_sizes(self) -> None:
        """`SpecError` for rows that no lane's limits or context can ever hold, unless rows may be rejected."""
        limits = [limit for teacher in self.spec.teachers for limit in ceilings(teacher)]
        first = next((call for _, call in sendable(self.plan())), None)
        if self.spec.source.on_error == "reject" or not limits or first is None:
            return
        demand = worst_case(first, self.spec.teachers[0].rates)
        wanted = self._instruct()
        shown_bytes = self._scan.longest * (1 + (wanted.examples if wanted.generate else 0))
        if demand.input_tokens + demand.output_tokens + shown_bytes // 4 <= min(limits):
            return  # not even the longest row with what this one has round it
        large = [row.id for row, call in sendable(self.plan()) if not self._fits(call)]
        if self._instruct().generate:
            writing = instruct.first_round(self.spec, self._scan.duplicates).calls()
            large += [call.row for call in writing if not self._fits(call)]
        if large:
            shown = ", ".join(large[:3]) + (f" and {len(large) - 3} more" if len(large) > 3 else "")
            raise SpecError(
                f"rows too large for every lane's limits or context: {shown}",
                "lower sampling.max_tokens, add a lane that holds more, or set source.on_error: reject",
            )

    def plan(self) -> RowPlan:
        """The calls of the source's rows, as far as they are known before anything is written by a teacher."""
        of = cot.plan_of if self.spec.pipeline == "cot" else instruct.plan_of
        return of(self.spec, self._scan.duplicates)

    def _plan_of(self, spec: JobSpec, written: Sequence[instruct.Written]) -> RowPlan:
        """The same once all is known; answers that were asked for with another schema serve where they fit."""
        if spec.pipeline == "cot":
            return cot.plan_of(spec, self._scan.duplicates)
        plan = instruct.plan_of(spec, self._scan.duplicates, tuple(written[: self._instruct().generate]))
        if not (others := [schema for schema in self._schemas if schema != plan.schema]):
            return plan
        with self._answers() as answers:
            return borrowing(plan, others, answers)

    def generate(self) -> Manifest:
        """Run to a published dataset on the Ray that is connected.

        A run that stops for money or for want of a lane publishes what is done, then raises.
        """
        ship_everywhere(self.journal)
        self._open_books()
        left = "unanswered" in self.manifest.rows.rejected  # by a replay, which has told what changed
        if self._earlier is not None and (self._changes or self._edited or left):
            self._say_what_is_reused(self._earlier)
        if self.spec.pipeline == "instruct" and (schema := instruct.schema_of(self.spec)) not in self._schemas:
            note_schema(self.journal, schema)
        try:
            plan = self._fan_out()
        except (BudgetExhausted, LaneUnusable) as stop:
            nothing = not self.manifest.calls.answered and not self.settle().failed
            self.fail(stop)
            if nothing:
                raise
            before = self.manifest.dataset.rows
            left = self._publish(self._partial_plan(), self._too_large)
            left += self.manifest.calls.open
            raise type(stop)(f"{stop.message}; {left:,} rows are left{self._fewer_than(before)}", stop.hint) from None
        except LimbeckError as error:
            with suppress(LimbeckError):  # the journal's store may be what failed
                self.settle()
            self.fail(error)
            raise
        if pending := self._publish(plan, self._too_large):
            raise LimbeckError(f"{pending} rows have no answer", "run the same command again")
        return self.manifest

    def replay(self) -> Manifest:
        """Parse, validate, curate and publish what the journal holds under this spec. Pays nothing."""
        self._open_books()
        self._publish(self._partial_plan(), unanswered, replayed=True)
        if unasked := self.manifest.rows.rejected.get("unanswered"):
            changes = [f"the content of {name} has changed" for name in self._edited] + touching(self._changes)
            self.manifest.notes.append(
                f"{unasked:,} rows have no answer to this prompt in the journal and are now rejected as unanswered"
                + "".join(f"; {change}" for change in changes)
                + f"; limbeck run with the same spec asks for them{self._way_back}"
            )
        return self.manifest

    @property
    def _way_back(self) -> str:
        """How rows come back that an earlier spec had; nothing brings back those of an earlier source."""
        only_spec = self._changes and not self._edited
        return ", and limbeck replay under the earlier one brings back rows that it had" if only_spec else ""

    def _fewer_than(self, before: int) -> str:
        """What to say where a run that stopped has published fewer rows than were there."""
        if (now := self.manifest.dataset.rows) >= before:
            return ""
        return f"; dataset/ has {now:,} rows where it had {before:,} under an earlier spec or source{self._way_back}"

    def _fits(self, call: Call) -> bool:
        return any(fits(call, teacher) for teacher in self.spec.teachers)

    def _too_large(self, row: Row, call: Call) -> Rejection | None:
        if self._fits(call):
            return None
        return Rejection(row.id, "plan", "too_large", "more tokens than any teacher's limits or context hold")

    def _say_what_is_reused(self, earlier: JobSpec) -> None:
        with self._answers() as answers:
            written = all_written(self.spec, self._scan.duplicates, answers)
            now, before = self._plan_of(self.spec, written), self._plan_of(earlier, written)
            asked = reuse(now, before, self._changes, answers, self._edited, self.retry_failed, self._schemas)
            self.manifest.notes.append(asked.line)
        self.directory.save(self.manifest)
        self.watch(self.manifest)

    def started(self) -> Manifest:
        """The manifest of a run that is under way under this spec."""
        self.manifest.name, self.manifest.state, self.manifest.error = self.spec.name, "running", ""
        return self.manifest

    def _open_books(self) -> None:
        before, index = self.manifest.calls, JournalIndex(self.journal.read())
        self._base, self._schemas = index.totals, index.schemas
        self._sent_before = Progress(sent=max(before.sent, self._base.answered), retried=before.retried)
        self.manifest.state, self.manifest.error, self.manifest.stage = "running", "", "start"
        self.manifest.absent = {}
        self.manifest.warnings = [line for line in self.manifest.warnings if GONE not in line]
        self.manifest.versions = installed_versions()
        self._count(Progress())
        self.directory.save(self.manifest)

    def settle(self) -> Totals:
        """Bring the manifest's spend up to what the journal holds; its sums."""
        totals = JournalIndex(self.journal.read()).totals
        self._exact_counts(totals)
        return totals

    def fail(self, error: LimbeckError) -> None:
        """Write how the run ended, unless that was written already."""
        if self.manifest.state != "running":
            return
        self.manifest.state = STATES.get(type(error), "failed")
        self.manifest.error = error.message
        self.directory.save(self.manifest)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, and show it."""
        self.manifest.stage = name
        if name in ASKING:
            self.manifest.calls.done = self.manifest.calls.of = self._rounds_done = 0
        self.watch(self.manifest)
        if self.directory.is_held:
            self.directory.save(self.manifest)
        started = time.monotonic()
        try:
            yield
        finally:
            self.manifest.seconds[name] = round(time.monotonic() - started, 3)

    def _fan_out(self) -> RowPlan:
        fleet = Fleet(
            list(self.spec.teachers), self.journal, caps_of(self.spec.budget), self._base,
            self.workers, tag_for(self.journal.read()), self.retry_failed,
            index_recordings(self.spec.teachers, self.directory),
        )  # fmt: skip
        with fleet:
            plan = self.plan() if self.spec.pipeline == "cot" else self._write_instructions(fleet)
            with self.stage("responses" if self.spec.pipeline == "instruct" else "answers"):
                written = len(plan.written) if isinstance(plan, instruct.Responses) else 0
                self._send(fleet, plan, self._scan.good + written)  # type: ignore[arg-type]
        if self._done.failed and not self._base.answered and not self._done.answered:
            hint = "rejected/ keeps what the teacher said; check base_url and model"
            if self.spec.answers_by_row:
                hint = "the ids of teachers.path are none of the source's: check its fields, and source.fields.id"
            raise LaneUnusable("no call was answered", hint)
        return plan

    def _send(self, fleet: Fleet, plan: Plan, calls: int) -> None:
        self._rounds_done = self.manifest.calls.of
        self.manifest.calls.of += calls
        self._sending_from = time.monotonic()
        try:
            self._done.add(fleet.run(plan, self._tick, self.stopping))
        finally:
            self.warn(*gone(self.manifest.absent, len(self.spec.teachers)))
        self._sending_s += time.monotonic() - self._sending_from
        self._tick(Progress(absent=self.manifest.absent))

    def _tick(self, now: Progress) -> None:
        self._count(now)
        self.warn(*beyond_the_plan(now.hidden, now.overlong))
        self.manifest.pauses = {name: until for name, until in now.pauses.items() if until > time.time()}
        self.manifest.absent = now.absent
        self.has_asked |= now.sent > 0
        if not now.sent:
            self._sending_from = time.monotonic()  # a local teacher reads its weights first
        seconds = self._sending_s + time.monotonic() - self._sending_from
        self.manifest.calls.per_second = round((self._done.answered + now.answered) / max(seconds, 1e-3), 2)
        self.watch(self.manifest)
        if time.monotonic() - self._saved > SAVE_EVERY_S:
            self._saved = time.monotonic()
            self.directory.save(self.manifest)

    def _count(self, now: Progress) -> None:
        """Totals of all starts: the journal's at the start of this one, its finished plans, and `now`."""
        calls, base, before, done = self.manifest.calls, self._base, self._sent_before, self._done
        calls.sent = before.sent + done.sent + now.sent
        calls.retried = before.retried + done.retried + now.retried
        calls.answered = base.answered + done.answered + now.answered
        calls.reused = done.reused + now.reused
        calls.failed = done.failed + now.failed
        calls.done = max(calls.done, self._rounds_done + now.answered + now.reused + now.failed)
        self.manifest.spend = Spend(
            usd=(base.nano_usd + done.nano_usd + now.nano_usd) / NANO,
            input_tokens=base.input_tokens + done.input_tokens + now.input_tokens,
            output_tokens=base.output_tokens + done.output_tokens + now.output_tokens,
        )

    def _write_instructions(self, fleet: Fleet) -> RowPlan:
        """The first stage: ask until enough instructions are written, or `ROUNDS` rounds have passed."""
        wanted = self._instruct()
        written: list[instruct.Written] = []
        if wanted.generate:
            with self.stage("instructions"):
                for plan in rounds(self.spec, self._scan.duplicates):
                    self._send(fleet, plan, plan.count)
                    with self._answers() as answers:
                        written += instructions_of(plan, answers)[0]
                    if len(written) >= wanted.generate:
                        break
        return self._plan_of(self.spec, written)

    @contextmanager
    def _answers(self) -> Iterator[Answers]:
        index = JournalIndex(self.journal.read())
        try:
            yield Answers(index, [t.name for t in self.spec.teachers])
        finally:
            index.close()

    def _partial_plan(self) -> RowPlan:
        """What can be published of a run that stopped: instructions that were written, if any, and their answers."""
        with self._answers() as answers:
            return self._plan_of(self.spec, all_written(self.spec, self._scan.duplicates, answers))

    def _reader(self, plan: RowPlan) -> Read:
        checks = self.spec.validation
        if isinstance(plan, instruct.Responses):
            return lambda row, answer, teacher, key, raw: instruct.read_answer(row, answer, checks, teacher, key, raw)
        return lambda row, answer, teacher, key, raw: cot.read_answer(row, answer, self.spec, teacher, key, raw)

    def _publish(self, plan: RowPlan, missing: Missing, replayed: bool = False) -> int:
        """Journal to rows to dataset; the rows that were left out. Files are built aside and moved into place whole."""
        staged, rejected_folder = self.directory.work / "accepted.parquet", self.directory.scratch("rejected")
        rejected = Rejections(RowWriter(rejected_folder / "part-00000.parquet", REJECTED))
        told = (*OURS, TOO_FEW, BLANK)
        self.manifest.warnings = [w for w in self.manifest.warnings if not any(words in w for words in told)]
        with self._answers() as answers:
            with self.stage("harvest"):
                accepted = RowWriter(staged, SCHEMAS[self.spec.pipeline])
                pending, answered = harvest(plan, answers, self._reader(plan), missing, accepted, rejected)
                accepted.close()
                generated = self._instruction_rejections(plan, answers, rejected)
                self._exact_counts(answers.index.totals)
                self._warn_of_blank(staged, accepted.count)
                if replayed:
                    self.manifest.calls.reused = answered
                if not pending:  # whatever was sent beyond a first time was a repeat, of calls lost in a crash, too
                    calls = self.manifest.calls
                    calls.retried = max(calls.retried, calls.sent - answers.index.ended)
            with self.stage("curate"):
                dropped = curate(staged, self.spec.pipeline, self.spec.curate)
            with self.stage("publish"):
                published = publish(self.spec, self.directory, staged, dropped, rejected, answers)
                rejected.writer.close()
        shown = shown_rejections(rejected_folder / "part-00000.parquet")
        move_folder(rejected_folder, self.directory.rejected)
        staged.unlink()
        self._tally(published, rejected, generated)
        keep_for_report(self.directory, published, shown)
        self.describe()
        return pending

    def _warn_of_blank(self, staged: Path, rows: int) -> None:
        """Rows that were kept though nothing in their answers is a label."""
        if self.spec.pipeline == "cot" and self.spec.keeps_unparsable:
            blank = sum(not row["label"].strip() for row in stored_rows(staged, ["label"]))
            if blank:
                self.warn(f"{blank:,} of {rows:,} rows {BLANK}: no answer marker, or nothing behind it fits the task")

    def _exact_counts(self, totals: Totals) -> None:
        """Money and tokens from the journal, which no crash can falsify."""
        calls = self.manifest.calls
        calls.done = min(calls.of, calls.done + max(0, totals.answered - calls.answered))  # what nobody had told yet
        calls.answered, calls.sent = totals.answered, max(calls.sent, totals.calls)
        self.manifest.spend = Spend(
            usd=totals.nano_usd / NANO, in_doubt_usd=totals.in_doubt_nano / NANO,
            input_tokens=totals.input_tokens, output_tokens=totals.output_tokens,
        )  # fmt: skip

    def _instruction_rejections(self, plan: RowPlan, answers: Answers, rejected: Rejections) -> tuple[int, int]:
        """Of a run that writes instructions: (those and calls without one, instructions)."""
        wanted = self._instruct().generate
        if not isinstance(plan, instruct.Responses) or not wanted:
            return 0, 0
        candidates, total = reject_surplus(self.spec, self._scan.duplicates, answers, rejected)
        if total < wanted:
            self.warn(f"the teacher wrote {total} {TOO_FEW} {wanted} were wanted")
        return candidates, total

    def warn(self, *lines: str) -> None:
        """Something the user should know, though the run goes on."""
        self.manifest.warnings += [line for line in lines if line not in self.manifest.warnings]

    def _tally(self, published: Published, rejected: Rejections, generated: tuple[int, int]) -> None:
        self.manifest.rows.accepted = published.rows
        self.manifest.rows.generated, self.manifest.rows.written = generated
        self.manifest.rows.rejected = dict(sorted(rejected.reasons.items()))
        self.manifest.dataset.rows = published.rows
        self.manifest.dataset.sha256 = published.sha256
        self.manifest.dataset.files = published.files
        self.manifest.calls.failed, self.manifest.calls.open = rejected.failed, rejected.open
        self.warn(*advice(published.rows, rejected.reasons, rejected.open))

    def describe(self) -> None:
        """Write card, report and manifest as things stand."""
        replace_text(self.directory.card, card(self.spec, self.manifest))
        write_report(self.spec, self.directory, self.manifest)
        self.directory.save(self.manifest)

    def finish(self) -> None:
        """All stages are through."""
        self.manifest.state, self.manifest.stage = "finished", ""
        self.manifest.calls.done = self.manifest.calls.of  # a count that a dead worker took with it, too
        self.describe()
