"""Starting runs: job -> plan -> confirmation -> ledger -> submit -> follow, for `launch` and `resume`.

Owns the order: nothing starts before it is in the ledger, and nothing is reported that was not asked of the backend.
Refuses to know any particular backend.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from launcher.backends.base import Backend, BackendStatus, Offer, Submission, able_backends, backend_for, get_backend
from launcher.commands.report import report_at_end
from launcher.config.yaml_lines import write_yaml
from launcher.follow import screen
from launcher.follow.attend import follow_to_end, print_json, say_detached
from launcher.follow.follow import LogFrom, end_of_log
from launcher.follow.patience import patiently
from launcher.follow.readers import ViewReader
from launcher.follow.status import observe, status_of, with_detail
from launcher.jobfile.limits import hook_value
from launcher.jobfile.limits import secret_names as hook_names
from launcher.jobfile.load import axolotl_text, load_job
from launcher.jobfile.settle import settle, with_moment
from launcher.jobfile.spec import JobSpec
from launcher.plan.launch_plan import LaunchPlan
from launcher.plan.limits import (
    is_still_wanted,
    limits_of,
    refuse_what_cannot_be_met,
    refuse_what_is_spent,
    refuse_what_nothing_counts,
    with_chosen_market,
)
from launcher.plan.model_rules import rules_of
from launcher.plan.of_job import plan_of, planned_step_s, settled_zero, with_memory, with_recomputation
from launcher.plan.unfrozen import with_resolved_unfrozen
from launcher.plan.view import place_and_price, summarise
from launcher.runs import ledger
from launcher.runs.errors import BadUsage, LauncherError
from launcher.runs.ledger import RunRecord
from launcher.runs.states import EXIT_CODES, EndReason, RunState, is_over
from trainer.run import attention_kernel
from trainer.run.exits import BadInput
from trainer.run.result import LENGTH_SETTINGS, result_settings
from trainer.run.run_folder import write_atomic
from trainer.run.spec import NodeJob


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """The command line of `launch` and `resume`."""

    on: str | None = None
    """None: what the job says, or where such a job runs."""
    nproc: int | None = None
    overrides: Sequence[str] = ()
    is_confirmed: bool = False
    is_forced: bool = False
    """A plan that does not fit is started all the same."""
    is_detached: bool = False
    as_json: bool = False
    backend_options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start:
    """A run about to be started: what was asked for once, and is read from here ever after."""

    backend: Backend
    job: JobSpec
    """Its patterns resolved, the machine's memory asked for."""
    offers: tuple[Offer, ...]
    plan: LaunchPlan | None
    """None where the model's shape is not known here (such a model can be trained, but not planned), or none was wanted."""
    why_no_plan: str
    secrets: Mapping[str, str] = field(repr=False)
    nproc: int | None

    @classmethod
    @patiently
    def of(
        cls, job: JobSpec, backend: Backend, nproc: int | None, options: Mapping[str, Any], *, is_planned: bool = True
    ) -> Start:
        """`options` are the backend's own. `is_planned` is False for a run whose train.json stands already: nobody would read
        a plan."""
        secrets = collect_secrets(job)
        job = with_resolved_unfrozen(job)
        offers = tuple(backend.offers(job, nproc))
        plan, why = None, ""
        try:
            if is_planned:
                plan = plan_of(job, offers, nproc=nproc, on=backend.name, options=options)
        except BadInput as unknown:
            why = str(unknown)
        return cls(backend, job, offers, plan, why, secrets, nproc)

    @property
    def fitting_offers(self) -> tuple[Offer, ...]:
        """Those that the plan found possible, cheapest first; all of them where it found none (a start that was forced)."""
        fitting = () if self.plan is None else tuple(row.offer for row in self.plan.rows if row.is_possible)
        return tuple(offer for offer in fitting or self.offers if is_still_wanted(offer, self.plan))

    def keep_plan(self, record: RunRecord) -> None:
        if self.plan is not None:
            ledger.keep_plan(record, self.plan.to_json())

    def settled(self, run_id: str) -> tuple[JobSpec, NodeJob]:
        """The job and the train.json of one run of it."""
        job = self.job
        place = self.backend.place(job, run_id, ledger.folder_of(run_id), self.nproc)
        ranks = place.nproc * job.resources.num_nodes
        zero = settled_zero(job, self.plan, ranks=ranks, device=place.device)
        settled = with_recomputation(job, self.plan)
        job = with_chosen_market(job, self.plan)
        train = settle(settled, place, run_id=run_id, zero=zero, step_seconds=planned_step_s(self.plan))
        work = self.plan.machine.work if self.plan else None
        train = train.model_copy(update={"work": work, "limits": limits_of(job, self.plan)})
        return with_memory(job, self.plan, place.device) if self.backend.abilities.chooses_machine else job, train


