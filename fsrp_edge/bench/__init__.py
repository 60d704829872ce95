"""Latency on devices: statistics, the agent, where it runs."""
