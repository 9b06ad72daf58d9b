"""Prints the versions of the packages that rmtjax needs, for the jobs that test with others: ``python -m tests.versions``."""

import platform
import re
from importlib.metadata import requires, version

names = [re.match(r"[\w.-]+", need)[0] for need in requires("rmtjax") if "extra ==" not in need]
print(f"Python {platform.python_version()},", ", ".join(f"{name} {version(name)}" for name in names))
