"""The base model with LoRA, the local training loop, and evaluation."""

import logging
import sys

from florana.garbage import importing

# PEFT imports bitsandbytes wherever that is installed, and it tells of optional kernels that are not.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def load_libraries(*, bitsandbytes: bool = True) -> None:
    """Import PEFT and what it needs, seconds of work, before it is asked for.

    Args:
        bitsandbytes: whether PEFT may import this package, which takes longer than all the rest of it. Without, this process
            can load no base model in 8 or 4 bits from then on. Nothing is changed where PEFT is there already.
    """
    if not bitsandbytes and "peft" not in sys.modules:
        sys.modules.setdefault("bitsandbytes", None)  # type: ignore[arg-type]  # Python's way to say: it is not here
    with importing("peft"):
        import peft  # noqa: F401
