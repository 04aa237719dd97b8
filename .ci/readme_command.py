"""Print the n-th shell block of README.md, so that CI runs what a newcomer copies."""

import pathlib
import re
import sys

text = pathlib.Path("README.md").read_text(encoding="utf-8")
blocks = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
print(blocks[int(sys.argv[1]) - 1].strip())
