"""The base model with LoRA, the local training loop, and evaluation."""

import logging

from florana.garbage import importing

# PEFT imports bitsandbytes wherever that is installed, and it tells of optional kernels that are not.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def load_libraries() -> None:
    """Import PEFT and what it needs, seconds of work, before it is asked for."""
    with importing("peft"):
        import peft  # noqa: F401
