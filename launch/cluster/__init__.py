"""The processes of a run: placement on nodes, Ray actors and their wiring.

`wiring.py` builds actors from the configuration; `ray_actors.py` adapts them to the protocols of `launch/run/`.
`ray_job.py` talks to a job server, for `launch/submit/`, and must not know what a job does.
"""
