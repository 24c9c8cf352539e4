from .backbone import create_backbone as create_backbone
from .errors import MtpeftError as MtpeftError
from .hosts import adapt as adapt
from .hosts import head as head
from .hosts import load as load

__version__: str
