"""Launching makes runs: configuration, command line, wiring of actors and learner, metrics, board, submission."""
