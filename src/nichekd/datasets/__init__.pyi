from ._pancreas import pancreas as pancreas
from ._simulate import simulate as simulate
