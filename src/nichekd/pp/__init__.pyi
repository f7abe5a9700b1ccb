from ._estimate_radius import estimate_radius as estimate_radius
from ._expression_features import expression_features as expression_features
from ._histology_features import histology_features as histology_features
from ._neighborhoods import neighborhoods as neighborhoods
from ._split import split as split
