"""Settings of a run: models, presets, loading with overrides, the table of verbs, renamed keys.

A YAML file or preset and KEY=VALUE overrides go in; `loading.py` returns one validated configuration or every mistake.
`run.py` composes the `config.py` models of the other packages. Must not import anything heavy; starts nothing.
"""
