"""Jobs on PEFT adapter folders as they are found in the field: nothing is trained, memory is that of one module."""
