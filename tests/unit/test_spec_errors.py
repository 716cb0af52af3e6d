"""A wrong job costs one look, not one run per mistake: every error at once, with its line, its key and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config.problems import SpecErrors
from launcher.jobfile.load import load_job
from launcher.jobfile.spec import JobSpec, ResourcesSpec

GOOD = """\
name: tide
model:
  base: tiny
data:
  sources:
    - path: rows.jsonl
train:
  global_batch: 8
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(
        '{"model_type": "llama", "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16,'
        ' "num_attention_heads": 2, "vocab_size": 32, "tie_word_embeddings": true}'
    )
    (tmp_path / "rows.jsonl").write_text('{"text": "x"}\n')
    return tmp_path


def complaints(folder: Path, text: str, *overrides: str) -> list[str]:
    path = folder / "job.yaml"
    path.write_text(text)
    with pytest.raises(SpecErrors) as caught:
        load_job(path, overrides)
    return [str(problem).replace(f"{folder}/", "") for problem in caught.value.problems]


def test_a_good_job_loads_and_its_local_paths_are_absolute(folder: Path) -> None:
    (folder / "job.yaml").write_text(GOOD)
    job = load_job(folder / "job.yaml")
    assert job.model.base == str(folder / "tiny")
    assert job.data.sources[0].path == str(folder / "rows.jsonl")


def test_hub_ids_and_urls_are_left_alone(folder: Path) -> None:
    (folder / "job.yaml").write_text(
        GOOD.replace("base: tiny", "base: owner/model").replace("path: rows.jsonl", "path: hf://owner/rows")
    )
    job = load_job(folder / "job.yaml")
    assert (job.model.base, job.data.sources[0].path) == ("owner/model", "hf://owner/rows")


def test_every_error_is_reported_at_once_in_the_order_of_the_file(folder: Path) -> None:
    found = complaints(
        folder,
        """\
name: My Job
modell: x
model:
  base: tiny
  chat_template: chatmll
data:
  sources:
    - path: nope.jsonl
      fromat: sharegpt
  packing: yes
  learning_rate: 3
train:
  learning_rte: 5e-6
  max_steps: 1e3
  warmup_steps: 3
  warmup_steps: 4
  weight_decay:
  schedule: cosin
  zero: "3"
""",
    )
    assert [line.split(": ")[0] + ": " + line.split(": ")[1] for line in found] == [
        "job.yaml:1: name",
        "job.yaml:2: modell",
        "job.yaml:5: model.chat_template",
        "job.yaml:8: data.sources[0].path",
        "job.yaml:9: data.sources[0].fromat",
        "job.yaml:10: data.packing",
        "job.yaml:11: data.learning_rate",
        "job.yaml:13: train.learning_rte",
        "job.yaml:14: train.max_steps",
        "job.yaml:16: train.warmup_steps",
        "job.yaml:17: train.weight_decay",
        "job.yaml:18: train.schedule",
        "job.yaml:19: train.zero",
    ]


