"""LoRA adapters: their settings, and their tensors in peft's form. Read by learner and engines alike."""
