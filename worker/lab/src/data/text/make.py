"""Writes shakespeare.txt.zst: the beginning of a collection of Shakespeare's plays (public domain).

Usage: python make.py INPUT, with INPUT the file data/tinyshakespeare/input.txt of the repository
karpathy/char-rnn. Keeps whole speeches up to LENGTH bytes; needs the command `zstd`.
"""

import pathlib
import subprocess
import sys

LENGTH = 460_000

text = pathlib.Path(sys.argv[1]).read_bytes()
assert all(byte < 128 for byte in text), "expected ASCII"
end = text.rfind(b"\n\n", 0, LENGTH) + 1
target = pathlib.Path(__file__).with_name("shakespeare.txt.zst")
subprocess.run(["zstd", "-19", "-q", "-f", "-o", target, "-"], input=text[:end], check=True)
print(end, "bytes,", target.stat().st_size, "compressed")
