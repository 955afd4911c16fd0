"""Organisms: tiny trained language models with planted, known behaviour. `__init__.pyi` lists the names."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach_stub(__name__, __file__)