ONE_ERROR = [
    # (line to put into `train`, what is said of it)
    ("learning_rte: 1e-5", "train.learning_rte: unknown key; did you mean 'learning_rate'?"),
    ("lr: 1e-5", "train.lr: unknown key; dolphin calls it 'train.learning_rate'"),
    ("packing: true", "train.packing: unknown key here; it belongs under data"),
    ("accelerator: L40S", "train.accelerator: unknown key; did you mean 'resources.accelerators'?"),
    ("evaluate_at_start: on", "train.evaluate_at_start: must be true or false, not 'on'; write true"),
    ("evaluate_at_start: 1", "train.evaluate_at_start: must be true or false, not 1; write true"),
    ("gradient_checkpointing: on", "train.gradient_checkpointing: must be true or false or auto or a group of settings, not 'on'"),
    ("gradient_checkpointing: {every: 0}", "train.gradient_checkpointing.every: must be 1 or more, not 0"),
    ("micro_batch: '2'", "train.micro_batch: must be a whole number, not '2'; write 2 without quotes or separators"),
    ("micro_batch: 1_0", "train.micro_batch: must be a whole number, not '1_0'; write 10 without quotes or separators"),
    ("micro_batch: 0", "train.micro_batch: must be 1 or more, not 0"),
    ("seed: 4.0", "train.seed: must be a whole number, not 4.0; write 4"),
    ("seed: true", "train.seed: must be a whole number, not true"),
    ("learning_rate: .inf", "train.learning_rate: must be a finite number"),
    ("betas: [0.9]", "train.betas[1]: is missing; add it"),
    ("betas: 0.9", "train.betas: must be a list, not 0.9; write [0.9]"),
    ("evaluate_every: sometimes", "train.evaluate_every: must be a whole number or one of 'epoch','never' or a group of settings, not 'sometimes'"),
    ("unfrozen: model.norm", "train.unfrozen: must be a list or a group of settings, not 'model.norm'"),
    ("unfrozen: []", "train.unfrozen: is an empty list: nothing would be trained; remove it to train all"),
    ("unfrozen: ['((']", "train.unfrozen[0]: '((' is no regular expression: missing ), unterminated subpattern at position 1; correct it"),
    ("unfrozen: [layers.2.]", "train.unfrozen[0]: 'layers.2.' matches no parameter (the model has layers 0-1); 'dolphin spectrum names' lists them"),
    ("unfrozen: {spectrum: {snr: no.json}}", "train.unfrozen.spectrum.snr: no such file or folder: no.json; `dolphin spectrum scan MODEL` writes it"),
    ("warmup_steps: 1\n  warmup_ratio: 0.1", "train.warmup_ratio: contradicts train.warmup_steps: both set the warm-up; remove one"),
    ("max_steps: 3\n  epochs: 1", "train.max_steps: contradicts train.epochs: both set the length; remove one"),
    ("accumulation: 4", "train.accumulation: contradicts train.global_batch: each decides the other; remove one"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "said"), ONE_ERROR, ids=[line.split(":")[0] + str(i) for i, (line, _) in enumerate(ONE_ERROR)]
)
def test_each_kind_of_error_says_what_to_do(folder: Path, line: str, said: str) -> None:
    found = complaints(folder, GOOD + f"  {line}\n")
    assert len(found) == 1, found
    assert found[0].partition(": ")[2].replace("'epoch' or 'never'", "'epoch','never'") == said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "job.yaml:1: is empty; `dolphin init` writes one to start from"),
        (b"# only a comment\n", "job.yaml:1: is empty; `dolphin init` writes one to start from"),
        (b"- a\n- b\n", "job.yaml:1: holds a list; a job is lines of `key: value`"),
        (b"name: [a\n", "job.yaml:2: is not YAML: did not find expected ',' or ']', while parsing a flow sequence; correct this line"),
        (b"name: a: b\n", "job.yaml:1: is not YAML: mapping values are not allowed in this context (a colon in a value needs quotes, or the indentation is off); correct this line"),
        (b"name: \xff\n", "job.yaml:1: is not UTF-8 text (byte 6); save it as UTF-8"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_job_at_all(folder: Path, content: bytes, said: str) -> None:
    path = folder / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecErrors) as caught:
        load_job(path)
    assert str(caught.value).replace(f"{folder}/", "") == said


def test_a_missing_file_and_a_folder_are_told_apart(folder: Path) -> None:
    for path, said in ((folder / "gone.yaml", "no such file"), (folder, "is a folder")):
        with pytest.raises(SpecErrors, match=said):
            load_job(path)


def test_a_duplicate_key_names_both_lines(folder: Path) -> None:
    assert complaints(folder, GOOD + "  seed: 1\n  seed: 2\n") == [
        "job.yaml:10: train.seed: duplicate key: also on line 9; keep one of them"
    ]


def test_an_empty_group_is_its_defaults_but_an_empty_setting_is_not_ignored(folder: Path) -> None:
    (folder / "job.yaml").write_text(GOOD + "checkpoint:\nenv:\nsecrets:\n")
    assert load_job(folder / "job.yaml").checkpoint.keep == 2
    assert complaints(folder, GOOD + "  unfrozen:\n") == [
        "job.yaml:9: train.unfrozen: has no value; give one, or remove the line"
    ]


