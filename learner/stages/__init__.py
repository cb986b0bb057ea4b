"""Training before the loop, on fixed data sets: supervised fine-tuning, DPO and preference models.

`launch/stages/` writes tokenised examples; each rank reads them, trains, and writes a model directory. Each stage
defines a model, a loss and data; `learner/training/trainer.py` takes the optimizer step. Must not depend on rollouts or
Ray.
"""
