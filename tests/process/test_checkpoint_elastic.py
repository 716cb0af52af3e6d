"""A run that is resumed elsewhere must go on as if nothing had happened: at any number of ranks, under any ZeRO stage, with
its optimizer on the GPU or in host memory."""

import itertools
from pathlib import Path

import pytest
import torch

from tests.support.checkpoint_runs import do_phases

STAGES, PRECISIONS = (0, 1, 2, 3), ("fp32", "bf16")
SAVED_AT, LAST, SHORT = 2, 22, 5
LONG = ((2, "fp32"), (3, "fp32"), (3, "bf16"))
"""Cases that are followed over twenty steps after the resume; the others over three."""
OFFLOADED = ((1, "bf16"), (2, "fp32"), (2, "bf16"), (3, "fp32"), (3, "bf16"))
MOMENTUM = ((0, "fp32"), (3, "bf16"))
OFFLOAD = {"train": {"offload": "optimizer"}}
OTHERS = [(name, stage, "fp32" if stage == 0 else "bf16") for name in ("adamw_8bit", "muon") for stage in STAGES]
"""Optimizers with a state of another kind."""
TOLERANCE = {"fp32": 1e-4, "bf16": 5e-3}


def run_of(root: Path, name: str, stage: int, precision: str, case: tuple[int, str], **more: object) -> dict:
    steps = LAST if case in LONG else SHORT
    return {"run_dir": str(root / name), "stage": stage, "precision": precision, "seed": 1, "steps": steps, **more}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """All of it in one start. Keys: (kind, stage, precision)."""
    root = tmp_path_factory.mktemp("elastic")
    cases = list(itertools.product(STAGES, PRECISIONS))
    four = {(s, p): run_of(root, f"four-{s}-{p}", s, p, (s, p), steps=SAVED_AT, save_at=[SAVED_AT]) for s, p in LONG}
    late = {"save_at": [SAVED_AT], "slow_copy_s": 0.7}  # the next update is ready before the state is copied
    whole = {(s, p): run_of(root, f"two-{s}-{p}", s, p, (s, p), **late) for s, p in cases}
    again = {"seed": 99, "attempt": 2}
    same = {
        (s, p): run_of(root, f"same-{s}-{p}", s, p, (s, p), copy_from=whole[s, p]["run_dir"], **again) for s, p in cases
    }
    other = {
        (f"{s} to {(s + 1) % 4}", p): run_of(
            root,
            f"other-{s}-{p}",
            (s + 1) % 4,
            p,
            (s, p),
            copy_from=whole[s, p]["run_dir"],
            **(again | {"steps": SHORT}),
        )
        for s, p in cases
    }
    fewer = {(f"4 to 2, stage {s}", p): run_of(root, f"four-{s}-{p}", 5 - s, p, (s, p), **again) for s, p in LONG}
    one = {(s, p): run_of(root, f"two-{s}-{p}", (s + 2) % 4, p, (s, p), save_at=[4], **again) for s, p in LONG}
    more = {(s, p): run_of(root, f"two-{s}-{p}", s, p, (s, p), **(again | {"attempt": 3})) for s, p in LONG}
    offloaded = {
        (f"{s} offloaded", p): run_of(root, f"off-{s}-{p}", s, p, (0, p), **late, **OFFLOAD) for s, p in OFFLOADED
    }
    with_momentum = {
        ("momentum", p): run_of(root, f"sgd-{p}", s, p, (0, p), momentum=True, **late) for s, p in MOMENTUM
    }
    momentum_again = {
        ("momentum", p): run_of(
            root, f"sgd-again-{p}", s, p, (0, p), copy_from=with_momentum["momentum", p]["run_dir"], momentum=True, **again
        )
        for s, p in MOMENTUM
    }  # fmt: skip
    moved = {}
    for s, p in OFFLOADED:
        there, here = whole[s, p]["run_dir"], offloaded[f"{s} offloaded", p]["run_dir"]
        ways = {"stays": (here, OFFLOAD), "returns": (here, {}), "leaves": (there, OFFLOAD)}
        for way, (source, settings) in ways.items():
            run = run_of(root, f"{way}-{s}-{p}", s, p, (0, p), copy_from=source, **again, **settings)
            moved[f"{s} {way}", p] = run
    others, others_again, others_moved = {}, {}, {}
    for name, s, p in OTHERS:
        settings = {"train": {"optimizer": name}}
        run = run_of(root, f"{name}-{s}", s, p, (0, p), **late, **settings)
        others[f"{name} {s}", p] = run
        copied = {"copy_from": run["run_dir"], **again, **settings}
        others_again[f"{name} {s}", p] = run_of(root, f"{name}-again-{s}", s, p, (0, p), **copied)
        others_moved[f"{name} {s}", p] = run_of(root, f"{name}-moved-{s}", (s + 1) % 4, p, (0, p), **copied)
    alone = {(s, "bf16"): run_of(root, f"alone-{s}", s, "bf16", (0, "bf16"), steps=1) for s in (1, 2, 3)}
    found = {}
    phases = [
        ("alone", 1, alone),
        ("4", 4, four),
        ("whole", 2, whole | offloaded | with_momentum | others),
        ("2 to 2", 2, same | other | fewer | moved | momentum_again | others_again),
        ("2 to 1", 1, one),
        ("2 to 1, another stage", 1, others_moved),
        ("1 to 2", 2, more),
    ]
    results = do_phases(root, [(nproc, list(runs.values())) for _, nproc, runs in phases])
    for (kind, _, runs), outcomes in zip(phases, results, strict=True):
        assert not [outcome["error"] for outcome in outcomes if outcome["error"]]
        found.update({(kind, *case): outcome for case, outcome in zip(runs, outcomes, strict=True)})
    return found


