"""Prove after a weight sync that an engine computes with the published weights."""
