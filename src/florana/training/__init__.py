"""The base model with LoRA, the local training loop, and evaluation."""