def test_no_stage_loses_bits_where_it_adds_micro_batches(results):
    """Sums in bf16 lose three of its eight bits, and a run that changes its stage at a resume would change its course."""
    first, second, third = (results["alone", stage, "bf16"]["norms"]["1"] for stage in (1, 2, 3))
    assert first == pytest.approx(third, rel=1e-6)
    assert second == pytest.approx(third, rel=1e-6)


def close(results, resumed, precision, last=LAST):
    whole = results["whole", 3, precision]["losses"]
    first = min(int(step) for step in resumed["losses"])
    steps = [str(step) for step in range(first, last + 1)]
    assert sorted(resumed["losses"], key=int) == steps
    return max(abs(float.fromhex(whole[s]) - float.fromhex(resumed["losses"][s])) for s in steps)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_the_same_number_of_ranks_goes_on_bit_for_bit(results, stage, precision):
    whole, resumed = results["whole", stage, precision], results["2 to 2", stage, precision]
    assert resumed["resumed_at"] == SAVED_AT
    assert resumed["losses"] == {s: loss for s, loss in whole["losses"].items() if int(s) > SAVED_AT}
    assert len(set(whole["losses"].values())) == len(whole["losses"])  # it moves: equal losses are no matter of course


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_another_stage_starts_from_the_same_weights(results, stage, precision):
    resumed = results["2 to 2", f"{stage} to {(stage + 1) % 4}", precision]
    whole = results["whole", stage, precision]["losses"]
    assert resumed["resumed_at"] == SAVED_AT
    differences = [abs(float.fromhex(whole[s]) - float.fromhex(loss)) for s, loss in resumed["losses"].items()]
    assert max(differences) < TOLERANCE[precision]


@pytest.mark.parametrize(("stage", "precision"), LONG)
def test_half_the_ranks_go_on_over_twenty_steps(results, stage, precision):
    resumed = results["2 to 2", f"4 to 2, stage {stage}", precision]
    assert resumed["resumed_at"] == SAVED_AT
    assert close(results, resumed, precision) < TOLERANCE[precision]


