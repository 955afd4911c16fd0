"""Codecs: one adapter per codec, opened by name through `registry`."""
