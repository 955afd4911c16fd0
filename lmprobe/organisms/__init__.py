"""Organisms: tiny trained language models with planted, known behaviour."""
