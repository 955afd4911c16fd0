"""Corpora: speech with speaker, session and text, opened by name."""
