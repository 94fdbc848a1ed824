"""What runs in the sandbox's own processes: a small interpreter with the standard library and this folder only.

Nothing here may import the rest of florana, which is neither on the path of that interpreter nor wanted there.
"""