@pytest.mark.parametrize(("stage", "precision"), LONG)
def test_one_rank_goes_on_with_what_two_saved_and_two_with_what_one_saved(results, stage, precision):
    one, two = results["2 to 1", stage, precision], results["1 to 2", stage, precision]
    assert (one["resumed_at"], two["resumed_at"]) == (SAVED_AT, 4)
    assert close(results, one, precision) < TOLERANCE[precision]
    assert close(results, two, precision) < TOLERANCE[precision]


@pytest.mark.parametrize(("stage", "precision"), OFFLOADED)
def test_an_optimizer_in_host_memory_goes_on_bit_for_bit(results, stage, precision):
    """Its state is written from where it is, while the next step runs, and the step's update is ready before that."""
    whole, resumed = results["whole", f"{stage} offloaded", precision], results["2 to 2", f"{stage} stays", precision]
    assert (whole["is_lent"], results["whole", stage, precision]["is_lent"]) == (True, False)
    assert whole["blocked_seconds"] > 0
    assert resumed["resumed_at"] == SAVED_AT
    assert resumed["losses"] == {s: loss for s, loss in whole["losses"].items() if int(s) > SAVED_AT}


@pytest.mark.parametrize("way", ["returns", "leaves"])
@pytest.mark.parametrize(("stage", "precision"), OFFLOADED)
def test_a_run_may_move_its_optimizer_to_host_memory_and_back(results, stage, precision, way):
    resumed, whole = results["2 to 2", f"{stage} {way}", precision], results["whole", stage, precision]["losses"]
    assert resumed["resumed_at"] == SAVED_AT
    differences = [abs(float.fromhex(whole[s]) - float.fromhex(loss)) for s, loss in resumed["losses"].items()]
    assert differences
    assert max(differences) < TOLERANCE[precision] / 10


@pytest.mark.parametrize(("name", "stage", "precision"), OTHERS)
def test_every_optimizer_goes_on_bit_for_bit(results, name, stage, precision):
    whole, resumed = (results[kind, f"{name} {stage}", precision] for kind in ("whole", "2 to 2"))
    assert resumed["resumed_at"] == SAVED_AT
    assert resumed["losses"] == {s: loss for s, loss in whole["losses"].items() if int(s) > SAVED_AT}
    adamw = results["whole", stage, precision]["losses"]
    assert whole["losses"][str(SHORT)] != adamw[str(SHORT)], "it is no other optimizer"
    assert float.fromhex(whole["losses"][str(SHORT)]) < float.fromhex(whole["losses"]["1"])


@pytest.mark.parametrize(("name", "stage", "precision"), OTHERS)
def test_every_optimizer_goes_on_with_another_cut_of_its_state(results, name, stage, precision):
    """On one rank and under another stage: whole matrices are the same ones, moments of 8 bits are rounded once more."""
    whole, resumed = (
        results["whole", f"{name} {stage}", precision],
        results["2 to 1, another stage", f"{name} {stage}", precision],
    )
    assert resumed["resumed_at"] == SAVED_AT
    differences = [
        abs(float.fromhex(whole["losses"][s]) - float.fromhex(loss)) for s, loss in resumed["losses"].items()
    ]
    assert differences
    assert max(differences) < TOLERANCE["bf16"]


@pytest.mark.parametrize("precision", [precision for _, precision in MOMENTUM])
def test_an_optimizer_that_keeps_other_tensors_goes_on_bit_for_bit_too(results, precision):
    """What is saved and put back follows from the description of the optimizer's state alone."""
    whole, resumed = results["whole", "momentum", precision], results["2 to 2", "momentum", precision]
    assert resumed["resumed_at"] == SAVED_AT
    assert resumed["losses"] == {s: loss for s, loss in whole["losses"].items() if int(s) > SAVED_AT}
    stage = {p: s for s, p in MOMENTUM}[precision]
    assert whole["losses"] != {s: results["whole", stage, precision]["losses"][s] for s in whole["losses"]}


def test_random_numbers_go_on_too(results):
    assert results["2 to 2", 3, "fp32"]["random"] == results["whole", 3, "fp32"]["random"]
    assert torch.tensor(results["2 to 1", 3, "fp32"]["random"]).isfinite().all()
