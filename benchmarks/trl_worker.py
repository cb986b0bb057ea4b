"""TRL's NashMDTrainer or OnlineDPOTrainer for `beside_trl.py`: paced step by step over standard input and output.

    TRL_PYTHON benchmarks/trl_worker.py MODE '{"algorithm": ..., "model": ..., "reward_model": ..., ...}'

MODE is, for Nash-MD, `exact`, or `released` for TRL as it is, see `nash_md_trainer`; for online DPO `cached`, or
`defaults` with gradient checkpointing. The last argument is a `beside_trl.Setting`. Each line of standard input is a
number of optimizer steps; each is answered by one line of JSON with their seconds. The end of standard input ends the
training. Runs under a Python that has TRL and must not know Offbeat.
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


def nash_md_trainer(mode: str, full: bool) -> tuple[type, type]:
    """The trainer and its configuration; with `full`, every completion has the whole length.

    TRL 1.13.0 turns the mixture's key-value cache off where transformers 5 does not look: `generate` makes one all the
    same, both models write their keys and values into it, and what is sampled is no mixture of the two. The policy's
    own completions have their cache either way. `exact` samples from the mixture, without a cache.
    """
    from trl.experimental.nash_md import NashMDConfig, NashMDTrainer
    from trl.experimental.nash_md import nash_md_trainer as module

    class UncachedMixture(module.GeometricMixtureWrapper):
        def generate(self, *args: Any, generation_config: Any, **kwargs: Any) -> Any:
            uncached = copy.deepcopy(generation_config)
            uncached.use_cache = False
            return super().generate(*args, generation_config=uncached, **kwargs)

    class Sampled(NashMDTrainer):
        def _generate_completions(self, model: Any, prompts: Any) -> Any:
            outputs = super()._generate_completions(model, prompts)
            if full:
                widths = [output.shape[1] - prompts["input_ids"].shape[1] for output in outputs]
                _check(widths, self.args.max_new_tokens)
            return outputs

    if mode == "exact":
        module.GeometricMixtureWrapper = UncachedMixture
    return Sampled, NashMDConfig


def online_dpo_trainer(full: bool) -> tuple[type, type]:
    """The trainer and its configuration; with `full`, every completion has the whole length."""
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    class Sampled(OnlineDPOTrainer):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super()._generate(*args, **kwargs)
            if full:
                _check([outputs[2].shape[1]], self.args.max_new_tokens)
            return outputs

    return Sampled, OnlineDPOConfig


def _check(lengths: list[int], wanted: int) -> None:
    """Exit unless completions have exactly the length that is measured."""
    if any(length != wanted for length in lengths):
        raise SystemExit(f"completions of {lengths} tokens; {wanted} are wanted")


def main() -> None:
    mode, text = sys.argv[1:]
    setting = json.loads(text)
    # Answers alone on standard output: what libraries print goes to the log.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(setting["threads"])
    full = setting["mean_tokens"] is None
    if setting["algorithm"] == "nash_md":
        trainer_type, config_type = nash_md_trainer(mode, full)
        own = {"mixture_coef": [setting["mixture_beta"]], "beta": [setting["tau"]]}
    else:
        trainer_type, config_type = online_dpo_trainer(full)
        own = {"beta": [setting["beta"]]}
    # With a space at the end: online DPO's reward model reads prompt and completion joined as one text.
    prompts = ["".join(f"w{token} " for token in prompt) for prompt in setting["prompts"]]
    tokenizer = AutoTokenizer.from_pretrained(setting["model"])
    dtype = getattr(torch, setting["dtype"])
    with tempfile.TemporaryDirectory() as directory:
        config = config_type(
            output_dir=directory,
            per_device_train_batch_size=setting["completions"] // 2,
            max_new_tokens=setting["new_tokens"],
            max_length=len(setting["prompts"][0]) + setting["new_tokens"] + 1,
            temperature=1.0,
            learning_rate=setting["lr"],
            lr_scheduler_type="constant",
            max_steps=1_000_000,
            bf16=False,
            # Recomputing activations also switches off the KV cache of the policy's own completions.
            gradient_checkpointing=mode == "defaults",
            use_cpu=True,
            dataloader_drop_last=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
            **own,
        )
        trainer = trainer_type(
            model=AutoModelForCausalLM.from_pretrained(setting["model"], dtype=dtype),
            reward_funcs=AutoModelForSequenceClassification.from_pretrained(
                setting["reward_model"], num_labels=1, dtype=dtype
            ),
            args=config,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            callbacks=[Pacer(sys.stdin, answers)],
        )
        trainer.train()


if __name__ == "__main__":
    main()
