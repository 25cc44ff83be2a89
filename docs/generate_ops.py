"""Write docs/ops.md from the tables of the code: `python docs/generate_ops.py`. A test holds it current."""

from pathlib import Path

from bi_compile.supported import as_markdown

PAGE = Path(__file__).resolve().parent / "ops.md"

if __name__ == "__main__":
    PAGE.write_text(as_markdown())
