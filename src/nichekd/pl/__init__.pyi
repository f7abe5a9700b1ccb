from ._agreement import agreement as agreement
from ._composition import composition as composition
from ._crops import crops as crops
from ._neighborhood import neighborhood as neighborhood
from ._niches import niches as niches
from ._split import split as split
from ._training import training as training
from ._uncertainty import uncertainty as uncertainty
