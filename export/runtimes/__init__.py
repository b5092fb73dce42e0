"""One target a file: what writes a model for a runtime, runs what was written, and reads it back."""
