"""The pools between loop and actors: generators, which take leases and weights, and judges, which take groups."""
