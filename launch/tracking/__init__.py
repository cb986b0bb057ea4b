"""Trackers that get a run's figures beside its own directory: W&B, MLflow, Prometheus.

Each has a file of its own, which alone imports its package, and a thread of its own (`background.py`), so that none of
them can end or slow a run. `tracked.py` puts them behind the run's metrics.
"""
