"""The base model with LoRA, the local training loop, and evaluation."""

import logging

# PEFT imports bitsandbytes wherever that is installed, and it tells of optional kernels that are not.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
