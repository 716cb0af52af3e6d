"""A launch plan for a person: bars first, then numbers. Owns the words and the drawing; decides nothing.

Everything goes to standard error, as all tables do. rich is loaded here, on a terminal and off it alike.
"""

from __future__ import annotations

import math
import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.plan.gpu_memory import PARTS
from launcher.plan.launch_plan import LaunchPlan, Machine, Row
from launcher.plan.zero_stage import StageOption
from launcher.units import MIB, gigabytes, seconds

COLOURS = dict(zip(PARTS, ("blue", "cyan", "green", "yellow", "magenta", "red", "bright_black", "white", "bright_white"), strict=True))  # fmt: skip
LETTERS = dict(zip(PARTS, "PMOGALBCF", strict=True))
"""What a part is drawn with, so that a bar without colours can be read too."""
BAR_WIDTH = 44
MAX_ROWS = 12


def summarise(plan: LaunchPlan, console: Console | None = None) -> None:
    """The few lines that stand before a confirmation."""
    console = console or _console()
    _head(plan, console)
    _verdict(plan.machine, console)
    _hours(plan, console)
    _cost(plan, console)
    _outlook(plan, console)
    _owned(plan, console)
    for note in plan.notes:
        console.print(f"  note: {note}")


def show(plan: LaunchPlan, console: Console | None = None) -> None:
    """The whole plan."""
    console = console or _console()
    _head(plan, console)
    for machine in plan.machines:
        _machine(plan, machine, console)
    _offers(plan, console)
    _cost(plan, console)
    _outlook(plan, console)
    for note in plan.notes:
        console.print(f"note: {note}")


def place_and_price(plan: LaunchPlan) -> str:
    """Of the best row, for the question: `aws/us-east-1, on demand, $30.13/h; $3,226 expected, $3,240 at most`."""
    row = plan.rows[0]
    if not row.offer.price_usd_per_hour:
        return f"{row.offer.infra}, at no price"
    words = f"{row.offer.infra}, {_kind(row)}, ${row.offer.price_usd_per_hour:.2f}/h"
    if plan.cost is None:
        return words
    return f"{words}; ${plan.cost.expected:,.0f} expected, {_at_worst(plan.cost.worst)}"


def _console() -> Console:
    console = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 140
    return console


def _head(plan: LaunchPlan, console: Console) -> None:
    steps, data = plan.steps, plan.data
    console.print(Text(f"{plan.name}: {plan.base}", style="bold"))
    share = 100 * plan.num_trained / plan.num_parameters
    console.print(f"  trains {plan.num_trained:,} of {plan.num_parameters:,} parameters ({share:.1f}%)")
    if data is not None:
        known = [f"{data.conversations:,} conversations" if data.conversations else ""]
        known += [f"{data.tokens:,} tokens" if data.tokens else ""]
        known += [f"{data.trained_tokens:,} trained" if data.trained_tokens else ""]
        known += [f"{'about ' if data.basis == 'estimate' else ''}{data.sequences:,} packed sequences an epoch"]
        console.print(f"  data ({data.basis}): {', '.join(word for word in known if word)}")
    total = "an unknown number of" if steps.total is None else f"{steps.total:,}"
    an_epoch = f", {steps.per_epoch:,} an epoch" if steps.per_epoch else ""
    console.print(
        f"  {total} steps{an_epoch}; global batch {steps.global_batch} "
        f"({steps.micro_batches} micro batch{'es' if steps.micro_batches != 1 else ''} a rank), {steps.tokens_per_step:,} tokens a step"
    )
    if steps.evaluations:
        shown = [str(step) for step in steps.evaluations]
        listed = ", ".join(shown if len(shown) <= 6 else [*shown[:3], "...", shown[-1]])
        console.print(f"  validation at steps {listed}; a checkpoint is {gigabytes(plan.checkpoint_bytes)}")
        _evaluation(plan, console)


