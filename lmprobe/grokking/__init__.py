"""How training makes a behaviour easy or hard to remove: small transformers that learn modular arithmetic."""
