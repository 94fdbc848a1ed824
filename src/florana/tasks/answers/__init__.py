"""Whether an answer that a model wrote is right: one kind of answer, one file."""