def _evaluation(plan: LaunchPlan, console: Console) -> None:
    """What one costs, on the best machine, and all of them."""
    machine, count = plan.machine, len(plan.steps.evaluations)
    if machine.losses_s is None:
        return
    answers = f" and {seconds(machine.answers_s)} for answers" if machine.answers_s else ""
    whole = f", {seconds(count * machine.evaluation_s)} in all" if count > 1 else ""
    console.print(f"  an evaluation takes about {seconds(machine.losses_s)} for losses{answers}{whole}")


def _name(machine: Machine) -> str:
    return f"{machine.count} x {machine.accelerator or 'CPU rank'}"


def _verdict(machine: Machine, console: Console) -> None:
    chosen = machine.chosen
    if machine.memory_bytes is None:
        console.print(f"  {_name(machine)}: ZeRO-{chosen.stage}, {gigabytes(chosen.memory.total)} of memory a rank")
        return
    console.print(Text("  ") + _bar(chosen, machine.memory_bytes))
    words, style = _fit(chosen)
    limit = f"of {machine.memory_bytes // MIB:,} MiB"
    offloaded = ", optimizer on the host" if "optimizer" in machine.host else ""
    console.print(
        f"  {_name(machine)}: ZeRO-{chosen.stage}{offloaded}, {gigabytes(chosen.memory.total)} {limit}: [{style}]{words}[/]"
    )


def _fit(option: StageOption) -> tuple[str, str]:
    return _room(option.spare_bytes or 0, option.fits)


def _room(spare: int, fits: bool | None) -> tuple[str, str]:
    if fits:
        return f"fits with {gigabytes(spare)} to spare", "green"
    if spare >= 0:
        return f"too tight: {gigabytes(spare)} to spare", "red"
    return f"does not fit: {gigabytes(-spare)} too much", "red"


def _machine(plan: LaunchPlan, machine: Machine, console: Console) -> None:
    console.print()
    _verdict(machine, console)
    legend = Text("  ")
    for name, size in machine.chosen.memory.parts.items():
        if size:
            legend.append(f"{LETTERS[name]} {name} {gigabytes(size)}  ", style=COLOURS[name])
    console.print(legend)
    console.print(f"  recomputed in the backward pass: {_recomputed(machine)}")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("  ZeRO", "memory", "verdict", "sent a step and GPU", "seconds a step"):
        table.add_column(title, justify="left" if title in ("  ZeRO", "verdict") else "right")
    for option in machine.options:
        words, style = _fit(option) if option.fits is not None else ("", "")
        mark = "*" if option.stage == machine.chosen.stage else " "
        table.add_row(
            f"{mark} {option.stage}", gigabytes(option.memory.total), Text(words, style=style),
            gigabytes(option.traffic.total_bytes), f"{option.time.total_s:.1f}" if option.time else "-",
        )  # fmt: skip
    console.print(table)
    _choices(machine, console)
    _host(machine, console)
    if machine.step_s is not None:
        saves = f"a save every {seconds(machine.save_interval_s)} blocks {machine.save_s:.1f} s"
        console.print(f"  {machine.step_s:.1f} s a step ({machine.speed_source}); {saves}")


def _recomputed(machine: Machine) -> str:
    every = machine.recompute_every
    layers = {0: "nothing", 1: "every layer"}.get(every, f"one layer in {every}")
    return f"{layers}, from inputs in host memory" if "activations" in machine.host else layers


def _choices(machine: Machine, console: Console) -> None:
    """What would fit, and what else one could change, each with its numbers."""
    if not machine.choices:
        return
    console.print("  what fits instead:" if machine.choices[0].fits else "  nothing that dolphin can change fits:")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("    change", "memory", "verdict", "seconds a step", "host memory"):
        table.add_column(title, justify="left" if title in ("    change", "verdict") else "right")
    for choice in machine.choices:
        spare = (machine.memory_bytes or 0) - choice.total_bytes
        words, style = _room(spare, choice.fits)
        table.add_row(
            f"    {choice.change}", gigabytes(choice.total_bytes), Text(words, style=style),
            f"{choice.step_s:.1f}" if choice.step_s is not None else "-",
            f"{choice.host_gib:,} GiB" if choice.host_gib is not None else "",
        )  # fmt: skip
    console.print(table)


