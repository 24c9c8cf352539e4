"""Adapt one frozen vision backbone to many tasks with small PEFT modules, together or one after another.

The names stand in ``__init__.pyi``. Each is imported when first used: importing mtpeft imports no torch, touches no
network and changes no global state.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
