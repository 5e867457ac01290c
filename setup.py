"""The description for a package index: README.md, with links to its neighbours that work from there too."""

import re
from pathlib import Path

from setuptools import setup

REPOSITORY = "https://github.com/mla-numba/mla_numba"
OF_REPOSITORY = r"(?!https?:|mailto:|#)"  # at the beginning of a link: it leads to a file there
PICTURES = (r"(!\[[^]]*\]\()", r"(<(?:img|source)\b[^>]*?\bsrc(?:set)?=\")")
PAGES = (r"((?<!!)\[[^]]*\]\()", r"(<a\b[^>]*?\bhref=\")", r"(?m)(^\[[^]]+\]: )")


def absolute_links(readme: str) -> str:
    """The page with links to files of the repository, and pictures from it, by their full address."""
    for kind, patterns in (("raw", PICTURES), ("blob", PAGES)):
        for pattern in patterns:
            readme = re.sub(pattern + OF_REPOSITORY, rf"\1{REPOSITORY}/{kind}/main/", readme)
    return readme


if __name__ == "__main__":
    setup(
        long_description=absolute_links((Path(__file__).parent / "README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
    )
