from .backbone import create_backbone as create_backbone
from .errors import MtpeftError as MtpeftError
from .peft.adapt import adapt as adapt
from .peft.adapt import load as load
from .peft.heads import head as head

__version__: str
