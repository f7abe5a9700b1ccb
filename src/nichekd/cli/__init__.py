"""``nichekd`` on the command line: the functions' own words, one command a file."""

from nichekd.cli._app import app

__all__ = ["app"]
