"""TRL's NashMDTrainer for `trl_nash_md.py`: paced step by step over standard input and output.

    TRL_PYTHON benchmarks/trl_worker.py MODE '{"model": ..., "reward_model": ..., "prompts": ..., ...}'

MODE is `exact`, or `released` for TRL as it is; see `UncachedMixture`. The last argument is a `trl_nash_md.Setting`.
Each line of standard input is a number of optimizer steps; each is answered by one line of JSON with their seconds. The
end of standard input ends the training. Runs under a Python that has TRL and must not know Offbeat.
"""

from __future__ import annotations

import copy
import json
import os
import sys
import tempfile
import time
from typing import Any, TextIO

os.environ |= {"TRL_EXPERIMENTAL_SILENCE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}

import accelerate
import torch
import transformers
import trl
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.nash_md import NashMDConfig, NashMDTrainer, nash_md_trainer


class Pacer(TrainerCallback):
    """Lets the trainer take as many steps as each order asks for, and times them."""

    def __init__(self, orders: TextIO, answers: TextIO) -> None:
        self._orders, self._answers = orders, answers
        self._left = 0
        self._seconds: list[float] = []
        self._since = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._answer({m.__name__: m.__version__ for m in (trl, accelerate, transformers, torch)})
        self._await_order(control)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self._seconds.append(now - self._since)
        self._since = now
        self._left -= 1
        if self._left == 0:
            self._answer({"step_seconds": self._seconds})
            self._await_order(control)

    def _await_order(self, control: Any) -> None:
        order = self._orders.readline().strip()
        if not order:
            control.should_training_stop = True
            return
        self._left, self._seconds = int(order), []
        self._since = time.perf_counter()

    def _answer(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


class UncachedMixture(nash_md_trainer.GeometricMixtureWrapper):
    """Samples from the mixture.

    TRL 1.13.0 turns the key-value cache off where transformers 5 does not look: `generate` makes one all the same, both
    models write their keys and values into it, and what is sampled is no mixture of the two. The policy's own
    completions keep their cache.
    """

    def generate(self, *args: Any, generation_config: Any, **kwargs: Any) -> Any:
        uncached = copy.deepcopy(generation_config)
        uncached.use_cache = False
        return super().generate(*args, generation_config=uncached, **kwargs)


class Sampled(NashMDTrainer):
    """Checks that completions have exactly the length that is measured; otherwise TRL's own."""

    def _generate_completions(self, model: Any, prompts: Any) -> Any:
        outputs = super()._generate_completions(model, prompts)
        wanted = prompts["input_ids"].shape[1] + self.args.max_new_tokens
        if any(output.shape[1] != wanted for output in outputs):
            raise SystemExit(f"completions of {[tuple(o.shape) for o in outputs]}; {wanted} tokens are wanted")
        return outputs


def main() -> None:
    mode, text = sys.argv[1:]
    setting = json.loads(text)
    if mode == "exact":
        nash_md_trainer.GeometricMixtureWrapper = UncachedMixture
    # Answers alone on standard output: what libraries print goes to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(setting["threads"])
    prompts = [" ".join(f"w{token}" for token in prompt) for prompt in setting["prompts"]]
    tokenizer = AutoTokenizer.from_pretrained(setting["model"])
    with tempfile.TemporaryDirectory() as directory:
        config = NashMDConfig(
            output_dir=directory,
            per_device_train_batch_size=setting["completions"],
            max_new_tokens=setting["new_tokens"],
            max_length=len(setting["prompts"][0]) + setting["new_tokens"] + 1,
            temperature=1.0,
            mixture_coef=[setting["mixture_beta"]],
            beta=[setting["tau"]],
            learning_rate=setting["lr"],
            lr_scheduler_type="constant",
            max_steps=1_000_000,
            bf16=False,
            # Recomputing activations would also switch off the KV cache of the policy's own completions.
            gradient_checkpointing=False,
            use_cpu=True,
            dataloader_drop_last=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
        )
        trainer = Sampled(
            model=AutoModelForCausalLM.from_pretrained(setting["model"], dtype=torch.float32),
            reward_funcs=AutoModelForSequenceClassification.from_pretrained(
                setting["reward_model"], num_labels=1, dtype=torch.float32
            ),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            callbacks=[Pacer(sys.stdin, answers)],
        )
        trainer.train()


if __name__ == "__main__":
    main()
