from . import datasets as datasets
from . import io as io
from . import models as models
from . import pl as pl
from . import pp as pp
from . import tl as tl
from ._settings import settings as settings
from ._version import __version__ as __version__
