"""PEFT's adapters, in memory and on disk, and nothing of PEFT itself.

``settings`` says what a config may hold, ``layouts`` how a pair lies in tensors, ``form`` what settings and tensors mean
together, ``state_dict`` does that in memory. ``folder`` trusts no file, reads a tensor at a time and leaves no half of a folder.
"""

from __future__ import annotations

from florana.peft_io.folder import AdapterFolder as AdapterFolder
from florana.peft_io.folder import load_adapter as load_adapter
from florana.peft_io.folder import open_adapter as open_adapter
from florana.peft_io.folder import save_adapter as save_adapter
from florana.peft_io.folder_writer import FolderWriter as FolderWriter
from florana.peft_io.limits import Limits as Limits
from florana.peft_io.state_dict import adapter_from_state_dict as adapter_from_state_dict
from florana.peft_io.state_dict import adapter_to_config as adapter_to_config
from florana.peft_io.state_dict import adapter_to_state_dict as adapter_to_state_dict

__all__ = [
    "AdapterFolder",
    "FolderWriter",
    "Limits",
    "adapter_from_state_dict",
    "adapter_to_config",
    "adapter_to_state_dict",
    "load_adapter",
    "open_adapter",
    "save_adapter",
]
