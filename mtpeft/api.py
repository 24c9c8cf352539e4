"""What plugins import: the contracts of everything that can be registered, and nothing else of mtpeft.

The names stand in ``api.pyi``. Each is imported when first used, so importing this module imports no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__package__, __file__)
