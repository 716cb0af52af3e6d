"""`--since` finds a line's age by what the line is about: a line that is printed one way and read another loses its time."""

from trainer.run.log_lines import evaluation_line, step_line, subject_of, subject_of_record


def test_a_line_is_recognised_as_it_is_printed_and_belongs_to_the_record_that_was_written_with_it():
    step = step_line(840, 3420, 0.58141, 4.1e-6, 0.931, 812.3, 4.47)
    assert subject_of(step) == subject_of_record({"step": 840, "loss": 0.58141}) == (840, "step")
    evaluation = evaluation_line(840, 3420, 0.741, {"eval_loss": 0.56712}, is_best=False)
    assert evaluation == "step 840/3420 · epoch 0.74 · validation loss 0.5671"
    assert subject_of(evaluation) == subject_of_record({"step": 840, "eval_loss": 0.56712}) == (840, "evaluation")
    assert subject_of(f"[node-1] {step}") == (840, "step")
    assert subject_of("attempt 2: resumed at step 3 of 12 from step-00000003") is None
    assert subject_of(evaluation.replace("step", "misstep")) is None


def test_a_line_of_several_sets_and_scores_says_each_once_and_what_is_best():
    measures = {
        "eval_loss": 0.5,
        "eval_entropy": 1.0,
        "held-out/loss": 0.5,
        "held-out/entropy": 1.0,
        "mine/loss": 0.75,
        "contains": 0.25,
    }
    line = evaluation_line(8, 30, 0.5, measures, is_best=True)
    assert line == "step 8/30 · epoch 0.50 · validation loss 0.5000 · mine/loss 0.7500 · contains 0.25 · best so far"
    asked = evaluation_line(8, 30, 0.5, {}, is_best=False)
    assert subject_of(asked) == subject_of_record({"step": 8, "epoch": 0.5}) == (8, "evaluation")
