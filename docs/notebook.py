"""Makes docs/quickstart.ipynb of docs/quickstart_cells.py: `python docs/notebook.py` runs every cell and keeps what it shows.

nbclient runs the cells in a real kernel (ipykernel), as a reader's own notebook would. The source is a plain program whose
cells begin with `# %%`, in the form that editors and jupytext know, so that it is read, linted and tested like any other.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SOURCE, NOTEBOOK = HERE / "quickstart_cells.py", HERE / "quickstart.ipynb"


def cells(text: str) -> list[tuple[str, str]]:
    """(kind, text) of each cell; a cell of prose has its comment signs taken off."""
    found = []
    for head, body in re.findall(r"^# %%([^\n]*)\n(.*?)(?=^# %%|\Z)", text, flags=re.MULTILINE | re.DOTALL):
        prose = "[markdown]" in head
        body = re.sub(r"^# ?", "", body, flags=re.MULTILINE) if prose else body
        found.append(("markdown" if prose else "code", body.strip()))
    return found


def notebook() -> Any:
    """The notebook, not yet run."""
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    made = [
        new_markdown_cell(text, id=f"cell-{k}") if kind == "markdown" else new_code_cell(text, id=f"cell-{k}")
        for k, (kind, text) in enumerate(cells(SOURCE.read_text(encoding="utf-8")))
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return new_notebook(cells=made, metadata=kernel)


def main() -> None:
    """Run the cells in a folder of their own, and write the notebook with what they showed."""
    import nbformat
    from nbclient import NotebookClient

    made = notebook()
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(made, timeout=300, resources={"metadata": {"path": folder}}).execute()
    for cell in made.cells:
        cell.metadata.pop("execution", None)  # when each cell ran
    made.metadata.pop("language_info", None)
    nbformat.write(made, NOTEBOOK)
    shown = sum(len(cell.get("outputs", [])) for cell in made.cells)
    print(
        f"{NOTEBOOK.name}: {len(made.cells)} cells, {shown} outputs, {NOTEBOOK.stat().st_size:,} bytes", file=sys.stderr
    )


if __name__ == "__main__":
    main()
