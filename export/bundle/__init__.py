"""What an app needs beside a file: names of the classes, the exact preprocessing, and an example of how to run it."""

from __future__ import annotations

from .write import Bundle, class_names, write

__all__ = ["Bundle", "class_names", "write"]
