"""`python -m fsrp_edge`, which is what `torchrun` starts."""

from fsrp_edge.cli import main

main()
