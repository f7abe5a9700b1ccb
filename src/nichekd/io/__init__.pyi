from ._paired import paired as paired
