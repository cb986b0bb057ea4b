"""Where a run's processes live: placement on nodes, Ray actors and their wiring, and submission to a cluster.

`wiring.py` builds actors from the configuration; `ray_actors.py` adapts them to the protocols of `launch/run/`.
`submit.py` and `ray_job.py` send a whole run elsewhere and must not know what it does.
"""
