"""Whole runs: set-up, rounds, and the run folder that they leave behind."""