class TestSecretsNeverReachAMessage:
    VALUE = "hf_abcdefghijklmnopqrstuvwxyz012345"

    @pytest.mark.parametrize(
        "line",
        ["secrets: [HF_TOKEN={}]", "secrets: ['{}']", "secrets: {{HF_TOKEN: {}}}", "secrets: {}", "env: {{HF_TOKEN: {}}}",
         "env: {{HARMLESS: {}}}", "env: [{}]", "env: {}", "env: {{A: [{}]}}"],
    )  # fmt: skip
    def test_in_a_file(self, folder: Path, line: str) -> None:
        found = complaints(folder, GOOD + line.format(self.VALUE) + "\n")
        assert found
        assert self.VALUE not in "\n".join(found)

    def test_on_the_command_line(self, folder: Path) -> None:
        found = complaints(folder, GOOD, f"env.HF_TOKEN={self.VALUE}")
        assert found == [
            "--set env.HF_TOKEN: looks like a secret, which must not stand in a job: "
            "write `secrets: [HF_TOKEN]` and set its value in your shell"
        ]

    def test_what_only_resembles_a_secret_is_taken(self, folder: Path) -> None:
        (folder / "job.yaml").write_text(
            GOOD + "env: {TOKENIZERS_PARALLELISM: 'false', MONKEY: a}\nsecrets: [HF_TOKEN]\n"
        )
        job = load_job(folder / "job.yaml")
        assert job.env == {"TOKENIZERS_PARALLELISM": "false", "MONKEY": "a"}


class TestOverrides:
    def test_they_apply_before_validation_and_may_index_lists(self, folder: Path) -> None:
        (folder / "job.yaml").write_text(GOOD)
        job = load_job(
            folder / "job.yaml",
            [
                "train.learning_rate=5e-6",
                "resources.accelerators=L40S:8",
                "data.sources[0].split=test",
                "train.unfrozen=[norm]",
            ],
        )
        assert job.train.learning_rate == 5e-6
        assert job.resources.gpus_per_node == 8
        assert job.data.sources[0].split == "test"
        assert job.train.unfrozen == ("norm",)

    def test_one_takes_the_place_of_its_rival_in_the_file(self, folder: Path) -> None:
        (folder / "job.yaml").write_text(GOOD + "  epochs: 3\n")
        assert load_job(folder / "job.yaml", ["train.max_steps=20"]).train.max_steps == 20

    def test_errors_are_located_at_the_command_line(self, folder: Path) -> None:
        assert complaints(folder, GOOD, "train.lerning_rate=1", "nothing", "data.sources.7.path=x", "train.micro_batch=[") == [
            "--set nothing: write it as key=value, for example train.learning_rate=1e-5",
            "--set data.sources[7].path: there are 1 entries; the first is 0",
            "--set train.micro_batch: is not YAML: did not find expected node content, while parsing a flow node; correct this line",
            "--set train.lerning_rate: unknown key; did you mean 'learning_rate'?",
        ]  # fmt: skip

    def test_rivals_both_on_the_command_line_still_contradict(self, folder: Path) -> None:
        found = complaints(folder, GOOD, "train.max_steps=3", "train.epochs=2")
        assert found == ["--set train.max_steps: contradicts train.epochs: both set the length; remove one"]


@pytest.mark.parametrize(
    ("resources", "train", "said"),
    [
        ("accelerators: L40S:8", "global_batch: 12", "train.global_batch: 12 does not divide into micro batches of 1 on 8 ranks (the ranks of resources); take 8 or 16, or change train.micro_batch"),
        ("accelerators: L40S:8", "global_batch: 4", "train.global_batch: 4 does not divide into micro batches of 1 on 8 ranks (the ranks of resources); take 8, or change train.micro_batch"),
        ("spot: never", "accumulation: 4", "train.accumulation: says no batch without a number of ranks: state resources.accelerators or resources.ranks_per_node, or train.global_batch"),
        ("accelerators: 8xL40S", "global_batch: 8", "resources.accelerators: does not have the right form, not '8xL40S': GPUs of a node as NAME:COUNT, for example L40S:8; a name alone is one. Not given: no GPU."),
        ("{accelerators: L40S:2, ranks_per_node: 4}", "global_batch: 8", "resources.ranks_per_node: 4 ranks contradict resources.accelerators L40S:2: each rank needs a GPU of its own"),
        ("num_nodes: 2", "global_batch: 8", "resources.num_nodes: 2 nodes, but no checkpoint.store: nodes share no disk; name a bucket there, or a folder that they share"),
        ("{container: none, image: x}", "global_batch: 8", "resources.image: contradicts resources.container none: nothing would run the image; remove one"),
    ],
)  # fmt: skip
def test_machines_and_settings_that_contradict(folder: Path, resources: str, train: str, said: str) -> None:
    body = f"resources: {resources}\n" if resources.startswith("{") else f"resources:\n  {resources}\n"
    found = complaints(folder, GOOD.replace("global_batch: 8", train) + body)
    assert [line.partition(": ")[2] for line in found] == [said]


