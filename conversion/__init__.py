"""PyTorch and Hugging Face checkpoints <-> flat parameter dicts: one table for each network, read
in both directions."""