def _host(machine: Machine, console: Console) -> None:
    """What a node with GPUs must have of the other memory."""
    if machine.accelerator is None:
        return
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in machine.host.items())
    console.print(f"  host memory: a node needs {machine.host_gib:,} GiB ({parts})")


def _bar(option: StageOption, memory_bytes: int) -> Text:
    """The card as a bar; a letter a slice of a part, dots for what is free. Too much runs over the end."""
    bar, done, drawn = Text("["), 0, 0
    for name, size in option.memory.parts.items():
        done += size
        cells = min(round(done / memory_bytes * BAR_WIDTH), 2 * BAR_WIDTH) - drawn
        if cells > 0:
            bar.append(LETTERS[name] * cells, style=COLOURS[name])
            drawn += cells
            if drawn > BAR_WIDTH >= drawn - cells:
                bar.append("|", style="bold red")
    bar.append("." * max(0, BAR_WIDTH - drawn))
    return bar.append("]")


def _offers(plan: LaunchPlan, console: Console) -> None:
    rows = [row for row in plan.rows if row.offer.price_usd_per_hour or row.hours is not None]
    if not rows and not plan.owned:
        return
    console.print()
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    titles = ["where", "machine", "kind", "$/h", "hours", "p10 to p90", "price", "p10 to p90"]
    titles += [f"in {plan.deadline_h:.4g} h"] if plan.deadline_h is not None else []
    for title in titles:
        table.add_column(title, justify="left" if title in ("where", "machine", "kind") else "right")
    for row in (*plan.owned, *rows[:MAX_ROWS]):
        table.add_row(*_cells(plan, row))
    console.print(table)
    _owned(plan, console)
    if len(rows) > MAX_ROWS:
        cheapest = next((row for row in rows[MAX_ROWS:] if row.is_possible and not row.offer.spot), None)
        if cheapest is not None and not any(not row.offer.spot for row in rows[:MAX_ROWS]):
            price = f"${cheapest.offer.price_usd_per_hour:.2f}/h"
            console.print(f"cheapest on demand: {cheapest.offer.infra} at {price}, {_money(cheapest)} in all")
        console.print(f"{len(rows) - MAX_ROWS} more offers; --json has them all")
    if any(row.offer.spot for row in rows):
        console.print(
            f"spot: {plan.preemptions_per_day:.1f} preemptions a day expected, each is a restart from the last save"
        )


def _owned(plan: LaunchPlan, console: Console) -> None:
    able = [f"--on {row.offer.backend}" for row in plan.owned if row.is_possible]
    if able:
        console.print(f"this machine has the GPUs, at no price: dolphin launch {' or '.join(able)}")


def _cost(plan: LaunchPlan, console: Console) -> None:
    """What it may come to, and what is paid beside the nodes. Of a run that costs nothing, nothing."""
    cost = plan.cost
    if cost is None:
        row = plan.rows[0] if plan.rows else None
        if row is not None and row.offer.price_usd_per_hour and row.hours is None:
            console.print(
                f"  price: ${row.offer.price_usd_per_hour:.2f}/h at {row.offer.infra}, {_kind(row)}; in all: not known without the "
                "steps"
            )
        return
    kind = "on spot" if cost.worst_on_spot else "on demand"
    console.print(
        f"  price: ${cost.usd_per_hour:.2f}/h; ${cost.expected:,.0f} expected, {_at_worst(cost.worst)} (all {kind}, at "
        f"{cost.worst_infra}; resources.max_hourly_cost bounds it)"
    )
    for one in cost.upkeep:
        console.print(f"  in it: {one.what}, ${one.price_usd_per_hour:.2f}/h{f', {one.note}' if one.note else ''}")
    gone = cost.egress
    if gone is not None:
        where = "to another cloud" if gone.leaves_cloud else "where the bucket is not in the node's region"
        console.print(
            f"  not in it: {gone.num_saves:,} saves, {gigabytes(gone.num_bytes)}, {where}: up to ${gone.price_usd:,.0f} at "
            f"${gone.usd_per_gb:g} a GB"
        )


