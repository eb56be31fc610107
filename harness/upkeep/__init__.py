"""Commands of maintainers that rewrite this repository's own files."""
