"""The same preparation as data_prepare.py by TRL's SFTTrainer: trl_prepare.py MODEL MESSAGES.jsonl [WORKERS]

Needs TRL in an environment of its own (`pip install torch trl`). Best-fit-decreasing packing at 8,192 tokens, loss on the
assistant's tokens through generation markers, every core. Time it from outside, as data_prepare.py.
"""

from __future__ import annotations

import os
import sys
import tempfile

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
)


def main() -> None:
    model, data = sys.argv[1:3]
    workers = int(sys.argv[3]) if len(sys.argv) > 3 else os.cpu_count()
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = CHATML
    with tempfile.TemporaryDirectory() as folder:
        rows = load_dataset("json", data_files=data, split="train", cache_dir=folder)
        settings = SFTConfig(
            output_dir=folder, packing=True, max_length=8192, assistant_only_loss=True, dataset_num_proc=workers,
            use_cpu=True, bf16=False, report_to=[],
        )  # fmt: skip
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(model), settings, train_dataset=rows, processing_class=tokenizer
        )
        packed = trainer.train_dataset
        print({"packed_sequences": len(packed), "tokens": sum(map(len, packed["input_ids"]))})


if __name__ == "__main__":
    main()
