"""`make bench`: what takes minutes and needs nothing but this checkout."""

import subprocess
import sys

SELF_CONTAINED = ("benchmarks.scoring",)

if __name__ == "__main__":
    for module in SELF_CONTAINED:
        print(f"== {module}", flush=True)
        subprocess.run([sys.executable, "-m", module], check=True)
