"""Write `requirements.lock`: what setup.cfg asks for with its run-time extras, each package with its version and the hashes of
all its files, for every platform. `pip install --require-hashes -r requirements.lock` then installs that and nothing else.

`make lock` runs it. It holds no address of an index: where packages come from is the installer's setting.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXTRAS = ("control", "crypto", "tokenizers")
"""What may be installed beside a gateway that runs; not `dev`."""
HEADER = """# Made by `make lock` from setup.cfg; the gateway itself is not in it.
#   pip install --require-hashes -r requirements.lock && pip install --no-deps clawproxy
"""


def main() -> None:
    command = [Path(sys.executable).with_name("uv"), "pip", "compile", ROOT / "setup.cfg", "--universal", "--generate-hashes"]
    command += [
        "--python-version",
        "3.11",
        "--no-header",
        "--no-annotate",
        "--no-emit-index-url",
        "--no-emit-find-links",
        "--quiet",
    ]
    command += ["--upgrade", *(word for extra in EXTRAS for word in ("--extra", extra))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr)
    (ROOT / "requirements.lock").write_text(HEADER + done.stdout)


if __name__ == "__main__":
    main()
