"""Sends a whole run elsewhere: to a Ray cluster, Slurm, docker compose or Kubernetes. Must not know what a run does.

Each launcher has a planner, a pure function whose result `--dry-run` prints, and a runner that starts exactly that.
"""
