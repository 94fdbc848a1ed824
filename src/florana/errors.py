"""The one family of errors that florana raises on purpose.

Every message says which client, which module, what came, what was expected and what to do.
The command line shows it without a traceback and exits with code 2.
"""

from __future__ import annotations


class FloranaError(Exception):
    """Root of every error that florana raises on purpose."""


class ConfigError(FloranaError):
    """A configuration, an option or a method name that cannot be used as it stands."""


class AdapterError(FloranaError):
    """An adapter whose files, shapes, dtypes or values cannot be used."""


class AggregationError(FloranaError):
    """Client updates that do not fit together, or a method that cannot combine them."""


class DataError(FloranaError):
    """Examples, labels or partitions that cannot be trained or evaluated on."""


class ModelError(FloranaError):
    """A base model that cannot be found, verified or adapted."""


class FederationError(FloranaError):
    """A round that cannot go on, for instance because too few clients replied."""


class RunError(FloranaError):
    """A run folder that cannot be written, resumed or read."""
