"""Generated content for mkdocs: the list of claims, the command line's help, and equations."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from pathlib import Path

from griffe_math import wrapped
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PICTURE = re.compile(r"\]\((?:\.\./)+((?:experiments/figures|benchmarks/results)/[^)]+\.png)\)")
OUTSIDE = re.compile(r"\[([^]]+)\]\((?:\.\./)+(?:experiments|benchmarks|CITATION|CONTRIBUTING)[^)]*\)")
# GitHub's two forms of a formula: a fence, here with its indent, or inline.
FORMULA = re.compile(r"^( *)```math\n(.*?)^\1```$|\$`([^`]+)`\$", re.MULTILINE | re.DOTALL)


def _claims() -> str:
    from rmtjax.claims import CLAIMS
    from rmtjax.report.mathml import mathml, spoken

    parts = []
    for claim in CLAIMS.values():
        equation = mathml(claim.equation) or spoken(claim.equation)
        meanings = "; ".join(f"`{n}`" + (f" {p.meaning}" if p.meaning != n else "") for n, p in claim.params.items())
        samplers = ", ".join(f"`{name}`" for name in claim.samplers)
        parts.append(
            f"## {claim.name}\n\n{claim.source}\n\n<div class='claim'>{equation}</div>\n\n"
            f"Parameters: {meanings}. Samplers: {samplers}.\n"
        )
    return "\n".join(parts)


def _readme() -> str:
    """Return the README as a page of docs/, with links relative to docs/."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((experiments|benchmarks|CITATION|CONTRIBUTING)", r"](../\1", text)
    text = re.sub(r"\[([^]]+)\]\(docs/notebooks/[^)]*\)", r"`\1`", text)
    return text.replace("](docs/", "](")


def _help() -> str:
    commands = ["", "verify", "sweep", "report", "merge", "transfer", "finetune", "intruders scan", "intruders mitigate",
                "claims", "doctor"]  # fmt: skip
    parts = []
    for command in commands:
        code = f"import sys; sys.argv = ['rmtjax', *{command.split()}, '--help']; from rmtjax.cli import main; main()"
        environment = {"PATH": "", "NO_COLOR": "1", "COLUMNS": "84", "TERMINAL_WIDTH": "84", "LANG": "C.UTF-8"}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, cwd=ROOT
        )
        parts.append(f"## {f'rmtjax {command}'.strip()}\n\n```text\n{done.stdout.strip()}\n```\n")
    return "\n".join(parts)


def on_files(files, config):
    """Add the pictures of experiments and benchmarks that pages show."""
    texts = [_readme(), *(page.content_string for page in files.documentation_pages())]
    for name in sorted({name for text in texts for name in PICTURE.findall(text)}):
        file = File.generated(config, f"figures/{Path(name).name}", abs_src_path=str(ROOT / name))
        files.append(file)
    return files


def _formula(match: re.Match) -> str:
    indent, block, inline = match.groups()
    return wrapped("math", inline) if inline else indent + wrapped("math-block", block)


def on_page_markdown(markdown: str, page, **_) -> str:
    """Fill in generated parts; a link out of docs/, valid in the repository, becomes plain text here.

    Formulas travel on as those of docstrings do.
    """
    marks = (("<!-- readme -->", _readme), ("<!-- claims -->", _claims), ("<!-- command line -->", _help))
    for mark, made in marks:
        if mark in markdown:
            markdown = markdown.replace(mark, made())
    up = "../" * page.file.src_uri.count("/")
    markdown = PICTURE.sub(lambda match: f"]({up}figures/{Path(match[1]).name})", markdown)
    markdown = OUTSIDE.sub(r"`\1`", markdown)
    return FORMULA.sub(_formula, markdown)


def on_page_content(html: str, page, **_) -> str:
    """Render the equations of pages and docstrings (docs/griffe_math.py)."""
    from rmtjax.report.mathml import mathml

    def written(match: re.Match) -> str:
        latex = base64.b64decode(match[2]).decode()
        made = mathml(latex)
        if made is None:
            raise PluginError(f"{page.file.src_uri}: cannot read the formula {latex}")
        return made if match[1] else made.replace('display="block"', 'display="inline"', 1)

    return re.sub(r"<code>math(-block)?:([A-Za-z0-9+/=]+)</code>", written, html)
