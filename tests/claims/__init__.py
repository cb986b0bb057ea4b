"""Numbers of README and docs, each linked to the raw result below benchmarks/results/ that it was measured in."""