def launch(path: Path, options: LaunchOptions) -> int:
    """Start a new run of the job and follow it; the exit code of the command."""
    job = load_job(path, options.overrides)
    backend = backend_for(job, options.on)
    job = with_moment(job, datetime.now(UTC))
    job = job.model_copy(update={"on": backend.name})  # where its run stays, whatever a later dolphin takes it to
    _refuse_unable(backend, job, options.backend_options)
    start = Start.of(job, backend, options.nproc, options.backend_options)
    run_id = ledger.new_id(job.name)
    job, train = start.settled(run_id)
    refuse_what_nothing_counts(job, start.offers)
    ledger.check_writable()
    notes = patiently(backend.preflight)(job, train, options.backend_options)
    _show_plan(start, train, notes)
    if not options.is_forced:
        _refuse_what_does_not_fit(start)
        refuse_what_cannot_be_met(start.plan)
    _confirm(options, start)
    while True:
        try:
            record = ledger.create(
                run_id,
                job.name,
                backend.name,
                options=options.backend_options,
                secret_names=tuple(start.secrets),
                launcher_version=version("dolphin-launcher"),
            )
            break
        except FileExistsError:
            run_id = ledger.new_id(job.name)
            job, train = start.settled(run_id)
    start.keep_plan(record)
    train = train.model_copy(update={"axolotl": axolotl_text(path)})
    return _start(record, Submission(record, job, train, start.fitting_offers, start.secrets), backend, options)


def resume(record: RunRecord, options: LaunchOptions) -> int:
    """Go on with a run that is over, from its last checkpoint, under the same id; the exit code of the command."""
    backend = get_backend(record.backend)
    status = patiently(status_of)(backend, record)
    is_finished = status.state is RunState.SUCCEEDED
    if is_finished and not options.overrides:
        screen.say(
            f"{record.run_id}: is finished; there is nothing to resume (`--set train.epochs=...` with more than before goes "
            "on from its end)"
        )
        return 0
    _refuse_active(record, status)
    if not record.files.job.exists():
        raise LauncherError(f"{record.run_id}: its launcher died before the job was written; launch it anew")
    job = with_moment(load_job(record.files.job, options.overrides), datetime.now(UTC))
    if job.on not in (None, record.backend):
        raise BadUsage(
            f"on: {job.on}, but {record.run_id} is of {record.backend}, where its checkpoints are; launch a new run"
        )
    before = NodeJob.read(record.files.train_json) if record.files.train_json.exists() else None
    is_new = before is None or options.nproc is not None or bool(options.overrides)
    nproc = options.nproc or (before.nproc if before else None)
    start = Start.of(job, backend, nproc, record.options, is_planned=is_new)
    if not options.is_forced:
        _refuse_what_does_not_fit(start)
    if before is None or is_new:
        job, train = start.settled(record.run_id)
        if before is not None:
            train = train.model_copy(update={"axolotl": before.axolotl})
            _refuse_other_results(record, before, train, is_finished)
    else:
        job, train = start.job, before
    refuse_what_nothing_counts(job, start.offers)
    refuse_what_is_spent(job, record.files, train.limits)
    notes = patiently(backend.preflight)(job, train, record.options)
    screen.say(f"{record.run_id}: was {status.state.value}; starting it again")
    if is_finished:
        screen.say(
            "  from its last checkpoint, with the schedule drawn anew over the whole length: the learning rate rises again "
            "from where it had ended; its model folder is replaced at the end"
        )
    for note in notes:
        screen.say(f"  {note}")
    reader = ViewReader(backend, record)
    reader.read()  # what came before is told already
    log_from = LogFrom(after=end_of_log(backend, record))
    submission = Submission(record, job, train, start.fitting_offers, start.secrets)
    start.keep_plan(record)
    return _start(record, submission, backend, options, log_from, reader)


