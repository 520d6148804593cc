"""What starting costs: `import ffsdk` and `ff --help`, beside an interpreter that does nothing."""

from __future__ import annotations

import subprocess
import sys
import time

from bench.harness import ROOT, Row, Size, environment, interleave, row

WAYS = {
    "python -c pass": ["-c", "pass"],
    "import ffsdk": ["-c", "import ffsdk"],
    "import ffsdk, its client and worker": ["-c", "import ffsdk, ffsdk.client, ffsdk.worker"],
    "ff --help": ["-c", "import sys; sys.argv = ['ff', '--help']; from cli.main import main; main()"],
}


def took(arguments: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, env=environment(), cwd=ROOT)
    return (time.perf_counter() - began) * 1000


def run(size: Size) -> list[Row]:
    for arguments in WAYS.values():
        took(arguments)  # compiles what is not compiled yet
    found = interleave(size(11, 3), {name: lambda a=arguments: took(a) for name, arguments in WAYS.items()})
    return [row(name, samples, "ms") for name, samples in found.items()]
