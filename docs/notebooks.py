"""Run the notebooks of docs/notebooks, keep their small outputs, and write the page of the site for each.

    python docs/notebooks.py [NAME …]

Needs `pip install "tdsm[docs,report]"`. What a cell says on stderr, and pages to play with, are not kept.
"""

import base64
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent / "notebooks"


def main() -> None:
    """Run the notebooks that are named, or all of them, and write each and its page."""
    for path in [FOLDER / f"{name}.ipynb" for name in sys.argv[1:]] or sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as folder:
            execute(notebook, Path(folder))
        without_large_outputs(notebook)
        nbformat.write(notebook, path)
        text, pictures = page(notebook, path.stem)
        for old in FOLDER.glob(f"{path.stem}-*.png"):
            old.unlink()
        for name, picture in pictures.items():
            (FOLDER / name).write_bytes(picture)
        path.with_suffix(".md").write_text(text)
        print(path)


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run every cell in a folder; raise `CellExecutionError` where one fails."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    client = NotebookClient(notebook, timeout=600, record_timing=False, resources={"metadata": {"path": str(folder)}})
    client.execute(env=environment)


def without_large_outputs(notebook: NotebookNode) -> None:
    """Keep what a cell printed, in one piece, and its pictures."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            text = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
            said = [nbformat.v4.new_output("stream", text=text)] if text else []
            cell.outputs = said + [output for output in cell.outputs if _is_picture(output)]


def page(notebook: NotebookNode, name: str) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its pictures by file name."""
    parts, pictures = [], dict[str, bytes]()
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source.replace(".ipynb)", ".md)"))
            continue
        is_shell = cell.source.startswith("%%bash\n")
        parts.append(f"```{'sh' if is_shell else 'python'}\n{cell.source.removeprefix('%%bash' + chr(10))}\n```")
        for output in cell.outputs:
            if output.output_type == "stream":
                parts.append(f"```text\n{output.text.rstrip()}\n```")
            else:
                file = f"{name}-{len(pictures) + 1}.png"
                pictures[file] = base64.b64decode(output.data["image/png"])
                parts.append(f"![Printed by the cell above]({file})")
    title, *rest = parts
    return "\n\n".join(
        [title, f"*This page is [a notebook]({name}.ipynb), to run and change.*", *rest]
    ) + "\n", pictures


def _is_picture(output: NotebookNode) -> bool:
    return "image/png" in output.get("data", {}) and "text/html" not in output.data


if __name__ == "__main__":
    main()
