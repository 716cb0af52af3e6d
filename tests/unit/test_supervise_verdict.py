"""Which of several deaths is the cause: the wrong answer restarts what cannot work, or hides why a run ended."""

from __future__ import annotations

import signal
from typing import Any

from trainer.run.exits import EndKind
from trainer.supervise.rank_guard import LEFT_AT_ONCE, RankEnd
from trainer.supervise.verdict import Evidence, judge

GLOO = "RuntimeError: [third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:10908"
NCCL = "DistBackendError: NCCL communicator was aborted on rank 0"


def end(kind: EndKind, message: str = "", at: float = 1.0, **more: Any) -> RankEnd:
    values = {"step": 7, "error": "", "final": False, "stop_reason": None, "traceback_tail": [], **more}
    return RankEnd(kind=kind, message=message, time=at, **values)


def evidence(ends: dict[int, RankEnd], **more: Any) -> Evidence:
    return Evidence(**{"num_ranks": 2, "ends": ends, "failures": {}, "torchrun_code": 1, "step": 7, **more})


def test_the_rank_that_died_is_blamed_not_the_one_that_noticed_first() -> None:
    for message in (GLOO, NCCL):
        verdict = judge(evidence({0: end(EndKind.FAILED, message)}, failures={1: -signal.SIGKILL}))
        assert verdict.reason.startswith("rank 1 was killed from outside")
        assert verdict.can_restart
        assert verdict.signature is None


def test_an_error_of_its_own_is_the_cause_though_it_was_reported_later() -> None:
    ends = {0: end(EndKind.FAILED, GLOO, at=1.0), 1: end(EndKind.FAILED, "IndexError: 7", at=2.0, error="IndexError")}
    verdict = judge(evidence(ends, failures={0: 1, 1: 1}))
    assert verdict.reason == "rank 1: IndexError: 7"
    assert verdict.signature == "IndexError|IndexError: 7"


def test_of_two_errors_the_earlier_one_is_the_cause() -> None:
    ends = {0: end(EndKind.FAILED, "KeyError: b", at=2.0), 1: end(EndKind.FAILED, "ValueError: a", at=1.0)}
    assert judge(evidence(ends)).reason == "rank 1: ValueError: a"


def test_out_of_memory_is_said_as_such() -> None:
    verdict = judge(evidence({}, failures={1: -signal.SIGKILL}, oom_kills=1))
    assert "killed by the kernel for want of memory" in verdict.reason
    assert verdict.signature is not None


def test_bad_input_is_never_restarted_even_where_another_rank_crashed_first() -> None:
    ends = {0: end(EndKind.FAILED, "ValueError: a", at=1.0), 1: end(EndKind.BAD_INPUT, "row 7 is bad", at=2.0)}
    verdict = judge(evidence(ends, failures={0: 1, 1: 64}))
    assert (verdict.kind, verdict.reason, verdict.can_restart) == (EndKind.BAD_INPUT, "row 7 is bad", False)


def test_a_deliberate_stop_of_the_trainer_is_not_restarted() -> None:
    verdict = judge(evidence({0: end(EndKind.FAILED, "the loss is nan", final=True)}))
    assert (verdict.kind, verdict.can_restart, verdict.reason) == (EndKind.FAILED, False, "the loss is nan")


def test_a_rank_stopped_before_it_could_listen_was_asked_to_stop_not_broken() -> None:
    verdict = judge(evidence({}, failures={1: -signal.SIGTERM}))
    assert (verdict.kind, verdict.reason) == (EndKind.PREEMPTED, "SIGTERM to rank 1")


def test_the_reason_of_a_stop_is_the_one_of_the_rank_that_was_asked() -> None:
    ends = {
        0: end(EndKind.PREEMPTED, "stopped at step 7", at=1.0),
        1: end(EndKind.PREEMPTED, "stopped at step 7", at=2.0, stop_reason="SIGTERM to rank 1"),
    }
    assert judge(evidence(ends, torchrun_code=0)).reason == "SIGTERM to rank 1"


def test_a_rank_that_left_at_once_is_not_taken_for_a_clean_stop() -> None:
    ends = {0: end(EndKind.FAILED, GLOO), 1: end(EndKind.PREEMPTED, "second signal", at=2.0, error=LEFT_AT_ONCE)}
    verdict = judge(evidence(ends))
    assert verdict.kind is EndKind.PREEMPTED
    assert verdict.at_once


def test_a_crash_while_leaving_does_not_undo_a_finished_run() -> None:
    ends = {0: end(EndKind.DONE), 1: end(EndKind.DONE)}
    assert judge(evidence(ends, failures={1: -signal.SIGSEGV})).kind is EndKind.DONE


def test_a_run_is_not_done_while_a_rank_has_said_nothing() -> None:
    verdict = judge(evidence({0: end(EndKind.DONE)}, torchrun_code=0))
    assert verdict.kind is EndKind.FAILED
    assert "no word of rank 1" in verdict.reason


def test_a_hang_is_not_mistaken_for_the_kill_that_ended_it() -> None:
    verdict = judge(evidence({}, hang="rank 1 made no progress for 600 s"))
    assert verdict.reason == "hang: rank 1 made no progress for 600 s"
    assert verdict.can_restart


def test_ranks_that_do_not_reach_each_other_are_told_apart_from_one_that_died() -> None:
    alone = {0: end(EndKind.FAILED, "a first all-reduce did not return", error="NoContact")}
    assert judge(evidence(alone)).no_contact
    for cause in (
        end(EndKind.FAILED, "ValueError: a", at=0.5, error="ValueError"),
        end(EndKind.BAD_INPUT, "no", at=2.0),
    ):
        assert not judge(evidence({**alone, 1: cause})).no_contact
    assert not judge(evidence({0: end(EndKind.FAILED, f"an all-reduce failed: {GLOO}", error="NoContact")})).no_contact
