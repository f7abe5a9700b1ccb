"""Advice of the functions, in the words of the shell."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# what the functions' messages advise, and how it is said here
WORDS = {
    "nk.io.slide(path, mpp=...)": "--mpp",
    "nk.io.paired(adata, image, mpp=...), or affine= from pixels to µm": "--mpp",
    "nuclei=nk.pp.NucleusSettings(faint=0.2)": "nichekd segment --faint 0.2",
    "Name another by image_key=; nuclei": "Nuclei",
    "mpp=": "--mpp",
    "shapes=": "--nuclei",
    "method=": "--method ",
}


@contextmanager
def words_of_the_shell() -> Iterator[None]:
    """Name options, not arguments of Python, in what is said of bad input."""
    try:
        yield
    except (TypeError, ValueError) as err:
        if type(err) not in (TypeError, ValueError):  # of other libraries, which take more than a message
            raise
        message = str(err)
        for python, shell in WORDS.items():
            message = message.replace(python, shell)
        raise type(err)(message) from err
