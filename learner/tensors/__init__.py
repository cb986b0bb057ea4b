"""Token sequences as padded tensors, log-probs of their tokens, and tokenised examples on disk.

Plain token lists come in; tensors and log-probs go to objectives and policies. Must not depend on ranks' communication,
losses or DeepSpeed.
"""