def test_online_tracking_without_its_key_is_found_before_the_launch(folder: Path) -> None:
    body = GOOD + "track: {wandb: {project: tide}}\n"
    assert complaints(folder, body) == [
        "job.yaml:9: track.wandb: needs WANDB_API_KEY: add it to `secrets`, or set track.wandb.mode to offline"
    ]
    (folder / "job.yaml").write_text(body + "secrets: [WANDB_API_KEY]\n")
    assert load_job(folder / "job.yaml").secrets == ("WANDB_API_KEY",)


def test_what_is_asked_of_the_model_is_known_to_fail_before_anything_is_paid(folder: Path) -> None:
    body = GOOD.replace("train:", "train:\n  adapter: {type: lora}")
    told = "\n".join(
        complaints(folder, body + "push: {repo: my-org/x}\nexport: {gguf: [f16]}\nevaluate: {tasks: [gsm8k]}\n")
    )
    assert "push: needs a token of the hub that may write: add HF_TOKEN to `secrets`" in told
    assert "export.gguf: needs a whole model, and train.adapter leaves an adapter" in told
    assert "evaluate.tasks: need a whole model" in told
    (told,) = complaints(folder, GOOD + "evaluate: {tasks: [gone.yaml, gsm8k]}\n")
    assert "evaluate.tasks[0]: no such file: gone.yaml" in told
    (folder / "mine.yaml").write_text("task: mine\n")
    (folder / "job.yaml").write_text(GOOD + "evaluate: {tasks: [mine.yaml, gsm8k]}\n")
    assert load_job(folder / "job.yaml").evaluate.tasks == (str(folder / "mine.yaml"), "gsm8k")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("format: sharegtp", "format: no format is called 'sharegtp'; did you mean 'sharegpt'?"),
        ("fields: {promt: a, response: b}", "fields: `fields` knows messages, prompt, response, system, text, not promt"),
        ("files: [a.jsonl]", "files: chooses files of a hub dataset (hf://owner/name); name other files in `path`, as a file or a pattern"),
        ("filter: score > ", "filter: 'score >' is no expression: invalid syntax; correct it"),
        ("format: text\n      fields: {text: body}", "format: contradicts `fields` of the same source: both say where the turns are; remove one"),
    ],
)  # fmt: skip
def test_a_source_that_the_trainer_would_refuse_is_refused_before_the_launch(
    folder: Path, line: str, said: str
) -> None:
    found = complaints(folder, GOOD.replace("path: rows.jsonl", f"path: rows.jsonl\n      {line}"))
    assert [text.partition("data.sources[0].")[2] for text in found] == [said]


def test_a_tied_head_is_hit_by_its_own_name(folder: Path) -> None:
    (folder / "job.yaml").write_text(GOOD + "  unfrozen: [^lm_head.weight$, self_attn.rotary_emb, layers.1.mlp]\n")
    assert load_job(folder / "job.yaml").train.unfrozen is not None


def test_a_model_folder_without_a_model_is_named(folder: Path) -> None:
    (folder / "hollow").mkdir()
    found = complaints(folder, GOOD.replace("base: tiny", "base: hollow"))
    assert found == ["job.yaml:3: model.base: the folder hollow has no config.json; name a model's folder"]


def test_a_single_word_is_a_list_of_one_where_that_is_plain() -> None:
    assert ResourcesSpec.model_validate({"infra": "aws", "regions": ["a", "b"]}).infra == ("aws",)


def test_the_specification_is_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        JobSpec.model_fields["resources"].get_default().spot = "never"
