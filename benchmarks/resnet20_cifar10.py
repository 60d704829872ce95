"""The README's table: a published CIFAR-10 ResNet-20 compressed for a Raspberry Pi 4. Resumable.

python -m benchmarks.resnet20_cifar10 --checkpoint resnet20-cifar10.th --data cifar-10-batches-bin --out runs/resnet20
"""

import shutil
from pathlib import Path

from benchmarks.common import RESULTS, checkpoint_parser
from fsrp_edge.cli.console import show_progress
from fsrp_edge.pipeline.compress import compress
from fsrp_edge.pipeline.options import CompressOptions
from fsrp_edge.scoring.reconstruction import Reconstruction


def main() -> None:
    """Run `compress` with the criterion that keeps most, else with its defaults, and keep the report."""
    parser = checkpoint_parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/resnet20"))
    arguments = parser.parse_args()
    options = CompressOptions(
        checkpoint=arguments.checkpoint,
        data=arguments.data,
        target="raspberry-pi-4",
        criterion=Reconstruction(),
        out=arguments.out,
    )
    with show_progress():
        result = compress(options)
    kept = RESULTS / "resnet20_cifar10"
    kept.mkdir(parents=True, exist_ok=True)
    for name in ("report.json", "report.md", "plan.json"):
        shutil.copy(result.directory / name, kept / name)
    print((kept / "report.md").read_text())


if __name__ == "__main__":
    main()
