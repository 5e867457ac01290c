"""The description for a package index: README.md, with links to its neighbours that work from there too."""

import re
from pathlib import Path

from setuptools import setup

REPOSITORY = "https://github.com/mla-numba/mla_numba"


def absolute_links(readme: str) -> str:
    """The page with links to files of the repository, and pictures from it, by their full address."""
    readme = re.sub(r"(!\[[^]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/raw/main/", readme)
    return re.sub(r"((?<!!)\[[^]]*\]\()(?!https?:|#)", rf"\1{REPOSITORY}/blob/main/", readme)


if __name__ == "__main__":
    setup(
        long_description=absolute_links((Path(__file__).parent / "README.md").read_text(encoding="utf-8")),
        long_description_content_type="text/markdown",
    )
