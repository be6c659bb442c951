"""How long `nomoat --help` takes, and `import nomoat` beyond Python's own start: whole processes, in turns.

python benchmarks/startup.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from peers import record, spread

CASES = {
    "python": [sys.executable, "-c", "pass"],
    "import": [sys.executable, "-c", "import nomoat"],
    "help": [sys.executable, "-m", "nomoat.cli", "--help"],
    "runs": [sys.executable, "-m", "nomoat.cli", "runs"],
    "torch": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds + 1):
        for name, command in CASES.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(time.perf_counter() - start)
    kept = {name: values[1:] for name, values in seconds.items()}  # the first of each warms the file cache
    beyond = [whole - bare for whole, bare in zip(kept["import"], kept["python"], strict=True)]
    figures = {f"{name}_seconds": spread(values) for name, values in kept.items()}
    record("startup", {**figures, "import_beyond_python_seconds": spread(beyond)})


if __name__ == "__main__":
    main()
