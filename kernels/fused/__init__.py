"""Triton bodies of functional ops. Nothing here is imported before a candidate that needs it runs."""
