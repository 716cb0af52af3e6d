"""The same job must train the same model however many ranks share it, and leave a folder that others can load."""

import json
import math
from pathlib import Path

import pytest
import torch

from tests.support import tiny_job
from tests.support.tiny_job import losses, train, write_job

NEVER = {
    "bitsandbytes", "boto3", "botocore", "datasets", "liger_kernel", "matplotlib", "mlflow", "pandas", "peft", "pyarrow",
    "scipy", "sklearn", "tensorboard", "torchao", "torchvision", "triton", "trl", "wandb",
}  # fmt: skip
"""Heavy libraries that a plain job on CPUs has no use for, in none of its processes, though they may be installed. Pillow is not
among them: transformers loads it wherever it is, in 12 ms."""
STACK = {"accelerate", "deepspeed", "numpy", "safetensors", "tokenizers", "torch", "transformers"}
MAY_IMPORT = {
    "supervise/__main__.py": set(),
    "supervise/torchrun.py": {"torch", "numpy"},
    "data/prepare.py": {"numpy", "tokenizers", "transformers", "safetensors"},
    "rank/main.py": STACK,
}
"""What of STACK each process has to load."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def finished(root):
    """One run to its end: two ranks, ZeRO-3, fp32, evaluated, with added tokens and a last step of an odd size."""
    (root / "imports").mkdir()
    noted = {
        "PYTHONPATH": str(Path(tiny_job.__file__).with_name("noted_imports")),
        "NOTED_IMPORTS": str(root / "imports"),
    }
    return train(
        write_job(
            root, "full", nproc=2,
            model={"added_tokens": ["<|tool|>"], "special_tokens": {"eos_token": "<|im_end|>"}},
            train={"zero": 3, "evaluate_every": 10},
        ),
        **noted,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(root):
    """One rank without ZeRO, by precision."""
    return {
        precision: train(write_job(root, f"one-{precision}", nproc=1, train={"zero": 0, "precision": precision}))
        for precision in ("fp32", "bf16")
    }


@pytest.mark.parametrize(
    ("precision", "offload", "tolerance"),
    [("fp32", "none", 1e-4), ("bf16", "none", 5e-3), ("fp32", "optimizer", 1e-4)],
)
def test_two_ranks_of_zero_3_and_one_rank_of_zero_0_have_the_same_losses(root, alone, precision, offload, tolerance):
    settings = {"zero": 3, "precision": precision, "offload": offload}
    two, one = train(write_job(root, f"two-{precision}-{offload}", nproc=2, train=settings)), alone[precision]
    assert len(losses(one)) == 20
    assert losses(one)[-1] < losses(one)[0] - 0.1
    differences = [abs(a - b) for a, b in zip(losses(one), losses(two), strict=True)]
    assert max(differences) < tolerance


def test_every_step_has_its_line_of_metrics(finished):
    steps = [line for line in finished.read_metrics() if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 21))
    keys = {"step", "epoch", "loss", "lr", "grad_norm", "tokens", "seconds", "attempt", "time"}
    keys |= {
        "perplexity",
        "token_accuracy",
        "tokens_per_second",
        "trained_tokens_per_second",
        "data_wait_s",
        "save_stall_s",
    }
    assert all(set(line) == keys for line in steps)
    assert all(0 <= line["data_wait_s"] <= line["seconds"] and line["save_stall_s"] >= 0 for line in steps)
    assert all(line["tokens"] > 0 and math.isfinite(line["grad_norm"]) for line in steps)
    evaluations = [line for line in finished.read_metrics() if "eval_loss" in line]
    assert [line["step"] for line in evaluations] == [0, 10, 20]
    assert evaluations[-1]["eval_loss"] < evaluations[0]["eval_loss"]


@pytest.mark.parametrize("program", MAY_IMPORT)
def test_no_process_of_a_run_spends_its_start_on_libraries_that_it_does_not_use(finished, root, program):
    noted = [path.read_text().splitlines() for path in (root / "imports").iterdir()]
    loaded = [{name.partition(".")[0] for name in names} for ran, *names in noted if ran.endswith(f"trainer/{program}")]
    assert loaded
    for names in loaded:
        assert names & NEVER == set()
        assert names & (STACK - MAY_IMPORT[program]) == set()


def test_the_outcome_says_what_happened(finished):
    outcome = json.loads(finished.outcome.read_text())
    assert outcome["state"] == "done"
    assert outcome["exit_code"] == 0
    assert outcome["step"] == outcome["total_steps"] == 20
    assert outcome["model"] == str(finished.model)


def test_transformers_loads_the_model_folder_and_it_has_the_loss_that_was_reported(finished):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer.data.batch import IGNORE, Share
    from trainer.data.plan import DataPlan
    from trainer.run.spec import NodeJob

    model = AutoModelForCausalLM.from_pretrained(finished.model)
    tokenizer = AutoTokenizer.from_pretrained(finished.model)
    assert model.dtype == torch.bfloat16
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)
    assert "<|tool|>" in tokenizer.get_vocab()
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"

    plan = DataPlan.open(NodeJob.read(finished.train_json))
    total = weight = 0.0
    with torch.no_grad():
        for index in range(plan.eval_num_micro_batches(Share(0, 1, 1), "held-out")):
            batch = plan.eval_batch(Share(0, 1, 1), "held-out", index)
            for start, end in zip(batch.cu_seqlens[:-1].tolist(), batch.cu_seqlens[1:].tolist(), strict=True):
                part = slice(start, end)
                logits = model.float()(input_ids=batch.ids_BT[:, part]).logits[0]
                each = torch.nn.functional.cross_entropy(
                    logits, batch.labels_BT[0, part], ignore_index=IGNORE, reduction="none"
                )
                total += float((each * batch.weights_BT[0, part]).sum())
                weight += float(batch.weights_BT[0, part].sum())
    reported = [line["eval_loss"] for line in finished.read_metrics() if "eval_loss" in line][-1]
    assert total / weight == pytest.approx(reported, abs=0.02)  # the folder is bf16, the run was fp32


def test_frozen_parameters_are_those_of_the_base_model(finished, root):
    from transformers import AutoModelForCausalLM

    before = dict(AutoModelForCausalLM.from_pretrained(root / "base", dtype=torch.bfloat16).named_parameters())
    after = dict(AutoModelForCausalLM.from_pretrained(finished.model).named_parameters())
    frozen = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(before[frozen], after[frozen])
    assert not torch.equal(before["model.layers.0.mlp.up_proj.weight"], after["model.layers.0.mlp.up_proj.weight"])


def test_the_model_card_holds_this_runs_facts_and_no_local_path(finished, root):
    card = (finished.model / "README.md").read_text()
    for section in ("Prompt format", "Base model", "Hyperparameters", "Training results", "Configuration", "versions"):
        assert section in card
    final = [line["eval_loss"] for line in finished.read_metrics() if "eval_loss" in line][-1]
    assert f"{final:.4f}" in card
    assert "<|im_start|>user\n" in card
    assert "An answer ends with `<|im_end|>`" in card
    assert str(root) not in card


def test_a_loss_that_is_not_finite_stops_before_it_is_applied_and_names_the_conversations(root):
    run = write_job(root, "diverge", train={"evaluate_at_start": False},
                    checkpoint={"max_restarts": 0})  # fmt: skip
    poison_the_base(root)
    job = json.loads(run.train_json.read_text())
    job["spec"]["model"]["base"] = str(root / "poisoned")
    run.train_json.write_text(json.dumps(job))
    train(run, expect=1)
    outcome = json.loads(run.outcome.read_text())
    assert outcome["state"] == "failed"
    assert "loss of step 1 is nan" in outcome["reason"]
    assert "data.jsonl:" in outcome["reason"]
    assert losses(run) == []


def poison_the_base(root) -> None:
    """The base model with one weight that is not a number."""
    import shutil

    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(root / "base")
    with torch.no_grad():
        model.model.norm.weight[0] = math.nan
    shutil.copytree(root / "base", root / "poisoned")
    model.save_pretrained(root / "poisoned")


def test_a_pattern_that_hits_nothing_exits_with_64_and_is_not_tried_again(root):
    run = write_job(root, "pattern", train={"unfrozen": ["layers.9.mlp"]})
    train(run, expect=64)
    assert "'layers.9.mlp' matches no parameter" in json.loads(run.outcome.read_text())["reason"]
    assert [path.name for path in run.attempts.iterdir() if path.is_dir()] == ["1"]


def test_a_node_without_a_usable_gpu_fails_once_and_says_why(root):
    run = write_job(root, "no-gpu")
    job = json.loads(run.train_json.read_text())
    run.train_json.write_text(json.dumps(job | {"device": "cuda"}))
    train(run, expect=1)  # CUDA_VISIBLE_DEVICES is empty: no GPU, whatever torch is installed
    assert "rank 0 has no GPU that it can use: " in json.loads(run.outcome.read_text())["reason"]
    assert [event["event"] for event in run.read_events()].count("attempt_started") == 1


def test_tiny_job_is_the_same_every_time(tmp_path):
    """The other tests compare runs by their bits: their inputs must not wander."""
    first = tiny_job.write_data(tmp_path / "a.jsonl").read_bytes()
    assert first == tiny_job.write_data(tmp_path / "b.jsonl").read_bytes()
