"""What the mechanisms are called. Imports nothing, so that it can be read on any system."""

REAPER, NAMESPACES, NOBODY, COUNT, LANDLOCK, SECCOMP = (
    "reaper",
    "namespaces",
    "nobody",
    "user namespace",
    "landlock",
    "seccomp",
)