_HOWS = {
    "deadline": "spot where it is cheap and there is time for it, on demand in time for the deadline",
    "spot": "spot",
    "on demand": "on demand",
}


def _outlook(plan: LaunchPlan, console: Console) -> None:
    """What becomes of it under its deadline and its budget."""
    outlook = plan.outlook
    if outlook is None:
        if plan.deadline_h is not None:
            console.print("  deadline: whether it can be met is not known without the hours of the run")
        return
    limits = [f"deadline in {outlook.deadline_h:,.1f} hours"] if outlook.deadline_h is not None else []
    limits += [f"budget ${outlook.budget_usd:,.2f}"] if outlook.budget_usd is not None else []
    console.print(f"  {', '.join(limits)}: {_HOWS[outlook.how]}")
    chances = [f"{outlook.in_time:.0%} in time"] if outlook.in_time is not None else []
    chances += [f"{outlook.in_budget:.0%} within the budget"] if outlook.in_budget is not None else []
    (hours, late), (usd, dear) = outlook.hours, outlook.usd
    console.print(
        f"    done after {_number(hours)} hours (p90 {_number(late)}) for ${usd:,.2f} (p90 ${dear:,.2f}), export included; of "
        f"simulated runs {', '.join(chances)}"
    )
    if outlook.not_enforced:
        console.print(f"    the deadline is not enforced, {outlook.how} is chosen once: {outlook.not_enforced}")
    if outlook.why_not:
        console.print(Text(f"    cannot be met: {outlook.why_not}", style="bold red"))


def _at_worst(price_usd: float) -> str:
    return f"${price_usd:,.0f} at most" if math.isfinite(price_usd) else "without end at worst"


def _kind(row: Row) -> str:
    return "spot" if row.offer.spot else "on demand"


def _cells(plan: LaunchPlan, row: Row) -> list[str]:
    offer, hours, price = row.offer, row.hours, row.price_usd
    nodes = f"{offer.num_nodes} nodes of " if offer.num_nodes > 1 else ""
    cells = [
        offer.infra,
        f"{nodes}{offer.count} x {offer.accelerator or 'CPU'}",
        "own" if not offer.price_usd_per_hour else _kind(row),
    ]
    cells.append(f"{offer.price_usd_per_hour:.2f}")
    if not row.is_possible or hours is None or price is None:
        cells += [row.why_not or "-", "", "", ""]
    else:
        cells += [_number(hours.mean), f"{_number(hours.p10)} to {_number(hours.p90)}"]
        cells += [f"${price[1]:,.0f}", f"${price[0]:,.0f} to ${price[2]:,.0f}"]
    if plan.deadline_h is not None:
        cells.append("-" if row.meets_deadline is None else "yes" if row.meets_deadline else "no")
    return cells


def _hours(plan: LaunchPlan, console: Console) -> None:
    row = plan.rows[0] if plan.rows else None
    if row is None or row.hours is None:
        return
    if not row.is_possible:
        console.print(f"  {row.offer.infra}, the cheapest: {row.why_not}")
        return
    place = (
        f"{row.offer.infra}, {_kind(row)}, ${row.offer.price_usd_per_hour:.2f}/h"
        if row.offer.price_usd_per_hour
        else row.offer.infra
    )
    cost = f", {_money(row)} in all" if row.offer.price_usd_per_hour else ""
    console.print(
        f"  {place}: {_number(row.hours.mean)} hours ({_number(row.hours.p10)} to {_number(row.hours.p90)}){cost}"
    )


def _money(row: Row) -> str:
    return (
        "-"
        if row.price_usd is None
        else f"${row.price_usd[1]:,.0f} (${row.price_usd[0]:,.0f} to ${row.price_usd[2]:,.0f})"
    )


def _number(value: float) -> str:
    return "never" if not math.isfinite(value) else f"{value:,.1f}" if value >= 1 else f"{value:.2f}"