def collect_secrets(job: JobSpec) -> dict[str, str]:
    """Values of the job's secrets, from this process's environment. BadUsage names those that are missing."""
    missing = [name for name in job.secret_names if not os.environ.get(name)]
    if missing:
        raise BadUsage(
            f"secrets: {', '.join(missing)} not set in this shell; `export {missing[0]}=...`, or take it out of the job"
        )
    for name in hook_names(job.notify):
        if wrong := hook_value(os.environ[name]):
            raise BadUsage(f"notify: ${{{name}}} {wrong}")
    return {name: os.environ[name] for name in job.secret_names}


def _refuse_unable(backend: Backend, job: JobSpec, options: Mapping[str, Any]) -> None:
    """BadUsage for what the backend cannot do, naming one that can."""
    unknown = [name for name in options if name not in backend.abilities.options]
    if unknown:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in unknown)
        able = " or ".join(able_backends(lambda abilities: abilities.options >= set(unknown)))
        raise BadUsage(f"{flags}: means nothing --on {backend.name}; leave it out, or use --on {able}")
    num_nodes = job.resources.num_nodes
    if job.resources.price_per_hour is not None and backend.abilities.chooses_machine:
        raise BadUsage(f"resources.price_per_hour: is of a machine of your own; --on {backend.name} knows its prices")
    if num_nodes > 1 and not backend.abilities.has_many_nodes:
        able = " or ".join(able_backends(lambda abilities: abilities.has_many_nodes))
        raise BadUsage(f"resources.num_nodes: {num_nodes}, but --on {backend.name} has one; use --on {able}")


def _start(
    record: RunRecord,
    submission: Submission,
    backend: Backend,
    options: LaunchOptions,
    log_from: LogFrom = LogFrom(),
    reader: ViewReader | None = None,
) -> int:
    """Submit a run that is in the ledger, then follow it or leave it."""
    try:
        with ledger.locked(record) as record:
            if record.submissions:
                _refuse_active(record, patiently(status_of)(backend, record))
            record = _submit(record, submission, backend)
    except KeyboardInterrupt:
        record = ledger.load(record.folder)
        if record.handle is None:
            raise
        say_detached(backend, record)
        return EXIT_CODES[EndReason.DETACHED]
    screen.say(f"run {record.run_id}, in {record.folder}")
    if not options.is_detached:
        reader = reader or ViewReader(backend, record)
        return follow_to_end(backend, record, log_from, reader, json_wanted=options.as_json, at_end=report_at_end)
    say_detached(backend, record)
    if options.as_json:
        print_json(observe(backend, record), None)
    return 0


@patiently
def _submit(record: RunRecord, submission: Submission, backend: Backend) -> RunRecord:
    """Write, then start, then record. Ctrl-C waits until the record says what was started. The caller holds the lock."""
    job, train = submission.job, submission.train
    text = write_yaml(job.model_dump(mode="json", exclude_unset=True))
    write_atomic(record.files.job, text)
    if train.axolotl:
        write_atomic(record.files.axolotl, train.axolotl)
    write_atomic(record.files.train_json, train.model_dump_json(indent=2) + "\n")
    record = ledger.update(
        record,
        nproc=train.world_size,
        device=train.device,
        submissions=record.submissions + 1,
        handle=None,
        down_requested_at=None,
        submit_error=None,
    )
    with _uninterrupted():
        try:
            handle = backend.submit(replace(submission, record=record, tell=screen.say))
        except LauncherError as error:
            ledger.update(record, submit_error={"reason": error.reason.value, "message": str(error)})
            raise
        return ledger.update(record, handle=handle, submitted_at=time.time())


