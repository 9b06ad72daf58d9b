"""Print the versions of rmtjax's dependencies, for jobs that test with other versions: ``python -m tests.versions``."""

import platform
import re
from importlib.metadata import requires, version

names = [re.match(r"[\w.-]+", need)[0] for need in requires("rmtjax") if "extra ==" not in need]
print(f"Python {platform.python_version()},", ", ".join(f"{name} {version(name)}" for name in names))
