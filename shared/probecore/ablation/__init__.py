"""Ablations on arrays: what was measured with and without a part, and what that shows."""
