"""PEFT's adapters, in memory and on disk, and nothing of PEFT itself.

``settings`` says what a config may hold, ``state_dict`` what settings and tensors mean together, ``folder`` trusts no
file and leaves no half of one.
"""

from __future__ import annotations

from florana.peft_io.folder import load_adapter as load_adapter
from florana.peft_io.folder import save_adapter as save_adapter
from florana.peft_io.state_dict import adapter_from_state_dict as adapter_from_state_dict
from florana.peft_io.state_dict import adapter_to_config as adapter_to_config
from florana.peft_io.state_dict import adapter_to_state_dict as adapter_to_state_dict

__all__ = [
    "adapter_from_state_dict",
    "adapter_to_config",
    "adapter_to_state_dict",
    "load_adapter",
    "save_adapter",
]
