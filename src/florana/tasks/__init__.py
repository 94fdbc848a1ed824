"""What is learnt: labelled text, where it comes from, and how it is spread over clients."""
