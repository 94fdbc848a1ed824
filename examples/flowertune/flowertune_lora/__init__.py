"""A causal language model, fine-tuned with LoRA on Flower."""