def _refuse_active(record: RunRecord, status: BackendStatus) -> None:
    if record.submissions and not is_over(status.state):
        raise BadUsage(f"{record.run_id}: is {with_detail(status)}; `dolphin logs {record.run_id}` follows it")


def _show_plan(start: Start, train: NodeJob, notes: Sequence[str]) -> None:
    job = start.job
    kernel = attention_kernel.expected(job.model, train.device, job.train.stored_precision, job.resources.gpu_name)
    rules = [*rules_of(job, train.device), kernel]
    if start.plan is not None:
        summarise(start.plan)
    else:
        best = start.offers[0] if start.offers else None
        price = f" for ${best.price_usd_per_hour:.2f}/h" if best and best.price_usd_per_hour else ""
        hardware = f"{best.count} x {best.accelerator or 'CPU rank'} at {best.infra}{price}" if best else "no offer"
        screen.say(f"{job.name}: {job.model.base} on {hardware}; no plan: {start.why_no_plan}")
    for line in rules:
        screen.say(f"  {line}")
    screen.say(
        f"  {train.world_size} ranks ({train.device}), ZeRO-{train.spec.train.zero}, {train.global_batch} sequences a step"
    )
    for note in notes:
        screen.say(f"  {note}")


def _refuse_what_does_not_fit(start: Start) -> None:
    """BadUsage for a job that would run out of memory at every place that is offered; with what would fit, where that is known."""
    plan = start.plan
    if plan is None or plan.is_possible:
        return
    row = plan.rows[0]
    choice = next((f"; `{choice.change}` would fit" for choice in plan.machine.choices if choice.fits), "")
    others = ", and no other place does" if len(plan.rows) > 1 else ""
    raise BadUsage(
        f"{start.job.name}: does not fit: {row.offer.infra} {row.why_not}{others}{choice}; `dolphin plan` shows more, --force starts "
        "it all the same"
    )


def _question(start: Start) -> str:
    """Where it goes, and what for."""
    name = start.backend.name
    if start.plan is None or not start.plan.rows:
        best = start.offers[0] if start.offers else None
        price = f", ${best.price_usd_per_hour:.2f}/h" if best and best.price_usd_per_hour else ""
        return f"Start it on {name}{price}?"
    where = place_and_price(start.plan)
    return f"Start it on {where if where.startswith(name) else f'{name}: {where}'}?"


def _confirm(options: LaunchOptions, start: Start) -> None:
    if options.is_confirmed:
        return
    if not sys.stdin.isatty():
        raise BadUsage("launch asks before it starts, and there is no terminal to ask on; pass -y to start")
    print(f"{_question(start)} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise Declined("not started")


class Declined(LauncherError):
    """The person said no."""

    reason = EndReason.CANCELLED


def _refuse_other_results(record: RunRecord, before: NodeJob, after: NodeJob, is_finished: bool) -> None:
    """A run that is finished may be given more epochs or steps; nothing else that decides the result may change."""
    old, new = result_settings(before.spec), result_settings(after.spec)
    changed = [key for key in new if new[key] != old.get(key)]
    if is_finished:
        if not any(key in changed for key in LENGTH_SETTINGS):
            raise BadUsage(f"{record.run_id}: is finished; it goes on with more train.epochs or train.max_steps alone")
        for key in LENGTH_SETTINGS:
            if old[key] is not None and new[key] is not None and new[key] < old[key]:
                raise BadUsage(f"{key}: {new[key]} is less than the {old[key]} that {record.run_id} was trained for")
        changed = [key for key in changed if key not in LENGTH_SETTINGS]
    if changed:
        raise BadUsage(
            f"{record.run_id}: {', '.join(changed)} would change what the run computes; `dolphin launch` a new run for that"
        )


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ctrl-C inside waits for the end: between a submit and its record it would leave a run that nobody knows."""
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
