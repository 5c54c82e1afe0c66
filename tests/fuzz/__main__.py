"""`python -m tests.fuzz [TARGET ...]`: atheris over each target, its share of SECONDS (600); the corpus is in tests/corpus/fuzz.

What was interesting goes to `build/fuzz/TARGET`; KEEP=1 adds the smallest set of it to the committed corpus. A defect ends
its target's run, with the input that shows it in `build/fuzz/TARGET-crash-*`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "tests" / "corpus" / "fuzz"
WORK = ROOT / "build" / "fuzz"


def run_one(name: str, words: list[str]) -> None:
    """In a process of its own: libFuzzer does not come back."""
    import atheris

    with atheris.instrument_imports(include=["clawproxy", "clawproxy_auth"]):
        from tests.fuzz.targets import timed
    again = f"{sys.executable} -m tests.fuzz --one {name}"  # with which libFuzzer calls itself to merge
    atheris.Setup([again, *words], lambda data: timed(name, data))
    atheris.Fuzz()


def main(names: list[str]) -> int:
    from tests.fuzz.targets import TARGETS

    names = names or list(TARGETS)
    seconds = max(1, int(os.environ.get("SECONDS_EACH", "0")) or int(os.environ.get("SECONDS", "600")) // len(names))
    failed = []
    for name in names:
        work, kept = WORK / name, CORPUS / name
        for folder in (work, kept):
            folder.mkdir(parents=True, exist_ok=True)
        common = [
            "-timeout=20",
            "-rss_limit_mb=2048",
            f"-artifact_prefix={WORK}/{name}-",
            "-max_len=4096",
            "-verbosity=0",
            "-print_final_stats=1",
        ]
        print(f"{name}: {seconds} s", flush=True)
        words = [*common, f"-max_total_time={seconds}", str(work), str(kept)]
        if subprocess.run([sys.executable, "-m", "tests.fuzz", "--one", name, *words], cwd=ROOT, check=False).returncode != 0:
            failed.append(name)
        elif os.environ.get("KEEP"):
            words = [*common, "-merge=1", str(kept), str(work)]
            subprocess.run([sys.executable, "-m", "tests.fuzz", "--one", name, *words], cwd=ROOT, check=False)
    print(f"defects in: {', '.join(failed)}" if failed else "no defect", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        run_one(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main(sys.argv[1:]))
