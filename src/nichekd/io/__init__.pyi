from ._paired import paired as paired
from ._slide import slide as slide
from ._visium_hd import visium_hd as visium_hd
from ._write_geojson import write_geojson as write_geojson
from ._xenium import xenium as xenium
